"""EngineConfig: everything an engine is told, in one frozen value. Flags, TOML files and Python say the same thing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from headrace.errors import ConfigError, nearest

DTYPES = ("auto", "float32", "bfloat16", "float64")
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_DECIMAL = {"k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What to run and within which limits. Sizes are checked here; techniques are checked by compose.py."""

    model: str = "tiny"
    """A model in the box (`tiny`, `tiny-draft`) or a Hugging Face folder."""
    stack: Mapping[str, str] = field(default_factory=dict)
    """slot -> spec, e.g. {"policy": "sarathi:tokens=32"}; slots not named use their default."""
    device: str = "cpu"
    """`cpu`, or `cuda`."""
    dtype: str = "auto"
    """Of weights and arithmetic. auto: float32 on the CPU, bfloat16 on a GPU."""
    threads: int | None = None
    """CPU threads; None is every core that this process may use."""
    context: int | None = None
    """Longest prompt plus output; None is the model's own limit."""
    page_tokens: int = 16
    """Tokens per page of the cache group with the largest entries; other groups' pages hold a multiple."""
    kv_bytes: int | None = None
    """Size of the KV pool; None is room for 8 full contexts, at most a quarter of the free memory."""
    swap_bytes: int = 0
    """Host memory for paused sequences under preempt="swap"."""
    preempt: Literal["recompute", "swap"] = "recompute"
    """How a sequence gives way when the pool is full."""
    prefix_cache: bool = True
    """Reuse the keys and values of earlier requests that start with the same tokens."""
    max_seqs: int = 64
    """Most sequences that run at once."""
    max_waiting: int = 4096
    """Most sequences that wait; one more is refused."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Name -> folder: what requests may ask for beside the base model."""
    adapter_bytes: int = 1 << 30
    """Memory that loaded adapters may take."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stack", MappingProxyType(dict(self.stack)))
        object.__setattr__(self, "adapters", MappingProxyType(dict(self.adapters)))
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r}: {nearest(self.dtype, DTYPES)}")
        if self.preempt not in ("recompute", "swap"):
            raise ConfigError(f"preempt={self.preempt!r}: known: recompute, swap")
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not low <= value <= high):
                raise ConfigError(f"{name}={value!r} is out of range: it must be between {low} and {high}")
        if self.preempt == "swap" and self.swap_bytes == 0:
            raise ConfigError(
                "preempt=swap needs room in host memory: set swap_bytes, or use preempt=recompute"
            )

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> EngineConfig:
        """Reads a TOML file whose keys are these fields, and a [stack] table. `overrides` win, slot by slot."""
        try:
            data = msgspec.toml.decode(Path(path).read_bytes(), type=dict[str, Any])
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        stack = {**data.pop("stack", {}), **overrides.pop("stack", {})}
        return cls.from_mapping({**data, **overrides, "stack": stack}, where=str(path))

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], where: str = "configuration") -> EngineConfig:
        """Builds a config from untyped values, naming the first key or type that does not fit."""
        known = {f.name for f in dataclasses.fields(cls)}
        for key in data:
            if key not in known:
                raise ConfigError(f"{where}: no setting called {key!r}; {nearest(key, known)}")
        try:
            msgspec.convert(dict(data), _TYPES)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {error}") from None
        return cls(**data)


def parse_size(where: str, text: str) -> int:
    """Bytes of "512MiB", "2GB", "1.5g" or "4096". One letter means powers of 1024. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise ConfigError(
            f"{where}={text!r} is not a size: write bytes, or a number with a unit, such as 512MiB or 2GB"
        )
    decimal = match[2] and match[4] and not match[3]
    return int(float(match[1]) * (_DECIMAL[match[2]] if decimal else 1 << _UNITS[match[2]]))


_LIMITS: tuple[tuple[str, int, int], ...] = (
    ("threads", 1, 1024),
    ("context", 1, 1 << 24),
    ("page_tokens", 1, 1024),
    ("kv_bytes", 1, 1 << 50),
    ("swap_bytes", 0, 1 << 50),
    ("max_seqs", 1, 4096),
    ("max_waiting", 1, 1_000_000),
    ("adapter_bytes", 1, 1 << 50),
)


class _TYPES(msgspec.Struct, forbid_unknown_fields=True):
    """The shapes that TOML values must have."""

    model: str = "tiny"
    stack: dict[str, str] = {}
    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    context: int | None = None
    page_tokens: int = 16
    kv_bytes: int | None = None
    swap_bytes: int = 0
    preempt: str = "recompute"
    prefix_cache: bool = True
    max_seqs: int = 64
    max_waiting: int = 4096
    adapters: dict[str, str] = {}
    adapter_bytes: int = 1 << 30
