"""What becomes of a case's table. Cases are run as scripts, and find this file beside them."""

from __future__ import annotations

from pathlib import Path


def show(text: str, out: Path | None) -> None:
    """Prints the table, and keeps it in a file if one is named."""
    print(text)
    if out is not None:
        out.write_text(text)
