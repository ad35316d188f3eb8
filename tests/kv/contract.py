"""Which techniques a contract suite runs: everything in a slot's index that can be made without options."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from headrace.slots import Slot


def members(slot: Slot) -> list[Any]:
    """Every name of the index, for pytest.mark.parametrize; those that need an option are skipped, visibly."""
    return [pytest.param(name, marks=_marks(slot, name)) for name in slot.index]


def _marks(slot: Slot, name: str) -> list[pytest.MarkDecorator]:
    needed = [
        field.name
        for field in dataclasses.fields(slot.load(name))
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return [pytest.mark.skip(reason=f"{name} needs {', '.join(needed)}")] if needed else []
