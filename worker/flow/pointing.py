"""Say where in a wait condition a refused field is: an RFC 6901 pointer from the request down (CONTRACT 3, `details.path`)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from worker.errors import FlowError
from worker.flow.waits import COMPOSITES, WaitCondition

_WHOLE = "/wait_condition"


def relocate(refused: FlowError, below: str) -> FlowError:
    """Say of a refusal of one part, which names the field as if the part were the whole condition, where that part is."""
    path = refused.details.get("path")
    if isinstance(path, str) and path.startswith(_WHOLE):
        refused.details["path"] = f"{_WHOLE}{below}{path.removeprefix(_WHOLE)}"
    return refused


def trail(condition: WaitCondition, number: int) -> str:
    """Return the pointer from the condition to its node of this number: `/conditions/1/conditions/0`."""
    return next(islice(_trails(condition, ""), number, None))


def _trails(part: WaitCondition, at: str) -> Iterator[str]:
    """Give the pointer of each part, in the order in which `nodes` numbers them."""
    yield at
    if isinstance(part, COMPOSITES):
        for index, below in enumerate(part.conditions):
            yield from _trails(below, f"{at}/conditions/{index}")
