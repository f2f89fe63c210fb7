"""Build the policy of a worker from its settings, bindings and delegates' owners."""

from __future__ import annotations

from functools import partial

from nats_taskflow.config import Config
from nats_taskflow.engine.payload_schema import accepts, schema_flaw
from nats_taskflow.engine.quota import CommandQuota
from nats_taskflow.flow.policy import Policy
from nats_taskflow.wire.commands import is_taken_for_reply
from nats_taskflow.wire.delegates import Delegates
from nats_taskflow.wire.replies import ReplyBindings


def quota_of(config: Config) -> CommandQuota:
    """Return the command quota of one door, by the settings."""
    return CommandQuota(commands=config.quotas.commands_per_second, size=config.quotas.command_bytes_per_second)


def policy_of(config: Config, bindings: ReplyBindings) -> Policy:
    """Return the policy of a worker with these settings and bindings."""
    return Policy(
        timer_horizon_us=config.engine.timer_max_horizon,
        held_ttl_us=config.engine.held_reply_ttl,
        default_timeout_us=config.engine.default_wait_timeout,
        max_held=config.engine.held_replies_max,
        max_held_of_tenant=config.engine.held_replies_max_per_owner,
        max_open_flows=config.quotas.open_flows,
        max_state_bytes_of_agent=config.quotas.state_bytes,
        topics=bindings.refusal,
        answers_on=bindings.answers_on,
        delegates=Delegates(config.delegates).refusal,
        takes=partial(is_taken_for_reply, bindings),
        accepts=accepts,
        schema_flaw=schema_flaw,
    )
