"""The SQLite adapter of the store's port.

It imports the port, `flow`, `wire` and `config.paths`, and no other room. Whether a file may be used is decided by `place` (where it lies),
`lock` (who has it) and `opening` (ours, whole, up to date). `store` opens it and owns its connections. A batch is one `transaction`, on top
of `load` and `upkeep`. `reads` and `admin_reads` answer questions, and `steps` fetches until it weighs too much. `rows` and `admin_rows`
know the columns, `statements` finds the SQL, `errors` says what SQLite's errors mean for the work. Other processes use `snapshot`
(read-only), `offline` (questions to it) and `backup`. Begin with `store`.
"""
