"""The tokenizer: byte-level BPE with 4,096 entries, digits one by one, a newline and its indentation together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from headrace.box.tasks import TASKS

SPECIALS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
END_OF_TEXT, USER, ASSISTANT, SYSTEM, END = range(5)
VOCABULARY = 4096
# A newline takes the indentation after it, so a line of code starts with one token; words may take one blank before.
PIECES = r"\n+[ \t]*| ?[\p{L}_]+|\p{N}| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s"


def empty_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def task_texts(count: int, seed: int = 0) -> Iterable[str]:
    """Prompts and answers of every task, so that their words get tokens of their own."""
    rng = Random(seed)
    for _ in range(count):
        for task in TASKS.values():
            example = task.make(rng, max(2, min(task.size, 60)))
            yield example.prompt + example.answer + example.stop


def train_tokenizer(texts: list[str], path: Path) -> Tokenizer:
    """Train on the corpus and on task texts, and write tokenizer.json; every byte has a token."""
    tokenizer = empty_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(text, normalized=False, special=True) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*texts, *task_texts(300)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A",
        pair=f"{SPECIALS[0]} $A {SPECIALS[0]} $B",
        special_tokens=[(SPECIALS[0], 0)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer
