"""`taskflow flow`: see flows, act for their agents, and steer them as an operator."""

from __future__ import annotations

import rich_click as click

from worker.cli import flow_acting, flow_reading, flow_steering


@click.group()
def flow() -> None:
    """See flows and steer them. A FLOW is an id, or at least 6 characters of its beginning or end."""


for _module in (flow_reading, flow_acting, flow_steering):
    for _command in _module.COMMANDS:
        flow.add_command(_command)
