"""The training mixture: batch number n is a pure function of (seed, n, stage), so a run resumes exactly.

A row is filled with documents of one kind, each starting with <|endoftext|>, and topped up with library text. Every
target token carries a loss weight: 1 for text, 0 for prompts (random digits teach nothing), more for short answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from tokenizers import Tokenizer

from headrace.box import tasks
from training.tokens import END_OF_TEXT, VOCABULARY

Document = tuple[list[int], list[float]]  # token ids, and the loss weight of each as a target
LEAST_ROOM = 48  # tokens; a smaller gap at the end of a row is filled with text
CHAT_SHARE = 0.2
SHORT_ANSWER, LONG_ANSWER, STEP, REPEAT, TEXT = 4.0, 3.0, 1.0, 1.0, 1.0  # loss weights
CHANGE = 8.0  # the one word that is not copied
RESULT = 5.0  # times STEP: the numbers that a chain computes


@dataclass(frozen=True)
class Corpus:
    """All training texts as one token stream, <|endoftext|> before each; and the characters, for passkey filler."""

    ids: np.ndarray
    text: str


def build_corpus(tokenizer: Tokenizer, texts: list[str]) -> Corpus:
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids.append(END_OF_TEXT)
        ids.extend(encoding.ids)
    return Corpus(np.asarray(ids, dtype=np.uint16), "\n".join(texts))


class Mixture:
    """Rows of `row` tokens (plus one, as inputs and targets overlap) by the shares of `kinds`."""

    def __init__(
        self, tokenizer: Tokenizer, corpus: Corpus, row: int, shares: dict[str, float], seed: int
    ) -> None:
        self.tokenizer, self.corpus, self.row, self.seed = tokenizer, corpus, row, seed
        self.equals, self.newline = tokenizer.token_to_id("="), tokenizer.token_to_id("Ċ")
        self.kinds, self.shares = list(shares), list(shares.values())
        self.makers: dict[str, Callable[[Random, int], Document]] = {
            "text": self.text,
            "repeat": self.repeat,
            "passkey": self.passkey,
            "small": self.small,
            "key_value": self.sized("key_value", 2, 30, 11, 180, SHORT_ANSWER),
            "edit_copy": self.edit_copy,
            "chain": self.chain,
            "facts": self.facts,
            "json": self.sized("json", 1, 20, 38, 12, LONG_ANSWER),
        }

    def batch(self, number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and weights, both [rows, row + 1]."""
        rng = Random(f"{self.seed}/{self.row}/{number}")
        made = [self.fill(rng) for _ in range(rows)]
        ids, weights = zip(*made, strict=True)
        return np.asarray(ids, dtype=np.int64), np.asarray(weights, dtype=np.float32)

    def fill(self, rng: Random) -> Document:
        maker = self.makers[rng.choices(self.kinds, self.shares)[0]]
        ids: list[int] = []
        weights: list[float] = []
        length = self.row + 1
        while len(ids) < length:
            room = length - len(ids)
            more, scores = (maker if room >= LEAST_ROOM else self.text)(rng, room)
            if len(more) > room:
                more, scores = self.text(rng, room)
            ids += more
            weights += scores
        return ids, weights

    def text(self, rng: Random, room: int) -> Document:
        start = rng.randrange(len(self.corpus.ids) - room)
        ids = [END_OF_TEXT, *self.corpus.ids[start : start + room - 1].tolist()]
        return ids, [0.0] + [TEXT] * (room - 1)

    def repeat(self, rng: Random, room: int) -> Document:
        """A run of tokens, random or from the corpus, two or more times; only the repetitions count."""
        length = rng.randrange(8, max(9, room // 2))
        if rng.random() < 0.7:
            run = [rng.randrange(5, VOCABULARY) for _ in range(length)]
        else:
            run = self.text(rng, length + 1)[0][1:]
        times = min(rng.randrange(2, 5), max(1, (room - 1) // length))
        ids = [END_OF_TEXT] + run * times
        return ids, [0.0] * (length + 2) + [REPEAT] * (len(ids) - length - 2)

    def passkey(self, rng: Random, room: int) -> Document:
        words = int((rng.randrange(LEAST_ROOM, room + 1) - 45) / 1.25)
        if rng.random() < 0.5:
            return self.document(rng, tasks.make_passkey(rng, max(1, words)), SHORT_ANSWER)
        start = rng.randrange(len(self.corpus.text) - 4 * words - 4)
        filler = self.corpus.text[start : start + int(3.2 * words) + 4]
        return self.document(rng, tasks.make_passkey(rng, 0, filler), SHORT_ANSWER)

    def small(self, rng: Random, room: int) -> Document:
        name = rng.choice(("add", "multiply", "sort", "countdown", "countdown"))
        low, high = {"add": (1, 4), "multiply": (1, 3), "sort": (2, 10), "countdown": (3, 3)}[name]
        return self.document(rng, tasks.TASKS[name].make(rng, rng.randint(low, high)), SHORT_ANSWER)

    def sized(
        self, name: str, least: int, fixed: int, each: float, most: int, weight: float
    ) -> Callable[[Random, int], Document]:
        """A maker for a task that takes about `fixed + each * size` tokens; sizes are drawn to fit the room."""

        def make(rng: Random, room: int) -> Document:
            largest = max(least, min(most, int((room - fixed) / each)))
            return self.document(rng, tasks.TASKS[name].make(rng, rng.randint(least, largest)), weight)

        return make

    def edit_copy(self, rng: Random, room: int) -> Document:
        """A text to repeat with one word changed; the new word weighs most."""
        example = tasks.make_edit_copy(rng, rng.randint(6, max(6, min(60, int((room - 30) / 2.8)))))
        ids, weights = self.document(rng, example, LONG_ANSWER)
        new = self.tokenizer.encode(" " + example.facts["new"], add_special_tokens=False).ids
        for at in range(len(ids) - len(new), 0, -1):
            if ids[at : at + len(new)] == new:
                weights[at : at + len(new)] = [CHANGE] * len(new)
                break
        return ids, weights

    def chain(self, rng: Random, room: int) -> Document:
        """A chain of steps; the results weigh more than the copying around them."""
        steps = rng.randint(1, max(1, min(32, (room - 20) // 20)))
        ids, weights = self.document(rng, tasks.make_chain(rng, steps), STEP)
        return ids, [w * RESULT if w and r else w for w, r in zip(weights, self.results(ids), strict=True)]

    def facts(self, rng: Random, room: int) -> Document:
        """Unconnected steps, one per line, where only the results count: the table that chains look up."""
        lines = [tasks.make_chain(rng, 1).facts["lines"][0] for _ in range(min(60, max(1, (room - 8) // 10)))]
        text = f"mod {tasks.CHAIN_MODULUS}\n" + "\n".join(lines) + "\n"
        ids = [END_OF_TEXT, *self.tokenizer.encode(text, add_special_tokens=False).ids]
        return ids, [RESULT * STEP * float(r) for r in self.results(ids)]

    def results(self, ids: list[int]) -> list[bool]:
        """Which tokens stand between an equals sign and the end of its line, that end included."""
        marks, inside = [], False
        for token in ids:
            marks.append(inside)
            inside = token == self.equals or (inside and token != self.newline)
        return marks

    def document(self, rng: Random, example: tasks.Example, weight: float) -> Document:
        """Prompt (weight 0) and answer with its stop; one in five in the chat format."""
        if rng.random() < CHAT_SHARE:
            prompt = f"<|user|>\n{example.prompt.strip()}<|end|>\n<|assistant|>\n"
            answer = example.answer.strip() + "<|end|>\n"
        else:
            prompt, answer = example.prompt, example.answer + example.stop
        asked = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        given = self.tokenizer.encode(answer, add_special_tokens=False).ids
        return [END_OF_TEXT, *asked, *given], [0.0] * (len(asked) + 1) + [weight] * len(given)
