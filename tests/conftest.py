"""What every test may rely on."""

from __future__ import annotations

from pathlib import Path

import headrace


def pytest_configure() -> None:
    """An editable install imports the checkout it was made from: testing another one with it would prove nothing."""
    here, imported = Path(__file__).resolve().parent.parent, Path(headrace.__file__).resolve().parent.parent
    if here != imported:
        raise SystemExit(
            f"the tests lie in {here}, but headrace is imported from {imported}: one environment each"
        )
