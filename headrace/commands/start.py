"""Loading a model for a verb, and saying in one line what was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.commands.output import note
from headrace.config import EngineConfig

if TYPE_CHECKING:
    from headrace.engine import Engine
    from headrace.llm import LLM


def start(config: EngineConfig, quiet: bool) -> LLM:
    """The model and the stack that the flags ask for. Raises ConfigError."""
    from headrace.llm import LLM

    llm = LLM.from_config(config)
    note(describe(llm.engine), quiet)
    return llm


def describe(engine: Engine) -> str:
    """Model, arithmetic and stack in one line."""

    from headrace import kernels

    dtype = str(engine.decoder.dtype).removeprefix("torch.")
    where = (
        f"{kernels.threads()} threads, {kernels.isa()}" if engine.device.type == "cpu" else str(engine.device)
    )
    return f"{engine.config.model}, {dtype}, {where}, context {engine.context}: {engine.stack.describe()}"
