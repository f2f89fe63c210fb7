"""`taskflow reply TOPIC CORRELATION_ID [PAYLOAD]`: send the reply for a flow."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from nats_taskflow.cli.command import AskCommand
from nats_taskflow.cli.online import OnlineSession
from nats_taskflow.cli.options import aliased_option
from nats_taskflow.cli.output import Printer
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.selection import find_flow_id
from nats_taskflow.cli.session import run


@click.command(cls=AskCommand)
@click.argument("topic")
@click.argument("correlation_id")
@click.argument("payload", required=False)
@aliased_option(
    "--event-id", "--id", metavar="ID", help="The reply's id: a repeat with the same one is recognised. A new one if not given."
)
@click.option("--text", "as_text", is_flag=True, help="PAYLOAD is text, whatever it looks like.")
@click.option("--flow", "flow_id", metavar="FLOW", help="Only for this flow.")
@click.option("--dry-run", is_flag=True, help="Only say which flow it would resume.")
def reply(*, topic: str, correlation_id: str, payload: str | None, event_id: str | None, as_text: bool, **arguments: Any) -> None:
    """Publish a reply on TOPIC with CORRELATION_ID. PAYLOAD is JSON (or text); `-` reads it from stdin."""
    text = sys.stdin.read() if payload == "-" else payload
    value = text if as_text else _read_payload(text)

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Publish the reply, or print which flow it would resume."""
        from nats_taskflow.wire.headers import CORRELATION_ID, MSG_ID

        assert isinstance(session, OnlineSession), "a reply goes over NATS"
        body = {"correlation_id": correlation_id, "payload": value}
        if arguments["flow_id"]:
            body["flow_id"] = await find_flow_id(session, arguments["flow_id"])
        subject = _reply_subject(session, topic, correlation_id)
        if arguments["dry_run"]:
            await session.client.check_taken(subject)
            waiters = (await session.ask("who", topic=topic, correlation_id=correlation_id))["waiters"]
            flow_ids = [waiter["flow_id"] for waiter in waiters if waiter["flow_id"] == body.get("flow_id", waiter["flow_id"])]
            nobody = "nobody: another flow waits for it, so it would be a dead letter" if waiters else "nobody: it would be held"
            printer.item({"would_resume": flow_ids}, [("would resume", ", ".join(flow_ids) or nobody)])
            return
        headers = {MSG_ID: event_id or _new_id(), CORRELATION_ID: correlation_id}
        message = json.dumps(body["payload"] if subject != topic else body, ensure_ascii=False).encode()
        stored = await session.client.publish(subject, message, headers)
        if stored.duplicate:  # the stream drops it: without the header the worker gets it, and can tell a repeat from another reply
            from nats_taskflow.client.replies import put_in_envelope

            await session.client.publish(subject, put_in_envelope(subject, message, headers[MSG_ID]), {CORRELATION_ID: correlation_id})
        receipt = {"stream": stored.stream, "seq": stored.seq, "duplicate": stored.duplicate, "id": headers[MSG_ID]}
        again = " (the id is known: the worker looks whether this is the same reply)" if stored.duplicate else ""
        printer.item(receipt, [("stored", f"{stored.stream} {stored.seq}{again}"), ("id", headers[MSG_ID])])

    run(arguments, main)


def _read_payload(text: str | None) -> Any:
    """Return the payload: JSON, or the text itself.

    Text that only begins like JSON is refused: a flow would go on with half an object.
    """
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise click.UsageError(f"PAYLOAD looks like JSON and is none ({error}); correct it, or say --text") from error
        return text


def _reply_subject(session: OnlineSession, topic: str, correlation_id: str) -> str:
    """Return the subject for a reply on a topic.

    That of a built-in topic ends with the correlation id. Raises a usage error.
    """
    from nats_taskflow.bus.nats.desired_topology import reply_bindings
    from nats_taskflow.errors import FlowError

    subject = reply_bindings(session.config, session.subjects).answers_on(topic, correlation_id)
    if isinstance(subject, FlowError):
        raise click.UsageError(subject.message)
    return subject


def _new_id() -> str:
    import secrets

    return f"cli-{secrets.token_hex(12)}"
