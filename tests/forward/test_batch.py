"""build_batch: what the model is handed, row by row."""

from __future__ import annotations

from collections.abc import Sequence as Items

import pytest
import torch

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.batch import build_batch
from headrace.kv.cache import KVCache
from headrace.params import SamplingParams
from headrace.types import Batch, Request, Scored, Sequence, Span, Status
from tests.whole import models

CPU = torch.device("cpu")


def cache(model: str = "two_windows", page_tokens: int = 4) -> KVCache:
    """Of an engine without requests."""
    return Engine(
        EngineConfig(page_tokens=page_tokens, threads=1), decoder=models.decoder(model), poison=True
    ).kv


def sequence(
    kv: KVCache, id: int, length: int, computed: int = 0, prompt: int | None = None, **asked: int
) -> Sequence:
    """Tokens 100 * id + position, of which the first `computed` are stored, one step each."""
    tokens = [100 * id + i for i in range(length)]
    prompt = length if prompt is None else prompt
    request = Request(id=f"r{id}", prompt=tuple(tokens[:prompt]), params=SamplingParams(**asked))
    kv.tables.admit(id, [], "")
    for p in range(computed):
        kv.tables.reserve(id, p, p + 1)
        kv.tables.advance(id, tokens, p + 1)
    return Sequence(
        id=id,
        request=request,
        index=0,
        seed=0,
        tokens=tokens,
        prompt_len=prompt,
        num_computed=computed,
        status=Status.RUNNING,
    )


def build(kv: KVCache, spans: Items[Span], *sequences: Sequence) -> Batch:
    for span in spans:
        kv.tables.reserve(span.seq, span.start, span.start + len(span))
    return build_batch(tuple(spans), {s.id: s for s in sequences}, kv, CPU)


def test_rows_are_packed_span_after_span() -> None:
    kv = cache()
    one, two, three = sequence(kv, 1, 9, 8), sequence(kv, 2, 12), sequence(kv, 3, 7, 6)
    spans = [Span(1, 8, 9), Span(2, 0, 5), Span(3, 6, 7, (55, 56))]
    batch = build(kv, spans, one, two, three)
    assert batch.spans == tuple(spans) and batch.starts == (0, 1, 6, 9)
    assert batch.ids_T.tolist() == [108, 200, 201, 202, 203, 204, 306, 55, 56]
    assert batch.positions_T.tolist() == [8, 0, 1, 2, 3, 4, 6, 7, 8]
    assert batch.rows_R.tolist() == [0, 6, 7, 8], "the chunk in the middle yields no token"
    assert batch.ids_T.dtype == batch.positions_T.dtype == batch.rows_R.dtype == torch.int64
    assert batch.scored == ()


def test_a_batch_that_yields_no_token_has_no_rows_to_sample() -> None:
    kv = cache()
    batch = build(kv, [Span(1, 0, 5)], sequence(kv, 1, 9))
    assert batch.rows_R.tolist() == [] and batch.rows_R.dtype == torch.int64


@pytest.mark.parametrize("page_tokens", [1, 3, 4, 16])
@pytest.mark.parametrize("model", models.WINDOWS)
def test_slots_and_reads_are_the_block_tables(model: str, page_tokens: int) -> None:
    kv = cache(model, page_tokens)
    lengths = {1: (30, 29), 2: (22, 0), 3: (41, 25)}
    sequences = [sequence(kv, id, length, computed) for id, (length, computed) in lengths.items()]
    spans = [Span(1, 29, 30, (5, 6, 7)), Span(2, 0, 22), Span(3, 25, 33)]
    batch = build(kv, spans, *sequences)
    for group, size in enumerate(kv.tables.sizes.tokens):
        slots = batch.slots[group].tolist()
        assert len(set(slots)) == len(slots) == len(batch.ids_T), "two rows share a slot"
        rows = iter(slots)
        reads = batch.reads[group]
        for span, (where, runs) in zip(spans, reads.by_rows(), strict=True):
            assert where == slice(*batch.starts[spans.index(span) :][:2])
            pages = kv.tables.live_pages(span.seq, group)
            end = span.start + len(span)
            for p in range(span.start, end):
                assert next(rows) == pages[p // size] * size + p % size
            found: dict[int, int] = {}
            for run in runs:
                listed = reads.pages(run, size)
                assert run.start % size == 0 and 0 < run.length <= len(listed) * size
                for p in range(run.start, run.start + run.length):
                    assert p not in found, "a position is read twice"
                    found[p] = int(listed[(p - run.start) // size])
            assert list(found) == sorted(found)
            window = kv.tables.groups[group].window
            first = 0 if window is None else max(0, span.start - window + 1)
            assert set(range(first, end)) <= set(found) <= set(range(first - first % size, end))
            assert all(page == pages[p // size] for p, page in found.items())


@pytest.mark.parametrize(
    ("start", "stop", "scored", "expected"),
    [
        (0, 10, 1, (0, range(1, 10))),
        (0, 4, 1, (0, range(1, 5))),
        (4, 8, 5, (0, range(5, 9))),
        (4, 10, 5, (0, range(5, 10))),
        (0, 8, 5, (4, range(5, 9))),
        (2, 6, 5, (2, range(5, 7))),
        (0, 4, 8, None),
        (9, 10, 10, None),
        (0, 10, 10, None),
    ],
)
def test_prompt_tokens_are_scored_once(
    start: int, stop: int, scored: int, expected: tuple[int, range] | None
) -> None:
    """A row scores the token after it, if that is one of the prompt's and was not scored before a pause."""
    kv = cache()
    other, asked = sequence(kv, 2, 3), sequence(kv, 1, 10, start, prompt_logprobs=3)
    asked.num_scored = scored
    batch = build(kv, [Span(2, 0, 3), Span(1, start, stop)], other, asked)
    if expected is None:
        assert batch.scored == ()
    else:
        row, targets = expected
        assert batch.scored == (Scored(1, 3 + row, tuple(100 + i for i in targets), 3),)


def test_output_tokens_are_not_scored() -> None:
    kv = cache()
    asked = sequence(kv, 1, 10, 0, prompt=6, prompt_logprobs=0)
    batch = build(kv, [Span(1, 0, 10, (5, 5))], asked)
    assert batch.scored == (Scored(1, 0, (101, 102, 103, 104, 105), 0),)
    assert batch.rows_R.tolist() == [9, 10, 11]
