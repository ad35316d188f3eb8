"""headrace: an LLM inference engine in which the published efficiency techniques compose.

from headrace import LLM, SamplingParams

Importing this package loads nothing: names are fetched when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.config import EngineConfig as EngineConfig
    from headrace.engine import Engine as Engine
    from headrace.llm import LLM as LLM
    from headrace.params import SamplingParams as SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "Engine", "EngineConfig", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "headrace.llm",
    "Engine": "headrace.engine",
    "EngineConfig": "headrace.config",
    "SamplingParams": "headrace.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
