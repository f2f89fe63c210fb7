"""The database room: `base` is the port, `sqlite` the adapter; the rest are its parts.

`opening`, `placement` and `lock` decide whether a file may be used; `transaction` and `upkeep` write, `reads` asks; `rows` knows the
columns, `queries` the SQL files, `failures` what SQLite's errors mean for the work.
"""
