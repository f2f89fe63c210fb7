"""Write the schemas of all messages into a folder, or check that it is up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nats_taskflow.wire.schema.documents import documents


def drift(folder: Path) -> list[str]:
    """List the files that differ from what the message types say, are missing, or are of no use any more."""
    described = documents()
    present = {path.name: path.read_bytes() for path in folder.glob("*.json")} if folder.is_dir() else {}
    return sorted(name for name in described.keys() | present.keys() if described.get(name) != present.get(name))


def write(folder: Path) -> list[str]:
    """Bring the folder up to date; returns the files that changed."""
    described = documents()
    changed = drift(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in changed:
        if name in described:
            (folder / name).write_bytes(described[name])
        else:
            (folder / name).unlink()
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate.schemas", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file differs")
    parser.add_argument("folder", type=Path, help="where the schemas are, usually schemas")
    options = parser.parse_args(arguments)
    changed = drift(options.folder) if options.check else write(options.folder)
    for name in changed:
        sys.stdout.write(f"{'differs' if options.check else 'written'}: {options.folder / name}\n")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
