"""The reference pages say what the program does: nothing is missing in them, and their examples are what is published."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner
from referencing import Registry, Resource

import nats_taskflow
from docs.generate import dead_letters as dead_letters_page
from docs.generate import errors, events, pages
from docs.generate.__main__ import main
from docs.generate.markdown import BY_HAND
from nats_taskflow import client, testing
from nats_taskflow.cli import exit_codes, taskflow
from nats_taskflow.config import settings
from nats_taskflow.errors import FlowError, Refusal
from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.observe.metrics import DEAD_LETTER_REASONS
from nats_taskflow.wire import dead_letters, headers
from nats_taskflow.wire.events import CloudEvent, EventData
from nats_taskflow.wire.schema.documents import documents
from tests.pages import ROOT
from tests.pages import pages as every_page

DOCS = Path(__file__).parents[2] / "docs"
NAMES = sorted(path.name for path in DOCS.glob("*.md") if BY_HAND in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """Every page as the program makes it now: that takes a second."""
    return pages()


@pytest.mark.parametrize("name", NAMES)
def test_a_generated_page_is_up_to_date(name: str, made: dict[str, str]) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == made[name], "run: make docs"


@pytest.mark.parametrize("name", NAMES)
def test_a_generated_page_names_no_page_that_its_readers_do_not_have(name: str, made: dict[str, str]) -> None:
    assert re.findall(r"\b(?:SEMANTICS|CONTRACT|RELIABILITY|ARCHITECTURE|R\d+)\b", made[name]) == []


def test_every_generated_page_is_there(made: dict[str, str]) -> None:
    assert sorted(made) == NAMES, "run: make docs"


def test_no_page_for_users_sends_them_to_a_page_that_only_the_authors_have() -> None:
    internal = re.compile(r"\b(?:SEMANTICS|CONTRACT|RELIABILITY|ARCHITECTURE)\b|\bR(?:1[0-4]|[0-9])\b")
    found = [
        f"{page}: {line}"
        for page in every_page()
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines()
        if internal.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("module", [nats_taskflow, client, testing])
def test_the_page_on_python_has_every_public_name(module: ModuleType, made: dict[str, str]) -> None:
    page = made["python.md"]
    names = {name for name in module.__all__ if name != "BY_CODE"}
    assert [name for name in sorted(names) if f"### {name}\n" not in page and f"`{name}`" not in page] == []


def test_describing_the_commands_leaves_them_as_they_are(made: dict[str, str]) -> None:
    assert CliRunner().invoke(taskflow, ["dev", "-h"]).exit_code == 0


def test_drift_is_seen_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, made: dict[str, str]
) -> None:
    monkeypatch.setattr("docs.generate.__main__.pages", lambda: made)
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    (tmp_path / "errors.md").write_text("none", encoding="utf-8")
    (tmp_path / "cli.md").unlink()
    assert main(["--check", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [f"differs: {tmp_path / 'cli.md'}", f"differs: {tmp_path / 'errors.md'}"]


def test_every_setting_has_its_row_with_variable_and_flag(made: dict[str, str]) -> None:
    page = made["configuration.md"]
    for setting in settings():
        assert f"`{setting.variables[0]}` | `{setting.flag}`" in page, setting.key


def test_every_error_is_explained_and_none_that_is_not_there(made: dict[str, str]) -> None:
    codes = {kind.code for kind in FlowError.__subclasses__()}
    assert errors._ADVICE.keys() == codes, "docs/generate/errors.py says what to do about each code"
    for kind in FlowError.__subclasses__():
        assert f"| `{kind.code}` | {kind.http} |" in made["errors.md"]
    for code in exit_codes.MEANINGS:
        assert f"\n| {code} | " in made["errors.md"].partition("## Exit codes")[2]


def test_everything_that_ends_the_worker_is_explained() -> None:
    ends = {kind for kind in Refusal.__subclasses__() if kind.__module__.startswith("nats_taskflow.")}
    assert errors._ENDS.keys() == ends, "docs/generate/errors.py says what to do about each"


def test_nothing_in_the_pages_points_into_documents_that_readers_do_not_have(made: dict[str, str]) -> None:
    for name, text in made.items():
        assert "SEMANTICS" not in text, name
        assert "RELIABILITY" not in text, name
        assert "CONTRACT" not in text, name


def test_every_reason_of_a_dead_letter_and_every_header_is_explained() -> None:
    assert dead_letters_page._REASONS.keys() == set(DEAD_LETTER_REASONS)
    spelled = {value for name, value in vars(dead_letters).items() if name.isupper() and isinstance(value, str)} - {headers.UNREAD}
    assert {getattr(dead_letters, name) for name in dead_letters_page._HEADERS} == spelled


def test_every_field_of_an_event_and_every_kind_is_explained() -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(CloudEvent)}
    inner = {f"data.{field.encode_name}" for field in msgspec.structs.fields(EventData)}
    assert events._FIELDS.keys() == fields | inner
    assert events._KINDS.keys() == set(EventKind)


def test_the_example_of_each_kind_of_event_is_one_by_its_schema() -> None:
    found = events.examples()
    assert found.keys() == set(EventKind)
    schemas = {name: msgspec.json.decode(text) for name, text in documents().items() if name != "asyncapi.json"}
    registry = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in schemas.items())
    judge = jsonschema.Draft202012Validator(schemas["event.json"], registry=registry)
    for kind, example in found.items():
        judge.validate(example)
        assert example["data"]["kind"] == kind.value
