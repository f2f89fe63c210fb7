"""Tell a secret from the path of its file: people paste the one where the other belongs, and no error may repeat it."""

from __future__ import annotations

import re

_SECRET = re.compile(r"\n|-----BEGIN|\bS[A-Z2-7]{50,}\b|\A\s*eyJ")  # credentials, a key in PEM, an NKey seed, a JWT


def check_path(path: str) -> None:
    """Raise `ValueError`, without repeating it, for what is the secret itself and not where it lies."""
    if _SECRET.search(path):
        raise ValueError("must be the path of a file, not the secret itself; write it into a file and name that")
