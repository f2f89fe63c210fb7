"""The stage of the end-to-end tests, here too."""

from __future__ import annotations

from tests.e2e.conftest import kate, stage

__all__ = ["kate", "stage"]
