"""Cases are run by hand and rarely: what they import must not go away unnoticed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parents[2] / "benchmarks" / "cases"


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.glob("*.py")))
def test_a_case_starts(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(CASES), *sys.path])
    for path in CASES.glob(
        "*.py"
    ):  # cases import each other, and pytest knows some folders of tests by such names
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    assert runpy.run_path(str(CASES / case))["__doc__"], "says what it measures, and how to run it"
