"""Clients of others that tests drive. CI has all of them; elsewhere a test of one that is missing is skipped."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

REQUIRE = "HEADRACE_REQUIRE_CLIENTS"
"""Set in CI: a client that is missing is an error there."""


def client(name: str) -> Any:
    """The module, or the test that asks for it is skipped."""
    if os.environ.get(REQUIRE):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'headrace[clients]'")
