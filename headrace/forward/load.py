"""From a Hugging Face folder, or from nothing but an architecture, to a decoder that runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.architecture import Architecture
from headrace.compose import Stack
from headrace.config import EngineConfig
from headrace.errors import ConfigError, ModelError, nearest
from headrace.forward.decoder import Decoder
from headrace.models import SLOT, Family
from headrace.weight.assemble import make
from headrace.weight.codes import Coded
from headrace.weight.config import parse, read_generation, read_json
from headrace.weight.formats import Format
from headrace.weight.load import Progress, read_weights
from headrace.weight.names import Names
from headrace.weight.quantised import UNFINISHED, Note, take_note
from headrace.weight.synthetic import random_weights
from headrace.weight.tiers import Tier


@dataclass(frozen=True)
class Described:
    """What a folder says of its model, before any weight is read."""

    folder: Path
    family: Family
    architecture: Architecture
    generation: Mapping[str, float]
    """Sampling defaults of generation_config.json, under the names of SamplingParams."""
    note: Note | None = None
    """Of a quantised folder: which codes its matrices are."""


@dataclass(frozen=True)
class Loaded:
    """A model that runs."""

    architecture: Architecture
    decoder: Decoder
    generation: Mapping[str, float]


def describe(path: str | Path) -> Described:
    """Reads config.json and generation_config.json: milliseconds, no weights. Raises ModelError."""
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(f"{folder} {what}: a model is a folder with config.json and safetensors")
    config = folder / "config.json"
    if (folder / UNFINISHED).exists() and not config.exists():
        raise ModelError(
            f"{folder} is an unfinished run of `headrace quantize`: start it again to go on with it"
        )
    if not config.exists():
        raise ModelError(f"{folder} has no config.json: is it a Hugging Face model folder, fully downloaded?")
    data = read_json(config)
    note = take_note(data, config)
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in SLOT.index:
        raise ModelError(f"{config}: model_type {kind!r} is not supported; {nearest(str(kind), SLOT.index)}")
    family: Family = SLOT.load(kind)()
    try:
        architecture = family.architecture(parse(data, family.schema))
    except ValueError as error:
        raise ModelError(f"{config}: {error}") from None
    generation = read_generation(folder)
    ends = tuple(dict.fromkeys((*generation.eos, *architecture.eos)))
    start = generation.bos if generation.bos is not None else architecture.bos
    architecture = dataclasses.replace(architecture, eos=ends, bos=start)
    return Described(folder, family, architecture, generation.sampling, note)


def stored_form(described: Described) -> Format | None:
    """The format whose codes a folder keeps; None if it keeps floats. Raises ModelError."""
    if described.note is None:
        return None
    file = described.folder / "config.json"
    try:
        form = make(described.note.weights)
    except ConfigError as error:
        raise ModelError(f"{file}: quantization_config: {error}") from None
    if not isinstance(form, Coded):
        raise ModelError(
            f"{file}: quantization_config: weights={described.note.weights} has no codes that a folder keeps: quantise "
            "the model again"
        )
    return form


def settle(config: EngineConfig, described: Described) -> EngineConfig:
    """The config with the format of a quantised folder, where it names none. Raises ConfigError if it names another."""
    form = stored_form(described)
    if form is None:
        return config
    note, given = described.note, config.stack.get("weights")
    assert note is not None
    if given is not None and make(given) != form:
        raise ConfigError(
            f"{described.folder} keeps its weights as {note.weights} (recipe {note.recipe}), not as {given}: leave "
            "--weights out, or load the model that it was made from"
        )
    return dataclasses.replace(config, stack={**config.stack, "weights": note.weights})


def names_of(path: Path | None, architecture: Architecture) -> Names:
    """Where the checkpoints of a model keep its tensors: as its folder says, or its family."""
    family: Family = SLOT.load(architecture.family)() if path is None else describe(path).family
    return family.names


def load(
    path: str | Path,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    *,
    architecture: Architecture | None = None,
    form: Format | None = None,
    tier: Tier | None = None,
) -> Loaded:
    """A decoder from a Hugging Face folder. Peak memory is the weights and one chunk of a file. Raises ModelError.

    architecture: run this instead of what describe(path) says; it may differ in positions, context and end tokens.
    form: of the weight matrices; None keeps them as they are. Of a quantised folder it is the folder's own.
    tier: where the blocks' matrices go; None is in memory.
    """
    described = describe(path)
    own = stored_form(described)
    assert own is None or form is None or form == own, "settle() has not been asked"
    architecture = architecture or described.architecture
    weights = read_weights(
        described.folder,
        architecture,
        described.family.names,
        dtype,
        device,
        progress,
        form=own or form,
        stored=own is not None,
        tier=tier,
    )
    return Loaded(architecture, Decoder(architecture, weights), described.generation)


def adapt(architecture: Architecture, stack: Stack, context: int | None) -> Architecture:
    """The checkpoint's architecture with the stack's position scheme and skipper, and the configured context; None
    keeps its own.

    Raises ConfigError for a context that the model was not made for, unless a scheme is there to extend it, and for a
    skipper whose profile is another model's.
    """
    positions, skipper = stack.one("positions"), stack.one("skipper")
    if context is not None and context > architecture.context and positions is None:
        factor = -(-context // architecture.context)
        raise ConfigError(
            f"context={context} is beyond this model's {architecture.context}: lower it, or extend the positions, "
            f"e.g. --positions yarn:factor={factor},original_context={architecture.context}"
        )
    if positions is not None:
        blocks = tuple(
            dataclasses.replace(block, attention=dataclasses.replace(block.attention, positions=positions))
            for block in architecture.blocks
        )
        architecture = dataclasses.replace(architecture, blocks=blocks)
    if skipper is not None:
        architecture = skipper.adapt(architecture)
    return architecture if context is None else dataclasses.replace(architecture, context=context)


def check_decoder(decoder: Decoder, architecture: Architecture, tier: Tier) -> None:
    """Raises ConfigError for one that was made elsewhere, and without the stack's positions, skipper or weight tier."""
    if decoder.tier != tier:
        raise ConfigError(
            f"this decoder's weights were placed by {decoder.tier}, and the stack says {tier}: make it of "
            "headrace.forward.load.random(..., tier=stack.one('weight-tier')), or name the same --weight-tier"
        )
    if decoder.architecture.blocks != architecture.blocks:
        raise ConfigError(
            "this decoder was made without the stack's positions or skipper: make it of "
            "headrace.forward.load.adapt(architecture, stack, None), or use neither"
        )


def random(
    architecture: Architecture,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    *,
    form: Format | None = None,
    tier: Tier | None = None,
) -> Decoder:
    """A decoder with random weights: logits well spread, so that greedy choices do not tie. Raises ModelError."""
    weights = random_weights(architecture, seed, dtype, device, progress, form=form, tier=tier)
    return Decoder(architecture, weights)
