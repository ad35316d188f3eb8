"""May these techniques run together? Reads cards only, before anything is built, and says what, why and what to do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.config import EngineConfig
from headrace.errors import ClashError, ConfigError, nearest
from headrace.slots import Card, Slot, slots

APART = ("model", "adapter", "recipe", "search")
"""Slots that are no part of a stack: config.json or adapter_config.json names their members, `headrace quantize` runs
them before there is an engine, or a program does that runs above one."""
KV_SLOTS = ("positions", "weights", "skipper", "kv-layout", "kv-codec", "kv-keeper", "kv-selector")
"""Slots whose members change what a page holds, and so the prefix cache's key."""

FORWARD_SLOTS = (*KV_SLOTS, "kv-tier", "weight-tier")
"""Slots whose members act inside a forward pass."""


@dataclass(frozen=True)
class Stack:
    """One choice per slot, checked: what an engine is built from."""

    members: Mapping[str, tuple[Any, ...]]

    def one(self, slot: str) -> Any:
        """The member of a slot that takes one; None if the checkpoint or the engine decides."""
        members = self.members[slot]
        return members[0] if members else None

    def spec(self, slot: str) -> str:
        return "+".join(slots()[slot].spec_of(member) for member in self.members[slot])

    def describe(self) -> str:
        """The whole stack as flags, in one line: what is logged at start-up and printed with every measurement."""
        return " ".join(f"--{name} {self.spec(name)}" for name, members in self.members.items() if members)

    def fingerprint(self, *others: object) -> str:
        """Tells apart everything that may change the bytes of a page: stack, and what else the caller names."""
        parts = [f"{name}={self.spec(name)}" for name in KV_SLOTS] + [repr(other) for other in others]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def exactness(self) -> str:
        """The weakest promise among the members, and among those that members promise to equal: bits, law or lossy."""
        grades = ("bits", "law", "lossy")
        cards = [card for _, card in _cards(self)]
        cards += [slots()[card.slot].load(card.exact_as).card for card in cards if card.exact_as]  # type: ignore[attr-defined]
        return max((card.exact for card in cards), key=grades.index)

    def recordable(self) -> bool:
        """Whether a forward pass is the same native calls each time, as far as techniques have a say in it."""
        return all(member.card.recordable for slot in FORWARD_SLOTS for member in self.members[slot])


def user_slots() -> dict[str, Slot]:
    """The slots a user chooses from."""
    return {name: slot for name, slot in slots().items() if name not in APART}


def compose(config: EngineConfig, model_facts: Iterable[str] = ()) -> Stack:
    """Parses every spec of `config.stack`, fills in defaults and refuses what cannot run. Raises ConfigError."""
    stack = parse(config.stack)
    facts = frozenset(model_facts) | features(config)
    clash = find_clash(stack, facts)
    if clash:
        raise ClashError(f"{clash} {_advice(stack, facts)}")
    return stack


def parse(specs: Mapping[str, str]) -> Stack:
    """Builds the members named by `specs` and the defaults of every other slot."""
    known = user_slots()
    for name in specs:
        if name not in known:
            raise ConfigError(f"no slot called {name!r}; {nearest(name, known)}")
    texts = {name: specs.get(name, slot.default) for name, slot in known.items()}
    return Stack({name: known[name].parse(text) if text else () for name, text in texts.items()})


def features(config: EngineConfig) -> frozenset[str]:
    """Facts that settings, not techniques, make true."""
    cpu = config.device.startswith("cpu")
    return frozenset(
        {
            name
            for name, on in (
                ("prefix_cache", config.prefix_cache),
                ("swap", config.preempt == "swap"),
                ("cpu", cpu),
                ("float32", config.dtype == "float32" or (config.dtype == "auto" and cpu)),
            )
            if on
        }
    )


def find_clash(stack: Stack, facts: frozenset[str]) -> str | None:
    """The first rule of a card that does not hold, as "what, why."; None if all hold."""
    held = facts | _facts_of(stack)
    for slot, card in _cards(stack):
        here = f"--{slot} {stack.spec(slot)}"
        for fact, why in card.breaks:
            if fact in held:
                return f"{here} cannot run with {fact}: {why}."
        for fact, why in card.needs:
            if fact not in held:
                return f"{here} needs {fact}: {why}."
    for slot, members in stack.members.items():
        names = [slots()[slot].name_of(member) for member in members]
        if len(set(names)) < len(names):
            return f"--{slot} {stack.spec(slot)} names a technique twice."
    return None


def _facts_of(stack: Stack) -> frozenset[str]:
    known = user_slots()
    names = {f"{slot}={known[slot].name_of(m)}" for slot, members in stack.members.items() for m in members}
    return frozenset(names) | {fact for _, card in _cards(stack) for fact in card.gives}


def _cards(stack: Stack) -> list[tuple[str, Card]]:
    return [(slot, member.card) for slot, members in stack.members.items() for member in members]


def _advice(stack: Stack, facts: frozenset[str]) -> str:
    """The nearest legal stack: one slot changed, or one feature switched off by the user."""
    for name, slot in user_slots().items():
        for other in [slot.default, *slot.index]:
            if other == stack.spec(name):
                continue
            try:
                changed = Stack({**stack.members, name: slot.parse(other) if other else ()})
            except ConfigError:  # needs options that we cannot guess
                continue
            if find_clash(changed, facts) is None:
                return f"Nearest stack that runs: {f'--{name} {other}' if other else f'no --{name}'}."
    for feature, flag in (("prefix_cache", "--no-prefix-cache"), ("swap", "--preempt recompute")):
        if feature in facts and find_clash(stack, facts - {feature}) is None:
            return f"Nearest stack that runs: {flag}."
    return "No change of one member helps: start from the defaults and add one technique at a time."
