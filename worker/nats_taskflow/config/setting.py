"""Describe one setting: its parser, its help, its flag, variables and keys."""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.config.parsers import Parser


class SettingInfo(msgspec.Struct, frozen=True):
    """A setting's parser, its help, and other names of its variable and key."""

    parse: Parser[Any]
    help: str
    env: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    empty_counts: bool = False
    """Whether an empty variable is a value (an empty list) rather than none."""
    absent: str = ""
    """How the file says that there is no value."""


class GuardedSetting(SettingInfo, frozen=True):
    """A setting that says whom we talk to, as whom, or where we listen.

    A file that nobody named must not set it.
    """


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One leaf of the tree. `key` is its path: `store.path`."""

    key: str
    default: Any
    about: SettingInfo

    @property
    def flag(self) -> str:
        """The flag of the command line: `--store-path`."""
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables: `TASKFLOW_STORE_PATH`, then the other names.

        The first that is set wins.
        """
        return ("TASKFLOW_" + self.key.replace(".", "_").upper(), *self.about.env)
