"""Slots, cards and specs: how one file becomes one technique.

A *slot* is a plural folder. Its `__init__.py` holds the contract (a Protocol) and a lazy index of names; every other
file in it is one technique: a frozen keyword-only dataclass whose fields are its options and whose `card` states facts.
A technique is written the same way everywhere: `name` or `name:option=value,option=value`.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from headrace.errors import ConfigError, nearest

Exact = Literal["bits", "law", "lossy"]
"""bits: the same tokens bit for bit; law: the same distribution; lossy: drift is measured and printed."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about a technique: all that compose.py ever reads of it.

    A *fact* is a short string that holds of a stack: `kv-codec=plain` (every chosen member), a name that a card gives
    (`chunked_prefill`), an engine feature (`prefix_cache`, `swap`) or a property of the model (`model=llama`,
    `sliding_window`, `per_layer_positions`, `moe`).
    """

    slot: str
    exact: Exact
    exact_as: str = ""
    """The member of the slot that `exact` compares with; empty: the plain engine."""
    paper: str
    """Where it was published (a URL), or what it is when nobody published it."""
    needs: tuple[tuple[str, str], ...] = ()
    """(fact, why) that must hold."""
    breaks: tuple[tuple[str, str], ...] = ()
    """(fact, why) that must not hold."""
    gives: tuple[str, ...] = ()
    """Facts that hold because of this technique."""
    artifact: str | None = None
    """The calibrated or trained file that it refuses to run without; None when it needs none."""
    recordable: bool = False
    """All it does in a forward pass is the same native calls on the same memory each time, whatever the numbers in it:
    a recording of them may stand in for it."""


@dataclass(frozen=True)
class Slot:
    """One question that the engine asks, and everybody who answers it."""

    name: str
    """Also the command-line flag and the key in files: `kv-codec`."""
    asks: str
    """The question, in a few words."""
    index: Mapping[str, str]
    """name -> "module:Class", imported at first use."""
    default: str
    """The spec used when nothing is said; empty when the model or the engine decides."""
    many: bool = False
    """Several members at once, in order (processors)."""

    def load(self, name: str) -> type:
        """The class called `name`. Raises ConfigError that suggests the nearest name."""
        if name not in self.index:
            raise ConfigError(f"{self.name}: no technique called {name!r}; {nearest(name, self.index)}")
        module, _, attribute = self.index[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def make(self, spec: str) -> Any:
        """The technique that `spec` describes, e.g. "streaming:sink=4,window=1024"."""
        name, _, options = spec.strip().partition(":")
        return build(self, name, _split(self, spec, options))

    def parse(self, specs: str) -> tuple[Any, ...]:
        """Every technique of "a:x=1+b+c:y=2". One unless the slot takes many."""
        parts = [part for part in specs.split("+") if part.strip()]
        if not parts:
            raise ConfigError(f"{self.name}: empty; {nearest('', self.index)}")
        if len(parts) > 1 and not self.many:
            raise ConfigError(f"{self.name} takes one technique, not {len(parts)} ({specs!r}): choose one")
        return tuple(self.make(part) for part in parts)

    def name_of(self, technique: Any) -> str:
        """The index name of a technique object."""
        path = f"{type(technique).__module__}:{type(technique).__qualname__}"
        for name, target in self.index.items():
            if target == path:
                return name
        raise ConfigError(f"{self.name}: {path} is not in the index")

    def spec_of(self, technique: Any) -> str:
        """The shortest spec that makes this object again: only the options that differ from their defaults."""
        options = [
            f"{f.name}={_text(getattr(technique, f.name))}"
            for f in dataclasses.fields(technique)
            if getattr(technique, f.name) != f.default
        ]
        name = self.name_of(technique)
        return f"{name}:{','.join(options)}" if options else name

    @cached_property
    def module(self) -> str:
        """The package that holds the slot's files, e.g. headrace.kv.codecs."""
        return next(iter(self.index.values())).partition(":")[0].rpartition(".")[0]


SLOT_PACKAGES = (
    "headrace.text.shrinkers",
    "headrace.schedule.policies",
    "headrace.models",
    "headrace.layer.positions",
    "headrace.weight.formats",
    "headrace.weight.tiers",
    "headrace.weight.adapters",
    "headrace.weight.recipes",
    "headrace.kv.layouts",
    "headrace.kv.codecs",
    "headrace.kv.keepers",
    "headrace.kv.selectors",
    "headrace.kv.tiers",
    "headrace.forward.skippers",
    "headrace.speculate.drafters",
    "headrace.speculate.budgets",
    "headrace.speculate.verifiers",
    "headrace.switch.switchers",
    "headrace.sample.processors",
    "headrace.sample.grammars",
    "headrace.search.strategies",
)
"""Every slot of the engine; each package's `SLOT` describes it."""


def slots() -> dict[str, Slot]:
    """Every slot by name."""
    found = [importlib.import_module(package).SLOT for package in SLOT_PACKAGES]
    return {slot.name: slot for slot in found}


def build(slot: Slot, name: str, options: Mapping[str, str]) -> Any:
    """Makes one technique from text options, checked against its fields."""
    cls = slot.load(name)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, text in options.items():
        if key not in fields:
            raise ConfigError(f"{slot.name}={name}: no option called {key!r}; {nearest(key, fields)}")
        values[key] = _value(f"{slot.name}={name}:{key}", hints[key], text)
    missing = [
        k
        for k, f in fields.items()
        if k not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{slot.name}={name} needs {missing[0]!r}: write {name}:{missing[0]}=...")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{slot.name}={name}: {error}") from None


def _split(slot: Slot, spec: str, options: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, options.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ConfigError(f"{slot.name}={spec!r}: {part!r} is not option=value")
        if key.strip() in pairs:
            raise ConfigError(f"{slot.name}={spec!r}: option {key.strip()!r} is given twice")
        pairs[key.strip()] = value.strip()
    return pairs


def _value(where: str, hint: Any, text: str) -> Any:
    """`text` as the annotated type: int, float, bool, str, Literal, or one of these or None."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if text.lower() == "none":
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is Literal:
        if text not in typing.get_args(hint):
            raise ConfigError(f"{where}={text!r}: {nearest(text, typing.get_args(hint))}")
        return text
    if hint is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ConfigError(f"{where}={text!r} must be true or false")
        return text.lower() in ("true", "1", "yes")
    try:
        return hint(text)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}={text!r} must be {_NAMES.get(hint, hint)}") from None


_NAMES = {int: "a whole number", float: "a number", str: "text"}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)
