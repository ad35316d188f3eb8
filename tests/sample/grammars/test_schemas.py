"""Varied schemas on the models in the box: what ends, parses and is valid, by another library's judgement.

Every string, list and table in tests/data/schemas.json has a limit, so that an answer ends before max_tokens: all but
the recursive ones and that of numbers with any count of decimals, which may go on, and then end with "length".
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from headrace.llm import LLM
from headrace.params import Grammar, SamplingParams

SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data" / "schemas.json").read_text("utf-8"))
REFUSED = {"one_of_disjoint", "all_of", "formats"}
"""What xgrammar says it cannot enforce."""
ENDLESS = {"recursion", "linked_list", "number_bounds"}
MAX_TOKENS = 1200
CHECKED = jsonschema.FormatChecker(["uuid", "ipv4"])
"""Formats that are a matter of spelling; a date may still be one that no calendar has."""


def outcomes(member: str, model: str, temperature: float, seeds: int) -> Counter[tuple[str, str]]:
    """(schema, how it ended) -> how often. Asserts that whatever has stopped is valid."""
    llm = LLM(model, grammar=member, threads=1, context=MAX_TOKENS + 100)
    try:
        names = [name for name in SCHEMAS if not (member == "xgrammar" and name in REFUSED)]
        asked = [(name, seed) for name in names for seed in range(seeds)]
        params = [
            SamplingParams(
                temperature=temperature,
                seed=seed,
                max_tokens=MAX_TOKENS,
                grammar=Grammar("json_schema", json.dumps(SCHEMAS[name], ensure_ascii=False)),
            )
            for name, seed in asked
        ]
        prompts = [f"A record of the kind {name}, as JSON:\n" for name, _ in asked]
        outputs = llm.generate(prompts, params)
    finally:
        llm.close()
    found: Counter[tuple[str, str]] = Counter()
    for (name, _), output in zip(asked, outputs, strict=True):
        [sample] = output.samples
        found[name, sample.finish_reason] += 1
        if sample.finish_reason == "stop":
            validator = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=CHECKED)
            validator.validate(json.loads(sample.text))
    return found


def test_every_schema_once() -> None:
    found = outcomes("llguidance:whitespace=2", "tiny-draft", 1.0, 1)
    assert len({name for name, _ in found}) == len(SCHEMAS) >= 30
    assert {name for name, reason in found if reason != "stop"} <= ENDLESS


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("model", ["tiny", "tiny-draft"])
@pytest.mark.parametrize("member", ["llguidance", "xgrammar"])
def test_every_schema_at_length(member: str, model: str, temperature: float) -> None:
    if importlib.util.find_spec(member) is None:
        pytest.skip(f"{member} is not installed")
    found = outcomes(member, model, temperature, 4 if temperature else 1)
    assert {name for name, reason in found if reason != "stop"} <= ENDLESS, found
