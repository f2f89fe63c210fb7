"""Extract from requirements.lock what the image needs: `runtime.lock` to run the worker, `build.lock` to build its wheel.

`python deploy/container/locks.py` writes both, from an environment made with the whole lock (`make setup`). `--check` says whether they are
up to date. The image must not contain what only tests and `taskflow dev` need, such as a nats-server.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
LOCK = HERE.parents[1] / "requirements.lock"
ROOTS = {"runtime.lock": ("nats-taskflow[speed,otel]",), "build.lock": ("hatchling",)}


def written(roots: Iterable[str]) -> str:
    """Return the part of the lock that the roots need."""
    blocks = locked()
    needed = closure(roots) & blocks.keys()
    head = "# Taken out of requirements.lock by deploy/container/locks.py: do not edit.\n"
    return head + "".join(blocks[name] for name in sorted(needed))


def locked() -> dict[str, str]:
    """Return the lock's entry of each package, with its hashes and without the comments."""
    text = re.sub(r"^ *#.*\n", "", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {block[1]: block[0] for block in re.finditer(r"^([A-Za-z0-9._-]+)==(?:.*\n)(?:[ ]+.*\n)*", text, re.MULTILINE)}


def closure(roots: Iterable[str]) -> set[str]:
    """Return the names of the roots and of everything they need, on any platform."""
    found: set[tuple[str, str]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        wanted = todo.pop()
        for extra in ("", *wanted.extras):
            if (wanted.name.lower(), extra) not in found:
                found.add((wanted.name.lower(), extra))
                todo += [one for one in requirements_of(wanted.name) if belongs(one, extra)]
    return {re.sub(r"[-_.]+", "-", name) for name, _ in found}


def requirements_of(name: str) -> list[Requirement]:
    """Return what a package needs; nothing for one that is not installed here because its platform is another."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def belongs(requirement: Requirement, extra: str) -> bool:
    """Tell whether a requirement is one of the extra (of none: the empty one). Its other conditions are pip's to look at."""
    named = re.search(r"extra == ['\"]([^'\"]+)['\"]", str(requirement.marker or ""))
    return (named[1] if named else "") == extra


def main() -> int:
    """Write the files, or compare them."""
    stale = []
    for name, roots in ROOTS.items():
        path, text = HERE / name, written(roots)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"{', '.join(stale)}: not what requirements.lock says; run python deploy/container/locks.py", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
