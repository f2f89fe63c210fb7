"""Write the reference pages into a folder, or check that they are up to date: `python -m docs.generate [--check] docs`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from docs.generate import pages


def drift(folder: Path) -> dict[str, str]:
    """Return the pages that are missing or say something else than the program does, as they should be."""
    return {
        name: text for name, text in pages().items() if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page differs")
    parser.add_argument("folder", type=Path, help="where the pages are, usually docs")
    options = parser.parse_args(arguments)
    pages_to_write = drift(options.folder)
    for name, text in pages_to_write.items():
        if not options.check:
            (options.folder / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{'differs' if options.check else 'written'}: {options.folder / name}\n")
    return 1 if options.check and pages_to_write else 0


if __name__ == "__main__":
    sys.exit(main())
