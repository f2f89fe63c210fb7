"""Describe one setting: how its value is read, what it is for, and where it is looked up."""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.config.parsers import Parser


class SettingInfo(msgspec.Struct, frozen=True):
    """What is known of a setting besides type and default: how to read it, its help, other names for variable and key."""

    read: Parser[Any]
    help: str
    env: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    empty_counts: bool = False
    """Whether a variable that is set but empty is a value (an empty list) rather than no value."""
    absent: str = ""
    """How no value is written in the file."""


class GuardedSetting(SettingInfo, frozen=True):
    """The same of a setting that says who is talked to, as whom, or where is listened: a file that is merely found may not set it."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One leaf of the tree: its `key` (`store.path`), its default and what is known about it."""

    key: str
    default: Any
    about: SettingInfo

    @property
    def flag(self) -> str:
        """Give the flag of the command line: `--store-path`."""
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """Give the environment variables, the first that is set wins: `TASKFLOW_STORE_PATH`, then the other names."""
        return ("TASKFLOW_" + self.key.replace(".", "_").upper(), *self.about.env)
