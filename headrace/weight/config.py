"""Reading config.json and generation_config.json: closed schemas, old and new spellings, nothing ignored silently.

A family (headrace/models/) subclasses Common with the keys that it alone has. Functions here raise ValueError with one
line that names the key; whoever knows the file puts its path in front and raises ModelError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from headrace.architecture import Activation, Architecture, Attention, Block
from headrace.errors import ModelError, nearest
from headrace.weight.bookkeeping import IGNORED, ONLY

MAX_JSON = 64 << 20
"""Largest JSON file that is read, bytes."""
MAX_CONTEXT = 1 << 24
"""Most positions that a model may claim: rotary tables are made for all of them."""
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}

Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Layers = Annotated[int, Meta(ge=1, le=1024)]
Experts = Annotated[int, Meta(ge=1, le=512)]
Vocab = Annotated[int, Meta(ge=1, le=1 << 24)]
Context = Annotated[int, Meta(ge=1, le=MAX_CONTEXT)]
Eps = Annotated[float, Meta(gt=0, lt=1)]
Theta = Annotated[float, Meta(gt=1, le=1e12)]
Token = Annotated[int, Meta(ge=0)]

S = TypeVar("S", bound=Struct)


class Common(Struct, kw_only=True, frozen=True):
    """Keys that every family has. Defaults are those of the Hugging Face configuration classes."""

    vocab_size: Vocab
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Annotated[int, Meta(ge=2, le=1 << 14)] | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Context
    rms_norm_eps: Eps = 1e-6
    tie_word_embeddings: bool = False
    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None
    rope_theta: Theta | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError if there is none."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelError(
                f"{path} has {path.stat().st_size} bytes, more than the {MAX_JSON} allowed for JSON"
            )
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not a valid JSON object ({error}): download it again") from None


def parse(data: Mapping[str, Any], schema: type[S]) -> S:
    """`data` as a schema. Raises ValueError for unknown keys that might matter, missing keys and wrong types."""
    fields = {field.encode_name for field in msgspec.structs.fields(schema)}
    for key, value in data.items():
        if key in ONLY and key not in fields and value not in ONLY[key][0]:
            raise ValueError(f"{key}={_short(value)} is not supported: {ONLY[key][1]}")
        if key not in fields and key not in ONLY and key not in IGNORED:
            raise ValueError(
                f"unknown key {key!r} (= {_short(value)}), which may change the model; {nearest(key, fields)}"
            )
    try:
        return msgspec.convert({k: v for k, v in data.items() if k in fields}, schema)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("Object missing required field", "missing key")) from None


def head_size(config: Common) -> int:
    """Numbers per head: head_dim, or the width shared out. Raises ValueError if that leaves a rest or an odd size."""
    heads = config.num_attention_heads
    if config.head_dim is None and config.hidden_size % heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is no multiple of num_attention_heads={heads}; set head_dim"
        )
    size = config.head_dim or config.hidden_size // heads
    if size % 2:
        raise ValueError(f"heads of {size} numbers: rotary positions need an even size")
    return size


def attention(config: Common, *, positions: Any, theta: float, **others: Any) -> Attention:
    """One layer's attention; `others` are further fields of Attention. Raises ValueError if heads do not divide."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    if heads % kv_heads:
        raise ValueError(f"num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}")
    size = head_size(config)
    fields = {"scale": size**-0.5, **others}
    return Attention(
        heads=heads, kv_heads=kv_heads, head_size=size, positions=positions, theta=theta, **fields
    )


def activation(name: str) -> Activation:
    """Our name of an activation. Raises ValueError for one that we lack."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def architecture(
    config: Common, family: str, blocks: tuple[Block, ...], context: int, **others: Any
) -> Architecture:
    """The whole model; `others` are further fields of Architecture."""
    return Architecture(
        family=family,
        vocab=config.vocab_size,
        width=config.hidden_size,
        context=context,
        blocks=blocks,
        norm_eps=config.rms_norm_eps,
        tied_head=config.tie_word_embeddings,
        eos=tokens(config.eos_token_id),
        bos=config.bos_token_id,
        **others,
    )


def tokens(ids: int | list[int] | None) -> tuple[int, ...]:
    """eos_token_id as a tuple, whichever way it is written."""
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def windows(
    layer_types: list[str] | None, layers: int, window: int | None, slides: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """Each layer's window: from layer_types where given, else `window` wherever slides(layer)."""
    if layer_types is None:
        return tuple(window if slides(layer) else None for layer in range(layers))
    if len(layer_types) != layers:
        raise ValueError(f"layer_types has {len(layer_types)} entries for {layers} layers")
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(
                f"layer_types: {kind!r} is not supported; known: full_attention, sliding_attention"
            )
        if kind == "sliding_attention" and window is None:
            raise ValueError("layer_types has sliding_attention, but no sliding_window is in use")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


@dataclass(frozen=True)
class Generation:
    """What generation_config.json says."""

    eos: tuple[int, ...] = ()
    bos: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Defaults under the names of SamplingParams; only those that the file gives."""


class _Generation(Struct):
    eos_token_id: Token | list[Token] | None = None
    bos_token_id: Token | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation(folder: Path) -> Generation:
    """generation_config.json, if there is one. do_sample is not looked at: callers say what they want."""
    path = folder / "generation_config.json"
    if not path.exists():
        return Generation()
    try:
        found = msgspec.convert(read_json(path), _Generation)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: {error}") from None
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sampling = {name: getattr(found, name) for name in names if getattr(found, name) is not None}
    return Generation(tokens(found.eos_token_id), found.bos_token_id, sampling)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
