"""Operate: see what all owners' flows do, say why one stands still, and steer (CONTRACT 6, `taskflow.admin.<verb>`).

`desk` answers questions from the store alone, so that it also works on a database whose worker is down; `explaining` makes sentences of
what it finds. `acting` changes flows and held replies through the engine, `letters` handles dead letters; `service` takes the requests.
"""
