"""Loading a model for a verb, and saying in one line what was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.commands.output import note
from headrace.config import EngineConfig

if TYPE_CHECKING:
    from headrace.llm import LLM


def start(config: EngineConfig, quiet: bool) -> LLM:
    """The model and the stack that the flags ask for. Raises ConfigError."""
    from headrace.llm import LLM

    llm = LLM.from_config(config)
    note(llm.engine.describe(), quiet)
    return llm
