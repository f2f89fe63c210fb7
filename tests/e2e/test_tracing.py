"""What docs/tracing.md says is what a collector gets from a real worker."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.deploy.scraping import shows
from tests.e2e.collector import Collector
from tests.e2e.stage import TOPIC, Stage
from tests.eventually import eventually

PAGE = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text(encoding="utf-8")
KINDS = {"consumer": 5}


def block(mark: str) -> str:
    """Return the block of the page under this mark."""
    found = re.search(rf"^<!-- {mark} -->\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, mark
    return found[1]


def environment(collector: Collector) -> dict[str, str]:
    """Return what the page exports, with this collector's address."""
    shown = dict(re.findall(r"^export (\w+)=(\S+)", block("environment"), re.MULTILINE))
    assert len(shown) == 4
    return shown | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def promised() -> list[tuple[str, ...]]:
    """Return the rows of the page's table of spans."""
    rows = re.findall(r"^\| (the \S+) \| `(taskflow \w+)` \| (\w+) \| (the \S+) span \| ?`?([\w ]*?)`? ?\|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    return rows


@pytest.mark.e2e
async def test_the_collector_gets_what_the_page_shows_and_no_span_is_as_long_as_the_wait(tmp_path: Path) -> None:
    async with Collector() as collector, Stage(tmp_path, settings=environment(collector)) as stage:
        program = tmp_path / "program.py"
        program.write_text(block("program"), encoding="utf-8")
        ran = await asyncio.create_subprocess_exec(sys.executable, str(program), env=stage.environment(NATS_URL=stage.url))
        assert await asyncio.wait_for(ran.wait(), 30) == 0
        await eventually(lambda: len(collector.spans) == len(promised()), within=30)
        found = {span.name: span for span in collector.spans}
        rows = promised()
        assert sorted(found) == sorted(name for _, name, *_ in rows)
        for whose, name, kind, parent, link in rows:
            span, others = found[name], [found[other] for of, other, *_ in rows if of == whose]
            assert span.kind == KINDS[kind]
            assert parent == whose
            assert {(other.trace_id, other.parent_span_id) for other in others} == {(span.trace_id, span.parent_span_id)}
            assert [(one.trace_id, one.span_id) for one in span.links] == ([(found[link].trace_id, found[link].span_id)] if link else [])
            assert 0 <= span.end_time_unix_nano - span.start_time_unix_nano < 30e9
        assert len({span.trace_id for span in found.values()}) == 2
        attributes = {pair.key for span in found.values() for pair in span.attributes}
        assert attributes <= set(re.findall(r"[\w.]+", expanded(PAGE))), "an attribute that the page does not name"
        assert (collector.resource["service.name"], collector.resource["deployment.environment.name"]) == ("taskflow-prod", "prod")
        await shows(stage, lambda page: page.get('taskflow_spans_total{outcome="exported"}') == 4)


def expanded(page: str) -> str:
    """Write out the attribute names that the page shortens: `a.b.c`, `.d` is `a.b.d`."""
    rows = [re.findall(r"`([\w.]+)`", row) for row in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)]
    return " ".join(name if not name.startswith(".") else whole + name for row in rows for name in row for whole in stems(row[0]))


def stems(name: str) -> list[str]:
    """Return every beginning of a dotted name."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_a_collector_that_refuses_harms_neither_the_work_nor_the_stop(tmp_path: Path) -> None:
    async with Collector() as collector, Stage(tmp_path, settings=environment(collector)) as stage:
        collector.status = "400 Bad Request"
        kate = await stage.agent("kate")
        headers = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
        answer = await kate.ask("start", {"controller_id": "kate/t", "goal": "g"}, headers=headers)
        assert b'"ok":true' in answer.data
        page = await shows(stage, lambda page: page.get('taskflow_spans_total{outcome="failed"}', 0) >= 2)
        assert 'taskflow_spans_total{outcome="exported"}' not in page
        await kate.parked("c-1")
        await kate.reply(TOPIC, "c-1", {})
        await shows(stage, lambda page: page.get('taskflow_resumes_total{cause="event"}') == 1)
        assert await stage.stop() == 0


@pytest.mark.e2e
async def test_a_collector_that_is_gone_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async with Collector() as collector:
        settings = environment(collector) | {"OTEL_EXPORTER_OTLP_TIMEOUT": "120"}  # for so long the exporter would try again
    async with Stage(tmp_path, settings=settings) as stage:
        kate = await stage.agent("kate")
        headers = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
        await kate.ask("start", {"controller_id": "kate/t", "goal": "g"}, headers=headers)
        assert await stage.stop(within=20) == 0
