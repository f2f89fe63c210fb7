"""How much of the tests a run plays: `TASKFLOW_TESTS` names one of four sizes, the commit a share of what is repeated, git what changed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

from nats_taskflow.version import __version__

ROOT = Path(__file__).parents[1]
BEHIND_PAGES = (
    "examples/",
    "deploy/",
    "worker/nats_taskflow/cli/",
    "worker/nats_taskflow/client/",
    "worker/nats_taskflow/testing/",
    "docs/generate/",
    "tests/e2e/",
    "tests/testing/",
)
"""What pages show and tell of, and what tries them."""
T = TypeVar("T")


class Tests(StrEnum):
    """What a run plays. `REST` is what `ALL` plays and `QUICK` does not, or plays smaller."""

    __test__ = False

    QUICK = "quick"
    REST = "rest"
    ALL = "all"
    NIGHTLY = "nightly"


class Tier(Protocol):
    """Choose a number by the size of the run. `quick` is never `all`, for a test that chooses is played again by `REST`; one that is
    marked `full` has none.
    """

    def __call__(self, *, all: int, nightly: int, quick: int | None = None) -> int: ...  # noqa: A002  the values of TASKFLOW_TESTS


class Rotated(Protocol):
    """Choose one of `share` equal shares of the items in `QUICK`, all of them otherwise."""

    def __call__(self, items: Sequence[T], share: int) -> list[T]: ...


def size_of(environ: Mapping[str, str]) -> Tests:
    """Read the size of a run. Raises `ValueError` naming the sizes where it is none of them."""
    wanted = environ.get("TASKFLOW_TESTS", Tests.QUICK)
    try:
        return Tests(wanted)
    except ValueError:
        raise ValueError(f"TASKFLOW_TESTS is {wanted!r}; it may be {', '.join(Tests)}") from None


SIZE = size_of(os.environ)


def rotated(items: Sequence[T], share: int, commit: str) -> list[T]:
    """Return every `share`th of the items, beginning where the commit says: the shares of all beginnings are all the items, each once."""
    return list(items[int(commit, 16) % share :: share])


def is_part(size: Tests, *, full: bool, sized: bool, page: bool, pages: bool) -> bool:
    """Tell whether a test belongs to a run.

    It is marked `full`, is `sized` differently in `QUICK`, tries a `page`; `pages`: whether those belong to `QUICK` this time.
    """
    left_out = full or (page and not pages)
    match size:
        case Tests.QUICK:
            return not left_out
        case Tests.REST:
            return left_out or sized
        case _:
            return True


def touches_pages(changed: Iterable[str]) -> bool:
    """Tell whether a change of these files can make a page untrue that was true."""
    return any(path.endswith(".md") or path.startswith(BEHIND_PAGES) for path in changed)


def _git(*arguments: str) -> str | None:
    """Ask git about this repository; None where it has no answer, or is not here."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def head() -> str:
    """Return what the shares rotate by, in hexadecimal: TASKFLOW_ROTATION, the commit, or where there is no git the version."""
    return (os.environ.get("TASKFLOW_ROTATION") or _git("rev-parse", "HEAD") or sha256(__version__.encode()).hexdigest())[:12]


def changed() -> list[str] | None:
    """Name the files that differ from the branch `main`, committed or not; None where there is nothing to compare with."""
    base = _git("merge-base", "HEAD", "origin/main") or _git("merge-base", "HEAD", "main")
    if base is None:
        return None
    committed, fresh = _git("diff", "--name-only", base), _git("ls-files", "--others", "--exclude-standard")
    return None if committed is None or fresh is None else [*committed.splitlines(), *fresh.splitlines()]


@cache
def with_pages() -> bool:
    """Tell whether `QUICK` tries the pages: always under `CI`, else where something behind them changed, or nobody can say."""
    if os.environ.get("CI"):
        return True
    files = changed()
    return files is None or touches_pages(files)
