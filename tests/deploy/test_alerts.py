"""Alerts and dashboard look at metrics that the worker has, under labels that they have, and the page explains each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.metrics import MetricWrapperBase

from nats_taskflow.observe.histogram import DurationHistogram
from nats_taskflow.observe.metrics import Metrics
from tests.deploy.scraping import families
from tests.e2e.stage import Stage

ROOT = Path(__file__).parents[2]
ALERTS = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
DASHBOARD: Any = json.loads((ROOT / "deploy" / "grafana" / "taskflow-overview.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
_ALERT = re.compile(
    r"      - alert: (?P<name>\w+)\n        expr: (?P<expr>\".*\")\n        for: (?P<after>\w+)\n"
    r"        labels: \{severity: (?P<severity>\w+)\}\n        annotations:\n          summary: (?P<summary>\".*\")\n"
    r"          description: (?P<what>\".*\")\n          runbook: (?P<runbook>\S+)\n"
)
_METRIC = re.compile(r"\b(?:taskflow|process)_[a-z_]+\b")
_TARGETS = {"instance", "job"}
"""Labels that Prometheus adds."""
CLOSED = {"action", "cause", "consumer", "file", "from", "kind", "outcome", "quota", "reason", "status", "to"}
"""Labels whose values come from a closed set; `le` is a histogram's."""


BUILD = {"version", "revision", "python"}


class Alert(NamedTuple):
    name: str
    expr: str
    severity: str
    what: str
    runbook: str


def alerts() -> list[Alert]:
    """Read the rules: the file keeps to one form, which `make deploy-check` holds against a reader of YAML and PromQL."""
    found = [
        Alert(rule["name"], json.loads(rule["expr"]), rule["severity"], json.loads(rule["what"]), rule["runbook"])
        for rule in _ALERT.finditer(ALERTS)
    ]
    assert len(found) == ALERTS.count("- alert:")
    return found


def queries() -> list[str]:
    """Return everything the dashboard asks Prometheus for."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return panels + [variable["query"] for variable in DASHBOARD["templating"]["list"]]


def labels() -> dict[str, set[str]]:
    """Return the labels of each metric by the name of its samples."""
    found: dict[str, set[str]] = {}
    for metric in Metrics().registry._collector_to_names:
        if not isinstance(metric, MetricWrapperBase | DurationHistogram):
            continue  # process_*: without labels
        names = set(metric._labelnames if isinstance(metric, MetricWrapperBase) else metric.labels)
        for name in _names(metric):
            found[name] = names | ({"le"} if name.endswith("_bucket") else set()) | (BUILD if "build" in name else set())
    return found


def _names(metric: Any) -> list[str]:
    """Return the names of a metric's samples."""
    return [family.name + suffix for family in metric.describe() for suffix in ("", "_total", "_info", "_bucket", "_sum", "_count")]


@pytest.mark.e2e
async def test_every_metric_that_is_asked_for_is_on_the_page_of_a_running_worker(stage: Stage) -> None:
    suffixes = {"counter": ("_total",), "gauge": ("",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}
    found = await families(stage)
    there = {name_of(family) + suffix for family in found for suffix in suffixes.get(family.type, ("",))}
    asked = {name for query in [*queries(), *(alert.expr for alert in alerts())] for name in _METRIC.findall(query)}
    assert asked - there == set()
    assert len(asked) > 20
    explained = set(re.findall(r"^\| `(taskflow_[a-z_]+)", METRICS, re.MULTILINE))
    assert explained == {name for name in there if name.startswith("taskflow_") and not name.endswith(("_sum", "_count", "_bucket"))} | {
        name.removesuffix("_bucket") for name in there if name.startswith("taskflow_") and name.endswith("_bucket")
    }


def name_of(family: Any) -> str:
    """Return a family's name without what its samples add to it."""
    return str(family.name).removesuffix("_info") if family.type == "info" else str(family.name)


@pytest.mark.parametrize("query", [*queries(), *(alert.expr for alert in alerts())])
def test_a_query_names_only_labels_that_its_metrics_have(query: str) -> None:
    known = labels()
    has = set().union(*(known.get(name, set()) for name in _METRIC.findall(query))) | _TARGETS
    grouped = {label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in group.split(",")}
    matched = set(re.findall(r"[{,](\w+)(?:=~|!~|!=|=)\"", query))
    assert grouped | matched <= has


def test_no_label_can_grow() -> None:
    used = {label for names in labels().values() for label in names}
    assert used == CLOSED | BUILD | {"le"}


def test_each_alert_says_what_to_do_and_the_page_says_the_same() -> None:
    assert len({alert.name for alert in alerts()}) == len(alerts()) >= 12
    for alert in alerts():
        assert alert.severity in {"critical", "warning"}
        assert alert.runbook == f"docs/monitoring.md#{alert.name.lower()}"
        section = PAGE.partition(f"### {alert.name}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
        assert alert.what in section, alert.name
        assert f"`{alert.expr}`" in section, alert.name


def test_the_dashboard_can_be_imported_anywhere() -> None:
    assert DASHBOARD["__inputs"][0]["name"] == "DS_PROMETHEUS"
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${DS_PROMETHEUS}"
            assert panel["targets"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
