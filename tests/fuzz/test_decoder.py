"""What `make fuzz` does, in small: the same target, a fixed seed; and Hypothesis, which shrinks what it finds."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from referencing import Registry, Resource

from nats_taskflow.wire.inbound import Inbound, Unusable
from nats_taskflow.wire.schema.documents import documents
from tests.fuzz import decoder
from tests.fuzz.corpus import BINDINGS, COMMANDS, QUERIES, Message, corpus
from tests.fuzz.decoder import Crash, Target, fuzz, inputs
from tests.fuzz.mutator import Mutator
from tests.tiers import Tier

SCHEMAS = {name: json.loads(text) for name, text in documents().items() if name != "asyncapi.json"}
REGISTRY: Registry[Any] = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items())
GOLDEN = corpus()
TEXTS = st.text(max_size=20) | st.sampled_from(["c-1", "taskflow", "cmd", "kate", "start", "", "\x00", "*"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.sampled_from(["flow_id", "payload", "kind"]), inner, max_size=4),
    max_leaves=20,
)
BODIES = st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("kind, verb, body", [*(("command", *one) for one in COMMANDS), *(("query", *one) for one in QUERIES)])
def test_the_golden_messages_satisfy_the_published_schemas(kind: str, verb: str, body: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMAS[f"{kind}.{verb}.json"], registry=REGISTRY).validate(body)


def test_the_golden_messages_are_read_and_cover_every_verb_and_binding() -> None:
    target = Target()
    read = [(one.subject, target.take(number, one)) for number, one in enumerate(GOLDEN, 1)]
    good = [subject for subject, verdict in read if isinstance(verdict, Inbound)]
    assert {subject for subject, verdict in read if isinstance(verdict, Unusable)} == {
        one.subject for one in GOLDEN if ".api." in one.subject
    }
    for binding in BINDINGS:
        assert any(
            target.bindings._covering(subject)[0].binding == binding
            for subject in good
            if ".cmd." not in subject and subject != "taskflow.resume"
        )


async def test_spoilt_messages_are_read_and_decided_without_anything_raised(tier: Tier) -> None:
    kinds, decided = await fuzz(tier(quick=2_000, all=6_000, nightly=60_000), 7, every=5)
    assert {"read.reply", "read.wait", "read.resume", "unusable.malformed", "unusable.invalid_request", "ignored", "query"} <= kinds.keys()
    assert {"applied", "held", "conflict", "invalid_request"} <= decided.keys()


def test_the_same_seed_gives_the_same_messages() -> None:
    assert list(inputs(3, 500)) == list(inputs(3, 500)) != list(inputs(4, 500))


def test_a_crash_says_what_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RecursionError("planted")

    monkeypatch.setattr(decoder, "read_command", broken)
    with pytest.raises(Crash, match=r"planted[\s\S]*subject = 's.run'\nheaders = {'A': 'b'}\nbody = b'\\xff'"):
        Target().take(1, Message("s.run", {"A": "b"}, b"\xff"))


@settings(max_examples=3 * settings().max_examples, derandomize=True, deadline=None)
@given(st.sampled_from([one.subject for one in GOLDEN]), st.dictionaries(st.text(max_size=8), TEXTS, max_size=3), BODIES)
@example("taskflow.cmd.kate.start", {}, b'{"controller_id":"\\ud800","goal":"g"}')
def test_any_bytes_on_any_subject_end_as_a_verdict(subject: str, headers: dict[str, str], body: bytes) -> None:
    Target().take(1, Message(subject, headers, body))


@settings(max_examples=2 * settings().max_examples, derandomize=True, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_the_seed_the_faults_end_as_a_verdict(seed: int) -> None:
    target, mutator = Target(), Mutator(GOLDEN, seed)
    for number in range(1, 4):
        target.take(number, mutator.next())
