"""The operators' door (CONTRACT 6, `taskflow.admin.<verb>`).

It shows what all owners' flows do, explains why one stands still, and steers them.

`service` takes a request. `queries` answers questions from the store's reads alone, so that it also works on a database whose worker is
down; `circumstances` gathers what bears on a flow, and `explain` makes sentences of it. `interventions` changes flows and held replies
through the engine, `dead_letters` replays and purges, and `backup_process` copies the database. Begin with `service`.
"""
