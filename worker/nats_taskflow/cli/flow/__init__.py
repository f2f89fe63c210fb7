"""`taskflow flow`: see flows, act for their agents, and steer them as an operator."""

from __future__ import annotations

from typing import ClassVar

import click

from nats_taskflow.cli.command import Group
from nats_taskflow.cli.flow import act, read, steer


class Flows(Group):
    """The commands about flows, listed by who uses them."""

    sections: ClassVar = {
        "Look": ("list", "show", "history", "steps"),
        "Act as the flow's agent": ("start", "run", "advance", "wait", "delegate", "finish"),
        "Steer as an operator": ("resume", "cancel", "fail", "release"),
    }


@click.group(cls=Flows)
def flow() -> None:
    """See flows and steer them. A FLOW is an id, or at least 6 characters of its beginning or end."""


for _module in (read, act, steer):
    for _command in _module.COMMANDS:
        flow.add_command(_command)
