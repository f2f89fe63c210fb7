"""Tell a secret from the path of its file.

People paste the one where the other belongs, and no error may repeat it.
"""

from __future__ import annotations

import re

_SECRET = re.compile(r"\n|-----BEGIN|\bS[A-Z2-7]{50,}\b|\A\s*eyJ")  # credentials, a key in PEM, an NKey seed, a JWT


def check_path(path: str) -> None:
    """Raise `ValueError` for the secret itself in place of its path.

    The error does not repeat it.
    """
    if _SECRET.search(path):
        raise ValueError("must be the path of a file, not the secret itself; write it into a file and name that")
