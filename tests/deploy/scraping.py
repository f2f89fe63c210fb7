"""Read a worker's `/metrics` as Prometheus does."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.stage import Stage
from tests.eventually import eventually

Page = Mapping[str, float]


async def page_of(stage: Stage, path: str = "/metrics") -> str:
    """Return a page of the worker's health address."""

    def get() -> str:
        with urllib.request.urlopen(f"{stage.ready['http']}{path}", timeout=10) as answer:  # noqa: S310 - our own worker
            body: bytes = answer.read()
            return body.decode()

    return await asyncio.to_thread(get)


async def families(stage: Stage) -> list[Metric]:
    """Return every metric of the worker, also those without a sample yet."""
    return list(text_string_to_metric_families(await page_of(stage)))


async def scraped(stage: Stage) -> Page:
    """Return every sample by `name{label="value"}`, its labels sorted."""
    return {_written(sample): sample.value for family in await families(stage) for sample in family.samples}


async def shows(stage: Stage, true: Callable[[Page], Any], *, within: float = 30.0) -> Page:
    """Return the samples once `true` of them: the worker looks at itself once a second."""

    async def there() -> Page | None:
        page = await scraped(stage)
        return page if true(page) else None

    found = await eventually(there, within=within)
    assert found is not None
    return found


def _written(sample: Any) -> str:
    """Write a sample's name and labels as the page does."""
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else str(sample.name)
