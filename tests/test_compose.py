"""compose.py refuses bad stacks before anything is built, with what, why and what to do; specs parse or explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from headrace import compose as composing
from headrace.compose import Stack, compose, find_clash, parse
from headrace.config import EngineConfig
from headrace.errors import ClashError, ConfigError
from headrace.slots import Card, Slot, slots


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A technique with every kind of option."""

    card: ClassVar[Card] = Card(slot="toy", exact="lossy", paper="none: a test")
    count: int = 1
    share: float = 0.5
    on: bool = False
    word: str = "a"
    maybe: int | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Required:
    card: ClassVar[Card] = Card(slot="toy", exact="bits", paper="none: a test")
    factor: float


TOYS = Slot(
    name="toy",
    asks="?",
    index={"toy": f"{__name__}:Toy", "required": f"{__name__}:Required"},
    default="toy",
    many=True,
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("toy", Toy()),
        ("toy:count=3", Toy(count=3)),
        ("toy:share=0.25,on=true", Toy(share=0.25, on=True)),
        ("toy:maybe=4,word=b", Toy(maybe=4, word="b")),
        ("toy:maybe=none", Toy()),
        ("required:factor=2", Required(factor=2.0)),
    ],
)
def test_specs_parse_and_print(spec: str, expected: Any) -> None:
    assert TOYS.make(spec) == expected
    assert TOYS.make(TOYS.spec_of(expected)) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tyo", "did you mean 'toy'"),
        ("toy:cuont=3", "did you mean 'count'"),
        ("toy:count=x", "must be a whole number"),
        ("toy:count=1.5", "must be a whole number"),
        ("toy:share=x", "must be a number"),
        ("toy:on=perhaps", "must be true or false"),
        ("toy:count", "is not option=value"),
        ("toy:count=1,count=2", "given twice"),
        ("toy:count=-1", "count must be 0 or more"),
        ("required", "needs 'factor'"),
        ("", "no technique called"),
    ],
)
def test_bad_specs_name_the_mistake(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TOYS.make(spec)
    assert "\n" not in str(caught.value)


def test_several_members_only_where_allowed() -> None:
    assert len(TOYS.parse("toy+required:factor=1")) == 2
    with pytest.raises(ConfigError, match="takes one technique"):
        slots()["policy"].parse("orca+sarathi")


@pytest.mark.parametrize("slot", slots().values(), ids=lambda slot: slot.name)
def test_every_default_parses_and_prints_itself(slot: Slot) -> None:
    if slot.default:
        members = slot.parse(slot.default)
        assert "+".join(slot.spec_of(member) for member in members) == slot.default


def test_the_default_stack_composes_and_is_exact() -> None:
    stack = compose(EngineConfig(), {"model=llama"})
    assert stack.one("policy") == slots()["policy"].make("sarathi")
    assert stack.exactness() == "bits"
    assert "--policy sarathi" in stack.describe() and "\n" not in stack.describe()


def test_unknown_slot_and_technique() -> None:
    with pytest.raises(ConfigError, match="did you mean 'policy'"):
        compose(EngineConfig(stack={"polcy": "orca"}))
    with pytest.raises(ConfigError, match="did you mean 'sarathi'"):
        compose(EngineConfig(stack={"policy": "sarati"}))


def test_a_clash_says_what_why_and_the_nearest_stack() -> None:
    config = EngineConfig(stack={"positions": "yarn:factor=2,original_context=128"})
    with pytest.raises(ClashError) as caught:
        compose(config, {"model=gemma3_text", "per_layer_positions"})
    line = str(caught.value)
    assert "--positions yarn:factor=2.0,original_context=128 cannot run with per_layer_positions:" in line
    assert line.endswith("Nearest stack that runs: no --positions.")


def test_a_technique_named_twice_is_refused() -> None:
    with pytest.raises(ClashError, match="twice"):
        compose(EngineConfig(stack={"processors": "top_k+temperature+top_k"}))


def with_card(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> Stack:
    """The default stack whose keeper has a card with these facts."""

    @dataclass(frozen=True, kw_only=True)
    class Keeper:
        card: ClassVar[Card] = Card(slot="kv-keeper", exact="lossy", paper="none: a test", **facts)

    stack = parse({})
    monkeypatch.setattr(Slot, "spec_of", lambda self, member: type(member).__name__.lower())
    monkeypatch.setattr(Slot, "name_of", lambda self, member: type(member).__name__.lower())
    return Stack({**stack.members, "kv-keeper": (Keeper(),)})


def test_breaks_and_needs_read_facts_of_members_features_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for fact in ("prefix_cache", "policy=sarathi", "chunked_prefill", "model=llama"):
        stack = with_card(monkeypatch, breaks=((fact, "because"),))
        facts = frozenset({"prefix_cache", "model=llama"})
        assert find_clash(stack, facts) == f"--kv-keeper keeper cannot run with {fact}: because."
        stack = with_card(monkeypatch, needs=((fact, "because"),))
        assert find_clash(stack, facts) is None
    stack = with_card(monkeypatch, needs=(("swap", "because"),))
    assert find_clash(stack, frozenset()) == "--kv-keeper keeper needs swap: because."


def test_advice_switches_off_a_feature_when_no_member_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        composing, "find_clash", lambda stack, facts: "clash" if "prefix_cache" in facts else None
    )
    advice = composing._advice(parse({}), frozenset({"prefix_cache"}))
    assert advice == "Nearest stack that runs: --no-prefix-cache."


def test_the_fingerprint_tells_stacks_and_models_apart() -> None:
    base = parse({})
    assert base.fingerprint("m") == parse({"policy": "orca"}).fingerprint("m"), "policies do not change pages"
    different = {
        base.fingerprint("m"),
        base.fingerprint("n"),
        parse({"kv-layout": "single"}).fingerprint("m"),
    }
    assert len(different) == 3
