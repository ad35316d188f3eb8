"""What every member of the slot `grammar` promises, on a vocabulary small enough to judge every token."""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Iterator

import pytest

from headrace.errors import ConfigError
from headrace.params import Grammar
from headrace.sample.grammars import SLOT, Compiler, Matcher
from tests.sample.grammars.small import EOS, FORMS, vocabulary

WORDS = vocabulary()
MEMBERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed"),
    )
    for name in SLOT.index
]
WALKS, STEPS = 12, 24


@functools.cache
def compiler(member: str) -> Compiler:
    return SLOT.make(f"{member}:whitespace=1").start(WORDS)


def start(member: str, form: str) -> Matcher:
    return compiler(member).compile(FORMS[form].grammar)


def allowed(matcher: Matcher) -> list[int]:
    bits = int.from_bytes(matcher.mask(), "little")
    return [token for token in range(8 * len(matcher.mask())) if bits >> token & 1]


def expected(form: str, text: bytes) -> list[int]:
    """By looking at every token."""
    fits = [i for i, data in enumerate(WORDS.tokens) if data and FORMS[form].fits(text + data)]
    ends = EOS if FORMS[form].complete(text) else ()
    return sorted({*(i for i in fits if i not in WORDS.special), *ends})


def walks(member: str, form: str) -> Iterator[tuple[Matcher, list[int]]]:
    """Matchers on random ways through the form, with the tokens so far; the last have ended, or STEPS tokens."""
    draw = random.Random(form)
    for _ in range(WALKS):
        matcher, tokens = start(member, form), list[int]()
        yield matcher, tokens
        while len(tokens) < STEPS and not set(EOS) & set(tokens):
            tokens.append(draw.choice(allowed(matcher)))
            matcher.accept(tokens[-1])
            yield matcher, tokens


def text_of(tokens: list[int]) -> bytes:
    return b"".join(WORDS.tokens[token] for token in tokens)


def after(member: str, form: str, tokens: list[int]) -> Matcher:
    """A new one that was told these tokens."""
    matcher = start(member, form)
    for token in tokens:
        matcher.accept(token)
    return matcher


def state(matcher: Matcher) -> tuple[list[int], tuple[int, ...]]:
    return allowed(matcher), matcher.forced()


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("form", FORMS)
def test_exactly_what_can_be_completed_is_allowed(member: str, form: str) -> None:
    free = ends = 0
    for matcher, tokens in walks(member, form):
        if set(EOS) & set(tokens):
            assert allowed(matcher) == sorted(EOS), "nothing else comes after the end"
            assert FORMS[form].complete(text_of(tokens[:-1]))
            ends += 1
        elif not matcher.forced():
            assert allowed(matcher) == expected(form, text_of(tokens)), text_of(tokens)
            free += 1
    assert free > WALKS and ends > 0


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("form", FORMS)
def test_forced_tokens_are_the_only_way(member: str, form: str) -> None:
    seen = 0
    for matcher, tokens in walks(member, form):
        forced = matcher.forced()
        if not forced:
            continue
        seen += len(forced)
        assert allowed(matcher) == [forced[0]]
        for count, token in enumerate(forced):
            text = text_of([*tokens, *forced[:count]])
            assert token in expected(form, text)
            assert len({WORDS.tokens[other][:1] for other in expected(form, text)}) == 1, "there is a choice"
    assert seen or form in ("array", "repeated", "nested"), "nothing was forced"


@pytest.mark.parametrize("member", MEMBERS)
def test_a_text_without_a_choice_is_forced_to_its_end(member: str) -> None:
    matcher = start(member, "forced")
    tokens: list[int] = []
    while not text_of(tokens).endswith("€".encode()):
        forced = matcher.forced()
        assert forced, text_of(tokens)
        for token in forced:
            assert allowed(matcher) == [token], "the usual tokens of a text are those of its rest"
            matcher.accept(token)
            tokens.append(token)
    assert tokens == WORDS.encode("abctrue-€".encode())


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_taken_back_never_was(member: str, form: str) -> None:
    draw = random.Random(1)
    for matcher, tokens in walks(member, form):
        count = draw.randint(0, len(tokens))
        twin = matcher.fork()
        twin.rollback(count)
        kept = tokens[: len(tokens) - count]
        assert state(twin) == state(after(member, form, kept)), (text_of(tokens), count)
        for token in tokens[len(kept) :]:
            twin.accept(token)
        assert state(twin) == state(matcher)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("form", ["regex", "object", "nested"])
def test_a_fork_goes_its_own_way(member: str, form: str) -> None:
    for matcher, tokens in walks(member, form):
        before = state(matcher)
        for token in allowed(matcher):
            twin = matcher.fork()
            twin.accept(token)
            assert state(matcher) == before
            assert state(twin) == state(after(member, form, [*tokens, token]))


@pytest.mark.parametrize("member", MEMBERS)
def test_after_the_end(member: str) -> None:
    """Tokens beyond the end, as a draft may have them, change nothing, and can be taken back."""
    tokens = WORDS.encode(b"ab-")
    for end in EOS:
        matcher = after(member, "regex", tokens)
        before = state(matcher)
        for token in (end, EOS[0], EOS[1]):
            assert token in allowed(matcher)
            matcher.accept(token)
            assert state(matcher) == (sorted(EOS), ())
        assert state(matcher.fork()) == (sorted(EOS), ())
        matcher.rollback(3)
        assert state(matcher) == before
        matcher.accept(end)
        matcher.rollback(2)
        assert state(matcher) == state(after(member, "regex", tokens[:-1]))


@pytest.mark.parametrize("member", MEMBERS)
def test_any_object(member: str) -> None:
    matcher = compiler(member).compile(Grammar("json_object"))
    for token in WORDS.encode(b'{"a":[1,{"b":"\xc3\xa9"}]'):
        assert token in allowed(matcher)
        assert not {0, 1, 2, 3, 4} & set(allowed(matcher)), "neither special nor empty"
        assert max(allowed(matcher)) < WORDS.size - 3, "nor beyond the vocabulary"
        matcher.accept(token)
    assert WORDS.encode(b"}")[0] in allowed(matcher) and EOS[0] not in allowed(matcher)


@pytest.mark.parametrize("member", MEMBERS)
def test_json_without_spaces_is_mostly_forced(member: str) -> None:
    matcher = SLOT.make(f"{member}:whitespace=0").start(WORDS).compile(FORMS["object"].grammar)
    text = b""
    while matcher.forced():
        text += text_of([matcher.forced()[0]])
        matcher.accept(matcher.forced()[0])
    assert text == b'{"ab":'
    for token in WORDS.encode(b"true}"):
        assert token in allowed(matcher)
        matcher.accept(token)
    assert allowed(matcher) == sorted(EOS)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    "kind,text",
    [
        ("regex", "(a"),
        ("regex", "(?=a)b"),
        ("lark", "start: undefined"),
        ("lark", 'start: "a'),
        ("json_schema", '{"type": "nothing"}'),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'),
        ("json_schema", '{"type": "array", "uniqueItems": true}'),
        ("json_schema", '{"not": {"type": "string"}}'),
        ("json_schema", '{"type": "string", "format": "odd"}'),
        ("json_schema", '{"properties": {"a": {"type": "array", "contains": {}}}}'),
        ("json_schema", '{"type": "string", "pattern": "(?=a)b"}'),
        ("json_schema", '{"$ref": "#/$defs/nowhere"}'),
        ("json_schema", '{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}'),
    ],
)
def test_what_is_no_grammar_or_not_enforced(member: str, kind: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        compiler(member).compile(Grammar(kind, text))  # type: ignore[arg-type]
    line = str(error.value)
    assert line.startswith(kind) and "\n" not in line and len(line) < 400


def test_a_member_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is loaded, and not when the first grammar comes."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install headrace\[xgrammar\]"):
        SLOT.make("xgrammar")
