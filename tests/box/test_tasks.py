"""The tasks' verifiers: they accept their own answers, reject changed ones, and draw the same examples for a seed."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.box.tasks import TASKS, Example, chain_prefix, evaluate, examples, make_passkey

SEEDS = st.integers(0, 2**32)
NAMES = st.sampled_from(sorted(TASKS))


def make(name: str, seed: int) -> Example:
    return TASKS[name].make(Random(seed), min(TASKS[name].size, 60))


@given(NAMES, SEEDS)
def test_accepts_its_own_answer(name: str, seed: int) -> None:
    example = make(name, seed)
    check = TASKS[name].check
    assert check(example, example.answer)
    assert check(example, example.answer + example.stop + "anything after it")


@given(NAMES, SEEDS, SEEDS)
def test_rejects_a_changed_digit(name: str, seed: int, other: int) -> None:
    """A changed digit in what is scored: the last number of the answer."""
    example = make(name, seed)
    digits = [i for i, letter in enumerate(example.answer) if letter.isdigit()]
    if name in ("edit_copy", "json") or not digits:
        return
    at = digits[-1]
    new = str((int(example.answer[at]) + 1 + other % 9) % 10)
    assert not TASKS[name].check(example, example.answer[:at] + new + example.answer[at + 1 :])


@given(SEEDS, st.integers(0, 400))
def test_edit_copy_rejects_a_missing_letter(seed: int, place: int) -> None:
    example = make("edit_copy", seed)
    answer = example.answer.strip()
    at = place % len(answer)
    assert not TASKS["edit_copy"].check(example, answer[:at] + answer[at + 1 :])


@given(SEEDS)
def test_edit_copy_changes_one_word(seed: int) -> None:
    example = make("edit_copy", seed)
    text = example.prompt.split("Text: ")[1].split("\n")[0].split()
    changed = [i for i, (a, b) in enumerate(zip(text, example.answer.split(), strict=True)) if a != b]
    assert len(changed) == 1


@given(SEEDS)
def test_json_compares_values_and_types(seed: int) -> None:
    example = make("json", seed)
    check = TASKS["json"].check
    records = json.loads(example.answer)
    assert check(example, json.dumps(records, separators=(",", ":")))
    assert not check(example, json.dumps(records[:-1]))
    assert not check(example, example.answer[:-1])
    records[0]["extra"] = 1
    assert not check(example, json.dumps(records))


@given(NAMES, st.text(max_size=80))
def test_verifiers_take_any_text(name: str, text: str) -> None:
    assert TASKS[name].check(make(name, 5), text) in (True, False)


@given(SEEDS, st.integers(1, 12))
def test_chain_prefixes_of_the_answer_are_right(seed: int, steps: int) -> None:
    example = TASKS["chain"].make(Random(seed), steps)
    for stop in range(len(example.answer) + 1):
        lines, right = chain_prefix(example, example.answer[:stop])
        assert right and lines == example.answer[:stop].count("\n")
    assert chain_prefix(example, example.answer + "\n") == (steps + 1, True)
    assert chain_prefix(example, example.answer + example.stop) == (steps + 1, True)


@given(SEEDS, st.integers(1, 12), st.integers(0, 11))
def test_chain_prefix_finds_the_wrong_line(seed: int, steps: int, wrong: int) -> None:
    example = TASKS["chain"].make(Random(seed), steps)
    lines = example.answer.split("\n")
    wrong %= steps
    lines[wrong] += "1"
    assert chain_prefix(example, "\n".join(lines)) == (wrong, False)


def test_chain_example_by_hand() -> None:
    for example in examples("chain", 20, 3, 5):
        value = int(example.prompt.split("a=")[1].split(";")[0])
        for part in example.prompt.strip().split("a=a*")[1:]:
            k, c = part.rstrip("; ").split("+")
            value = (value * int(k) + int(c)) % 97
        assert example.answer.endswith(f"answer {value}")


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("3*7+5", 26, [3, 7, 5]),
        ("(3+7)*5", 50, [3, 7, 5]),
        ("3-(7-5)", 1, [3, 7, 5]),
        ("4", 4, [4]),
    ],
)
def test_expressions(text: str, value: int, numbers: list[int]) -> None:
    assert evaluate(text) == (value, numbers)


@pytest.mark.parametrize(
    "text", ["", "3+", "(3", "3)", "3**7", "2 2", "__import__('os')", "3/1", "-3", "9999999*1"]
)
def test_no_expressions(text: str) -> None:
    assert evaluate(text) is None


def test_countdown_takes_every_right_expression() -> None:
    example = Example("countdown 2 3 4 -> 24\n", "2*3*4", "\n", {"numbers": (2, 3, 4), "target": 24})
    check = TASKS["countdown"].check
    assert check(example, "4*(3*2)\n")
    assert not check(example, "4*3+4*3")
    assert not check(example, "24")


def test_passkey_in_a_given_text() -> None:
    example = make_passkey(Random(1), 0, "first line\nsecond line\n")
    assert "second line\n" in example.prompt
    assert TASKS["passkey"].check(example, f"it is {example.answer.strip()} I think")


@given(NAMES, st.integers(0, 1000))
def test_examples_are_a_function_of_the_seed(name: str, seed: int) -> None:
    size = min(TASKS[name].size, 30)
    assert examples(name, 3, seed, size) == examples(name, 3, seed, size)
    assert examples(name, 3, seed, size) != examples(name, 3, seed + 1, size)
