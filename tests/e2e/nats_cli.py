"""Stand in for the `nats` command line, which cannot be installed where these tests run: the few commands that the examples use.

    python -m tests.e2e.nats_cli req --raw taskflow.api.kate.status '{...}'

Arguments and output are those of natscli's cli/pub_command.go and cli/sub_command.go. An argument that is not known here is an error, so
that no example comes to rely on what nobody has checked; so is a request that nobody answers, over which the real one exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

import nats
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, DeliverPolicy

_PATIENCE = 5.0


def arguments() -> argparse.Namespace:
    """Read the arguments as natscli does: options anywhere, `--name value` or `--name=value`."""
    parser = argparse.ArgumentParser(prog="nats", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("pub", "req"):
        sending = commands.add_parser(name, allow_abbrev=False)
        sending.add_argument("subject")
        sending.add_argument("body")
        sending.add_argument("-H", "--header", action="append", default=[])
        if name == "req":
            sending.add_argument("-r", "--raw", action="store_true", required=True)
    hearing = commands.add_parser("sub", allow_abbrev=False)
    hearing.add_argument("subject")
    hearing.add_argument("-r", "--raw", action="store_true", required=True)
    hearing.add_argument("--all", action="store_true", required=True)
    hearing.add_argument("--count", type=int, required=True)
    return parser.parse_args()


async def send(client: Client, given: argparse.Namespace) -> None:
    """Publish, or ask and print the answer."""
    assert "{{" not in given.body, "natscli takes this for a template"
    headers = {name: value.strip() for name, _, value in (header.partition(":") for header in given.header)}
    if given.command == "pub":
        await client.publish(given.subject, given.body.encode(), headers=headers or None)
        await client.flush()
    else:
        answer = await client.request(given.subject, given.body.encode(), timeout=_PATIENCE, headers=headers or None)
        show(answer.data)


async def hear(client: Client, given: argparse.Namespace) -> None:
    """Print so many messages of the stream that has the subject, from the first it keeps."""
    everything = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
    subscription = await client.jetstream().subscribe(given.subject, ordered_consumer=True, config=everything)
    for _ in range(given.count):
        show((await subscription.next_msg(timeout=None)).data)


def show(body: bytes) -> None:
    """Print a body, and nothing of the message besides."""
    sys.stdout.write(body.decode() + "\n")


async def main() -> None:
    """Run one command."""
    given = arguments()
    client = await nats.connect(os.environ["NATS_URL"], allow_reconnect=False)
    try:
        await (hear if given.command == "sub" else send)(client, given)
    finally:
        await client.close()


if __name__ == "__main__":
    asyncio.run(main())
