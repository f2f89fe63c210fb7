"""Read and write JSON pointers (RFC 6901)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

Tokens = tuple[str, ...]
_POINTER = re.compile(r"\A(?:/(?:[^~/]|~[01])*)*\Z", re.DOTALL)
_INDEX = re.compile(r"\A(?:0|[1-9][0-9]{0,8})\Z")


def parse(pointer: str) -> Tokens:
    """Return the reference tokens of a pointer.

    Empty text is the whole document. Raises `ValueError` with a sentence.
    """
    if not _POINTER.match(pointer):
        raise ValueError(f"{pointer!r} is no JSON pointer (RFC 6901); write one like /result/id, with ~1 for / and ~0 for ~")
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])


def spell(*tokens: str | int) -> str:
    """Return the pointer that names these tokens."""
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


def look(document: Any, tokens: Tokens) -> Any:
    """Return the value at a pointer's tokens, or `msgspec.UNSET` where there is none."""
    for token in tokens:
        if isinstance(document, dict):
            document = document.get(token, msgspec.UNSET)
        elif isinstance(document, list) and _INDEX.match(token) and int(token) < len(document):
            document = document[int(token)]
        else:
            return msgspec.UNSET
    return document
