"""No keyword of a schema is passed over in silence: a member enforces it, or refuses the schema."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from headrace.errors import ConfigError
from headrace.params import Grammar
from headrace.sample.grammars import SLOT, Compiler, Matcher
from tests.sample.grammars.small import EOS, vocabulary
from tests.sample.grammars.test_contract import MEMBERS, allowed

SCHEMAS: list[Any] = json.loads((Path(__file__).parents[2] / "data" / "keywords.json").read_text("utf-8"))
"""Small ones, of which each is easily broken at random; several combine keywords that members tend to take apart."""
WORDS = vocabulary(singles=[bytes([byte]) for byte in (*b"\t\n\r", *range(32, 127))])
TEXTS, LONGEST = 60, 60
REFUSES = {"llguidance": 18, "xgrammar": 37}
"""At most so many, so that a member which refuses everything shows."""


def compiler(member: str) -> Compiler:
    return SLOT.make(f"{member}:whitespace=1").start(WORDS)


def written(matcher: Matcher, draw: random.Random) -> bytes | None:
    """A text at random, which ends as soon as it may, or a little later; None if it becomes too long."""
    tokens: list[int] = []
    while len(tokens) < LONGEST:
        choices = allowed(matcher)
        assert choices, "there is no way on"
        if EOS[0] in choices and (draw.random() < 0.5 or set(choices) == set(EOS)):
            return b"".join(WORDS.tokens[token] for token in tokens)
        tokens.append(draw.choice([token for token in choices if token not in EOS]))
        matcher.accept(tokens[-1])
    return None


@pytest.mark.parametrize("member", MEMBERS)
def test_a_keyword_is_enforced_or_refused(member: str) -> None:
    made, refused = compiler(member), 0
    for schema in SCHEMAS:
        try:
            start = made.compile(Grammar("json_schema", json.dumps(schema)))
        except ConfigError:
            refused += 1
            continue
        draw, seen = random.Random(1), 0
        validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
        for _ in range(TEXTS):
            text = written(start.fork(), draw)
            if text is not None:
                problem = next(validator.iter_errors(json.loads(text)), None)
                assert problem is None, f"{schema} let {text!r} through: {problem.message}"
                seen += 1
        assert seen > TEXTS // 3, schema
    assert refused <= REFUSES[member]
