"""What an engine needs of its model: the stack is composed, the folder described, the weights loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headrace import box
from headrace.architecture import Architecture
from headrace.compose import Stack, compose
from headrace.config import EngineConfig
from headrace.forward.decoder import Decoder
from headrace.forward.load import adapt, check_decoder, describe, load, settle
from headrace.forward.memory import keep_freed_memory, set_threads, torch_device, torch_dtype
from headrace.forward.processor import guard_bfloat16
from headrace.weight.load import Progress


class Started(NamedTuple):
    """A model that fits its stack."""

    config: EngineConfig
    """With what the folder settles."""
    path: Path | None
    """The folder; None of a decoder that was made elsewhere."""
    stack: Stack
    architecture: Architecture
    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    defaults: Mapping[str, Any]
    """Of sampling, as the folder says."""


def start(config: EngineConfig, decoder: Decoder | None, progress: Progress | None) -> Started:
    """Raises ConfigError before anything heavy is done. decoder: run this one instead of loading config.model."""
    device, dtype = torch_device(config.device), torch_dtype(config)
    path: Path | None = None
    defaults: Mapping[str, Any] = {}
    if decoder is None:
        path = box.path(config.model) if config.model in box.MODELS else Path(config.model)
        described = describe(path)
        architecture, config = described.architecture, settle(config, described)
    else:
        architecture, dtype, device = decoder.architecture, decoder.dtype, decoder.device
    stack = compose(config, architecture.facts())
    architecture = adapt(architecture, stack, config.context)
    set_threads(config.threads, stack.one("weights"))
    guard_bfloat16(device, dtype)
    if path is not None:
        placed = {"form": stack.one("weights"), "tier": stack.one("weight-tier")}
        loaded = load(path, dtype, device, progress, architecture=architecture, **placed)
        decoder, defaults = loaded.decoder, loaded.generation
    assert decoder is not None
    check_decoder(decoder, architecture, stack.one("weight-tier"))
    keep_freed_memory()  # from here on: what loading needs goes back to the system
    return Started(config, path, stack, architecture, decoder, device, dtype, defaults)
