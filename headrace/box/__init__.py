"""The models in the box: two small Llamas that need no download, and the tasks they were trained on."""

from __future__ import annotations

from pathlib import Path

MODELS = ("tiny", "tiny-draft")


def path(name: str) -> Path:
    """The folder of a model in the box (Hugging Face layout)."""
    if name not in MODELS:
        raise ValueError(f"no model called {name!r} in the box; there are {', '.join(MODELS)}")
    return Path(__file__).parent / name


def held_out_text() -> str:
    """Python source that neither model was trained on (see README.md for its licence)."""
    return (Path(__file__).parent / "heldout.txt").read_text(encoding="utf-8")


def probe_text() -> str:
    """Some of it: enough to tell two tokenizers apart."""
    return held_out_text()[:2000]
