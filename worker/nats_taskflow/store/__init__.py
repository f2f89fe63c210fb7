"""The database room: its ports, its records, and the SQLite adapter.

`port` says what the worker needs of a database, `admin_port` what operators ask of it. `records` has the structs that go in and come out.
These three import `flow` and `wire`, and nothing else. The adapter is `sqlite/`, which only `app` and the rooms above it name; its
statements lie in `sql/`, its schema in `migrations/`. `invariants/` checks what must hold whatever has happened. Begin with `port`: it
carries the promises.
"""
