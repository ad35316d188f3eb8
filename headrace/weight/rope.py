"""Which position scheme a config.json asks for: rope_theta and rope_scaling (old) or rope_parameters (new)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import nearest
from headrace.weight.config import MAX_CONTEXT, Common

_BASIC = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "truncate": "truncate",
    },
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
}
"""rope_type -> {key: option of the technique}."""
_TECHNIQUE = {"default": "rope"}
_ZERO_IS_UNSET = ("beta_fast", "beta_slow")
MOST = 10**12
"""Largest number in a rope_scaling."""


@dataclass(frozen=True)
class Rope:
    """A member of the slot `positions`, as plain values."""

    name: str
    options: Mapping[str, Any]
    theta: float
    context: int
    """Most positions with this scheme."""


def read_rope(config: Common, default_theta: float = 10000.0) -> Rope:
    """The scheme of a model whose layers share one. Raises ValueError for anything that we would have to ignore."""
    if config.rope_scaling and config.rope_parameters:
        raise ValueError("rope_scaling and rope_parameters are both given: keep one")
    given = config.rope_scaling or config.rope_parameters or {}
    factor = config.partial_rotary_factor
    return make_rope(given, config.rope_theta or default_theta, config.max_position_embeddings, factor)


def make_rope(given: Mapping[str, Any], theta: float, context: int, partial: float | None = None) -> Rope:
    """The scheme that one dict describes; `theta` and `partial` hold where the dict has none."""
    kind = given.get("rope_type", given.get("type", "default"))
    if not isinstance(kind, str) or kind not in _OPTIONS:
        raise ValueError(f"rope_type {kind!r} is not supported; {nearest(str(kind), _OPTIONS)}")
    known = _OPTIONS[kind]
    for key, value in given.items():
        if key not in known and key not in _BASIC:
            raise ValueError(f"rope_type {kind!r} has no key {key!r}; {nearest(key, [*known, *_BASIC])}")
        if key not in ("rope_type", "type", "truncate") and value is not None:
            _check_number(key, value)
    if given.get("partial_rotary_factor", partial) not in (None, 1, 1.0):
        raise ValueError("partial_rotary_factor other than 1 is not supported: heads are rotated whole")
    theta = given.get("rope_theta") or theta
    if theta <= 1:
        raise ValueError(f"rope_theta={theta} is out of range: it must be above 1")
    options = {known[key]: value for key, value in given.items() if key in known and value is not None}
    return _complete(kind, options, theta, context)


def _check_number(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        raise ValueError(f"{key}={value!r} must be a number between 0 and {MOST}")


def _complete(kind: str, options: dict[str, Any], theta: float, context: int) -> Rope:
    """Fills in what a config.json leaves to be inferred, and how far the scheme reaches."""
    if kind == "dynamic":
        options["original_context"] = context
    elif kind in ("yarn", "llama3"):
        options["original_context"] = int(options.get("original_context") or context)
    if kind == "yarn":
        options.setdefault("factor", max(1.0, context / options["original_context"]))
        options = {key: value for key, value in options.items() if key not in _ZERO_IS_UNSET or value}
    if kind != "default" and "factor" not in options:
        raise ValueError(f"rope_type {kind!r} needs a factor")
    if kind in ("dynamic", "yarn"):
        context = max(context, int(options["original_context"] * options["factor"]))
    if context > MAX_CONTEXT:
        raise ValueError(f"rope_scaling reaches {context} positions, more than the {MAX_CONTEXT} allowed")
    return Rope(_TECHNIQUE.get(kind, kind), options, theta, context)
