"""Read the named SQL statements of `store/sql`.

`-- name: x` starts one, a semicolon ends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

_NAMED = re.compile(r"^-- name: (\w+)\n(.*?);\s*$", re.DOTALL | re.MULTILINE)


@cache
def statements(file: str) -> Mapping[str, str]:
    """Return the statements of `sql/<file>.sql` by name.

    Read once: a transaction must not have to open a file.
    """
    text = resources.files("nats_taskflow.store").joinpath("sql", f"{file}.sql").read_text(encoding="utf-8")
    return MappingProxyType({name: body.strip() for name, body in _NAMED.findall(text)})


def migrations() -> list[list[str]]:
    """Return the migrations in order, each as its statements.

    Number k leads from schema k to schema k + 1.
    """
    folder = resources.files("nats_taskflow.store").joinpath("migrations")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [_split(file.read_text(encoding="utf-8")) for file in files]


def _split(script: str) -> list[str]:
    # Comment lines fall away, and a semicolon at a line's end ends a statement.
    lines = [line for line in script.splitlines() if line.strip() and not line.lstrip().startswith("--")]
    return [part.strip() for part in re.split(r";\s*$", "\n".join(lines), flags=re.MULTILINE) if part.strip()]
