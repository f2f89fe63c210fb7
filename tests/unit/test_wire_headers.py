"""The names of headers: each is spelled in one place."""

from __future__ import annotations

import ast
from pathlib import Path

from nats_taskflow.flow import request_headers
from nats_taskflow.wire import headers

PACKAGE = Path(headers.__file__).parents[1]
NAMES = {value for name, value in vars(headers).items() if name.isupper() and isinstance(value, str)} - {
    headers.UNREAD,
    headers.TRACEPARENT,
}
"""`traceparent` is also the name of a log field and of a column."""


def texts_of(path: Path) -> set[str]:
    return {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_no_module_but_the_one_of_headers_spells_a_header() -> None:
    homes = {Path(headers.__file__), Path(request_headers.__file__)}
    spelled = {
        str(path.relative_to(PACKAGE)): names for path in PACKAGE.rglob("*.py") if path not in homes and (names := texts_of(path) & NAMES)
    }
    assert spelled == {}


def test_a_header_of_requests_to_delegates_is_spelled_in_the_core_alone() -> None:
    assert not texts_of(Path(headers.__file__)) & texts_of(Path(request_headers.__file__)) & NAMES
