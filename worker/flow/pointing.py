"""Say where in a wait condition a refused field is: an RFC 6901 pointer from the request down (CONTRACT 3, `details.path`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import get_args

import msgspec

from worker.errors import FlowError, InvalidRequest
from worker.flow.waits import COMPOSITES, WaitCondition

_WHOLE = "/wait_condition"
_KINDS = ", ".join(str(kind.__struct_config__.tag) for kind in get_args(WaitCondition))
_FIELD = re.compile(r"\AObject (?:contains unknown|missing required) field `(.*)`\Z", re.DOTALL)


def misspelled(bad: msgspec.ValidationError) -> InvalidRequest:
    """Refuse what spells no condition, and point to the place that msgspec names (`… - at `$.conditions[0].at``)."""
    said, _, place = str(bad).rpartition(" - at `$")
    tokens = [token for token in place.removesuffix("`").replace("[", ".").replace("]", "").split(".") if token]
    if named := _FIELD.match(said):
        tokens.append(named[1].replace("~", "~0").replace("/", "~1"))  # what a caller calls a field may be any text
    path = "/".join([_WHOLE, *tokens])
    if tokens[-1:] == ["kind"]:
        return InvalidRequest(f"{path[1:]} must be one of {_KINDS}", path=path)
    return InvalidRequest(f"wait_condition: {bad}", path=path)


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
