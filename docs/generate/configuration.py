"""Describe every setting, from the tree that the worker reads: docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterator

from docs.generate.markdown import BY_HAND, cell, code, page_of, table
from nats_taskflow.config import Config
from nats_taskflow.config import settings as known
from nats_taskflow.config.setting import Setting
from nats_taskflow.config.show import to_toml

_HEAD = f"""# Configuration

{BY_HAND}

Each setting has a key in the file, an environment variable and a flag; `taskflow run --help` lists the flags. All commands take the same
settings, so worker and command line cannot mean different databases.

## Where a value comes from

The first that is set wins:

1. a flag: `--store-path`;
2. an environment variable: `TASKFLOW_STORE_PATH`, then the other names in the table. One that is set but empty counts as not set, except for
   `TASKFLOW_REPLY_TOPICS`, where empty means none;
3. the file: `--config FILE`, or `TASKFLOW_CONFIG`, or the first that exists of `./taskflow.toml`, `$XDG_CONFIG_HOME/taskflow/config.toml`
   (`~/.config/…`) and `/etc/taskflow/config.toml`. A `./taskflow.toml` that nobody named may say neither where to connect or listen nor as
   whom (`http.bind`, and all of `nats.*` but `connect_timeout`): it may have come with a folder of somebody else, who would be sent your
   credentials. It must belong to you, as must its folder and those above it. If it is yours and says these things, name it:
   `--config taskflow.toml`;
4. a context of the `nats` command line, for `nats.*` only: `nats.context`;
5. the default.

`taskflow config show --origin` says where each value came from, with secrets masked. `taskflow config validate` checks all of them. An unknown key in
the file is refused (exit 78) with the nearest known one, and so is a variable that is almost one of ours.

## The file

`taskflow config init` writes one with every setting, its default and its help, commented out. A piece of one:

```toml
version = 1

[nats]
url = ["nats://nats-1:4222", "nats://nats-2:4222"]
nkey = "credential:worker.nk"

[store]
path = "/var/lib/taskflow/flows.db"

[engine]
default_wait_timeout = "2d"

[[replies]]
subject = "agent.route.*"
correlation = "body:/correlation_id"
owners = ["kate"]

[[delegates]]
subject = "agent.billing.>"
owners = ["kate", "ann"]
```

What a `[[replies]]` block can say is in [Examples](../examples/README.md), what `[[delegates]]` are for in
[Waiting](waiting.md#who-may-ask-which-delegate).

## How values are written

- **A duration** is text: `500ms`, `15m`, `1h 30m`, `30d`.
- **A list** is a TOML list in the file, and comma separated elsewhere.
- **A secret** is best not written out: write `file:/path`, `env:NAME`, or `credential:NAME` (a file in `$CREDENTIALS_DIRECTORY`, as systemd
  provides). A file that others may read is refused, whether it is the secret's own file or one in which a secret is written out. `nats.creds`,
  `nats.nkey` and `nats.tls_key` also take a plain path.

## Settings

"Also" lists other names: variables of the `nats` command line, and spellings of [nexo-taskflow](moving.md).
"""


def page() -> str:
    """Return the page."""
    return page_of(_lines())


def _lines() -> Iterator[str]:
    """Give the page's lines, a table for each section."""
    yield _HEAD
    sections: dict[str, list[Setting]] = {}
    for setting in known():
        sections.setdefault(setting.key.partition(".")[0], []).append(setting)
    for name, settings in sections.items():
        alone = settings[0].key == name
        yield f"### `[[{name}]]`" if alone else f"### `[{name}]`"
        yield ""
        if not alone:
            yield from ((type(getattr(Config(), name)).__doc__ or "").strip(), "")
        yield from table(("key", "default", "variable", "flag", "what", "also"), map(_row, settings))


def _row(setting: Setting) -> tuple[str, ...]:
    """Describe one setting."""
    key = setting.key.rpartition(".")[2]
    others = [*setting.variables[1:], *setting.about.keys]
    default = to_toml(setting.default, setting.about.absent)
    also = ", ".join(code(name) for name in others if name != setting.variables[0])
    return (
        code(key),
        "" if default in ('""', "[]") else code(default),
        code(setting.variables[0]),
        code(setting.flag),
        cell(setting.about.help),
        also,
    )
