"""Synthetic tasks with exact verifiers: what the models in the box were trained on and what `headrace eval` scores.

Each task makes an `Example` from a random generator and a size, and checks a completion exactly. Standard library
only, so that the training recipe, the engine and its tests share one definition. `size` is the difficulty dial and
means what suits the task; its unit is given in `Task.size_unit`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from . import prose


@dataclass(frozen=True)
class Example:
    """A prompt, the expected answer, and the string that ends it (the model writes answer + stop)."""

    prompt: str
    answer: str
    stop: str = "\n"
    facts: dict[str, Any] = field(default_factory=dict)  # what the verifier needs beyond the answer


@dataclass(frozen=True)
class Task:
    """A named generator and its verifier; `size` defaults to what the model card's figures use."""

    name: str
    make: Callable[[Random, int], Example]
    check: Callable[[Example, str], bool]
    size: int
    size_unit: str


def first_line(completion: str, stop: str = "\n") -> str:
    """The completion up to the stop string, without surrounding blanks."""
    return completion.split(stop, 1)[0].strip()


def same_answer(example: Example, completion: str) -> bool:
    """The completion up to the stop is the answer, blanks around it aside."""
    return first_line(completion, example.stop) == example.answer.strip()


# --- retrieval ------------------------------------------------------------------------------------------------

KEY_SENTENCE = "The pass key is {key}. Remember it: {key} is the pass key."
KEY_QUESTION = "\nWhat is the pass key? The pass key is"


def make_passkey(rng: Random, size: int, filler: str | None = None) -> Example:
    """A five-digit key at a random depth of `size` words of filler (or of the given text, cut at a line or blank)."""
    key = f"{rng.randrange(100000):05d}"
    pieces = prose.sentences(rng, size) if filler is None else re.split(r"(?<=\n)", filler)
    joint = " " if filler is None else ""
    at = rng.randrange(len(pieces) + 1)
    sentence = KEY_SENTENCE.format(key=key) + ("" if filler is None else "\n")
    text = joint.join([*pieces[:at], sentence, *pieces[at:]])
    return Example(text + KEY_QUESTION, f" {key}.", "\n")


def check_passkey(example: Example, completion: str) -> bool:
    """The first run of digits is the key (a chat model may wrap it in words)."""
    found = re.search(r"\d+", completion)
    return found is not None and found.group() == example.answer.strip(" .")


def make_key_value(rng: Random, size: int) -> Example:
    """`size` lines `key = value`, then one of the keys again."""
    keys: dict[str, None] = {}
    while len(keys) < size:
        keys["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(3))] = None
    table = {key: f"{rng.randrange(10000):04d}" for key in keys}
    asked = rng.choice(list(table))
    lines = "\n".join(f"{key} = {value}" for key, value in table.items())
    return Example(f"{lines}\nLook up {asked}.\n{asked} =", f" {table[asked]}", "\n")


# --- copying and structure ------------------------------------------------------------------------------------


def make_edit_copy(rng: Random, size: int) -> Example:
    """A text of about `size` words to repeat with one word changed, named by the two words before it."""
    while True:
        words = " ".join(prose.sentences(rng, size)).split(" ")
        pairs = list(zip(words, words[1:], strict=False))
        places = [
            i
            for i in range(2, len(words))
            if words[i] in prose.NOUNS
            and pairs.count(pairs[i - 2]) == 1
            and "." not in words[i - 2] + words[i - 1]
        ]
        if places:
            break
    at = rng.choice(places)
    new = rng.choice([noun for noun in prose.NOUNS if noun not in words])
    edited = [*words[:at], new, *words[at + 1 :]]
    before = " ".join(words[at - 2 : at])
    prompt = (
        f"Copy the text, changing: {before} {words[at]} -> {before} {new}\nText: {' '.join(words)}\nCopy:"
    )
    return Example(prompt, " " + " ".join(edited), "\n", {"new": new})


FIELDS: dict[str, Callable[[Random], Any]] = {
    "name": lambda rng: rng.choice(prose.NAMES),
    "city": lambda rng: rng.choice(prose.PLACES),
    "colour": lambda rng: rng.choice(prose.COLOURS),
    "item": lambda rng: rng.choice(prose.NOUNS),
    "age": lambda rng: rng.randrange(1, 100),
    "price": lambda rng: rng.randrange(1, 1000),
    "count": lambda rng: rng.randrange(0, 100),
    "id": lambda rng: rng.randrange(1000, 10000),
    "active": lambda rng: rng.random() < 0.5,
    "done": lambda rng: rng.random() < 0.5,
}


def plain(value: object) -> str:
    """A value as it stands in a key=value line: truth values in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def make_json(rng: Random, size: int) -> Example:
    """`size` records written key=value, to be written as a JSON list under the schema that the lines imply."""
    fields = rng.sample(sorted(FIELDS), rng.randrange(2, 5))
    records = [{name: FIELDS[name](rng) for name in fields} for _ in range(size)]
    lines = [" ".join(f"{name}={plain(value)}" for name, value in record.items()) for record in records]
    return Example("Records:\n" + "\n".join(lines) + "\nJSON:\n", json.dumps(records), "\n")


def check_json(example: Example, completion: str) -> bool:
    """Parses as JSON and equals the records (spacing is free; true is not 1)."""
    try:
        value = json.loads(first_line(completion, example.stop))
    except (ValueError, RecursionError):
        return False
    return json.dumps(value) == example.answer


# --- step-by-step modular arithmetic --------------------------------------------------------------------------

CHAIN_MODULUS = 97


def make_chain(rng: Random, size: int) -> Example:
    """`size` steps a = a*k + c modulo 97, k in 2..5, c in 0..9; one line per step, then `answer N`."""
    start = value = rng.randrange(CHAIN_MODULUS)
    program, lines = [f"a={start}"], []
    for _ in range(size):
        k, c = rng.randrange(2, 6), rng.randrange(10)
        program.append(f"a=a*{k}+{c}")
        following = (value * k + c) % CHAIN_MODULUS
        lines.append(f"{value}*{k}+{c}={following}")
        value = following
    prompt = f"chain mod {CHAIN_MODULUS}: " + "; ".join(program) + "\n"
    return Example(
        prompt, "\n".join([*lines, f"answer {value}"]), "\n\n", {"lines": tuple(lines), "value": value}
    )


def check_chain(example: Example, completion: str) -> bool:
    """The final value is right. Steps are not marked here: `chain_prefix` does that."""
    found = re.search(r"^answer (\d+)$", completion.split("\n\n", 1)[0], re.MULTILINE)
    return found is not None and int(found.group(1)) == example.facts["value"]


def chain_prefix(example: Example, completion: str) -> tuple[int, bool]:
    """Exact process check of a partial answer: (number of correct complete lines, nothing wrong so far).

    A last line without its newline counts as wrong only if no continuation of it could be right.
    """
    expected = [*example.facts["lines"], f"answer {example.facts['value']}"]
    body, stop, _ = completion.partition(example.stop)
    *whole, partial = (body + "\n" if stop else body).split("\n")
    for index, line in enumerate(whole):
        if index >= len(expected) or line != expected[index]:
            return index, False
    if len(whole) == len(expected):
        return len(whole), partial == ""
    return len(whole), expected[len(whole)].startswith(partial)


# --- arithmetic and order -------------------------------------------------------------------------------------


def make_add(rng: Random, size: int) -> Example:
    """The sum of two numbers of `size` digits."""
    low, high = (10 ** (size - 1) if size > 1 else 0), 10**size
    a, b = rng.randrange(low, high), rng.randrange(low, high)
    return Example(f"{a}+{b}=", str(a + b))


def make_multiply(rng: Random, size: int) -> Example:
    """The product of a number of `size` digits and one of one digit."""
    a, b = rng.randrange(10 ** (size - 1) if size > 1 else 0, 10**size), rng.randrange(2, 10)
    return Example(f"{a}*{b}=", str(a * b))


def make_sort(rng: Random, size: int) -> Example:
    """`size` numbers below 100, to be sorted."""
    numbers = [rng.randrange(100) for _ in range(size)]
    return Example("sort " + " ".join(map(str, numbers)) + "\n", " ".join(map(str, sorted(numbers))))


# --- countdown ------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def make_countdown(rng: Random, size: int) -> Example:
    """Reach the target with each of `size` numbers (1..20) once, with + - * and brackets."""
    numbers = [rng.randrange(1, 21) for _ in range(size)]
    order = rng.sample(numbers, size)
    text, value, atomic = str(order[0]), order[0], True
    for number in order[1:]:
        symbol = rng.choice("+-*")
        if symbol == "*" and not atomic:
            text = f"({text})"
        text, value = f"{text}{symbol}{number}", OPERATIONS[symbol](value, number)
        atomic = symbol == "*"
    prompt = "countdown " + " ".join(map(str, numbers)) + f" -> {value}\n"
    return Example(prompt, text, "\n", {"numbers": tuple(numbers), "target": value})


def check_countdown(example: Example, completion: str) -> bool:
    """Any expression that uses every number exactly once and has the target's value is right."""
    parsed = evaluate(first_line(completion, example.stop))
    if parsed is None:
        return False
    value, used = parsed
    return value == example.facts["target"] and sorted(used) == sorted(example.facts["numbers"])


def evaluate(text: str) -> tuple[int, list[int]] | None:
    """Value and numbers of an expression of integers, + - * and brackets; None if it is not one."""
    tokens = re.findall(r"\d+|[-+*()]", text[:200])
    if "".join(tokens) != text or any(len(token) > 6 for token in tokens):
        return None
    try:
        value, used, rest = _sum(tokens)
    except (IndexError, ValueError, RecursionError):
        return None
    return None if rest else (value, used)


def _sum(tokens: list[str]) -> tuple[int, list[int], list[str]]:
    value, used, rest = _product(tokens)
    while rest and rest[0] in "+-":
        right, more, after = _product(rest[1:])
        value, used, rest = OPERATIONS[rest[0]](value, right), used + more, after
    return value, used, rest


def _product(tokens: list[str]) -> tuple[int, list[int], list[str]]:
    value, used, rest = _atom(tokens)
    while rest and rest[0] == "*":
        right, more, after = _atom(rest[1:])
        value, used, rest = value * right, used + more, after
    return value, used, rest


def _atom(tokens: list[str]) -> tuple[int, list[int], list[str]]:
    if tokens[0] == "(":
        value, used, rest = _sum(tokens[1:])
        if rest[0] != ")":
            raise ValueError("bracket not closed")
        return value, used, rest[1:]
    return int(tokens[0]), [int(tokens[0])], tokens[1:]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("passkey", make_passkey, check_passkey, 830, "words of filler"),
        Task("key_value", make_key_value, same_answer, 40, "pairs"),
        Task("edit_copy", make_edit_copy, same_answer, 45, "words"),
        Task("json", make_json, check_json, 4, "records"),
        Task("chain", make_chain, check_chain, 3, "steps"),
        Task("countdown", make_countdown, check_countdown, 3, "numbers"),
        Task("add", make_add, same_answer, 3, "digits"),
        Task("multiply", make_multiply, same_answer, 2, "digits"),
        Task("sort", make_sort, same_answer, 6, "numbers"),
    )
}


def examples(name: str, count: int, seed: int, size: int | None = None) -> list[Example]:
    """The examples that the seed stands for; figures in the model cards are on these."""
    task = TASKS[name]
    rng = Random(f"{seed}/{name}/{size or task.size}")
    return [task.make(rng, size or task.size) for _ in range(count)]
