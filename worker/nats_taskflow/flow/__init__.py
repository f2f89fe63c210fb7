"""The core: what a flow is and what may happen to it. No async, no clock, no I/O, no randomness, no logging.

Read `lifecycle` (the status table), `model` (what is kept), `waits` (what a flow can wait for), `commands` (what can happen),
then `decide` and its neighbours `park`, `match`, `ending`, `decision`; `fold` turns journal entries back into flows and `world` is the
little memory that decisions are taken on.
"""
