"""`taskflow flow`: see flows, act for their agents, and steer them as an operator."""

from __future__ import annotations

from typing import ClassVar

import click

from nats_taskflow.cli import flow_acting, flow_reading, flow_steering
from nats_taskflow.cli.command import Group


class Flows(Group):
    """The commands about flows, by who uses them."""

    sections: ClassVar = {
        "Look": ("list", "show", "history", "steps"),
        "Act as the flow's agent": ("start", "run", "advance", "wait", "delegate", "finish"),
        "Steer as an operator": ("resume", "cancel", "fail", "release"),
    }


@click.group(cls=Flows)
def flow() -> None:
    """See flows and steer them. A FLOW is an id, or at least 6 characters of its beginning or end."""


for _module in (flow_reading, flow_acting, flow_steering):
    for _command in _module.COMMANDS:
        flow.add_command(_command)
