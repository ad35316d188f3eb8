"""The cache in the engine: what is computed, what is kept, and what moves; the tokens stay the same."""

from __future__ import annotations

import pytest
import torch

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.kv.pool import FREED
from headrace.params import SamplingParams
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import Outputs, collect, nothing_left

PROMPT = tuple((13 * i + i * i) % models.VOCAB for i in range(50))
ANSWER = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


def engine(model: str = "full", **options: object) -> Engine:
    stack = {"policy": "sarathi:tokens=16,idle=64"}
    config = EngineConfig(**{"stack": stack, "threads": 1, "page_tokens": 4, **options})
    return Engine(config, decoder=models.decoder(model), poison=True)


def ask(
    made: Engine, id: str, prompt: tuple[int, ...], params: SamplingParams = ANSWER, salt: str = ""
) -> list[int]:
    made.add(Request(id=id, prompt=prompt, params=params, salt=salt))
    return collect(made)[id, 0]


@pytest.mark.parametrize("model", models.WINDOWS)
def test_a_shared_prompt_is_computed_once(model: str) -> None:
    made, second = engine(model), (*PROMPT[:40], 1, 2, 3)
    expected = [ask(engine(model, prefix_cache=False), "x", prompt) for prompt in (PROMPT, second)]
    assert ask(made, "a", PROMPT) == expected[0]
    assert made.counters.computed_tokens == 50 + 9 and made.counters.cached_tokens == 0
    assert ask(made, "b", second) == expected[1]
    hit = 40 - 40 % made.kv.tables.sizes.granule
    assert made.counters.cached_tokens == hit > 30
    assert made.counters.computed_tokens == 59 + (43 - hit) + 9
    assert made.counters.prompt_tokens == 50 + 43
    nothing_left(made)


def test_the_same_prompt_again_runs_only_its_end() -> None:
    made = engine()
    first = ask(made, "a", PROMPT[:48])
    before = made.counters.computed_tokens
    assert ask(made, "b", PROMPT[:48]) == first
    assert made.counters.computed_tokens - before == 4 + 9, "the granule with the last token, and the answer"


def test_answers_are_cached_as_well() -> None:
    """A conversation: the next turn starts with the last prompt and its answer."""
    made = engine()
    turn = (*PROMPT[:30], *ask(made, "a", PROMPT[:30]))
    before = made.counters.computed_tokens
    ask(made, "b", (*turn, 5, 5))
    assert made.counters.computed_tokens - before == 42 - 36 + 9, (
        "39 of the 40 tokens were stored, in whole granules"
    )


@pytest.mark.parametrize("salts", [("alice", "bob"), ("", "bob")])
def test_tenants_share_nothing(salts: tuple[str, str]) -> None:
    made = engine()
    assert ask(made, "a", PROMPT, salt=salts[0]) == ask(made, "b", PROMPT, salt=salts[1])
    assert made.counters.cached_tokens == 0
    ask(made, "c", PROMPT, salt=salts[1])
    assert made.counters.cached_tokens == 48


def test_without_a_prefix_cache_nothing_stays() -> None:
    made = engine(prefix_cache=False)
    ask(made, "a", PROMPT)
    assert made.stats().free_pages == made.stats().pages
    ask(made, "b", PROMPT)
    assert made.counters.cached_tokens == 0 and made.counters.computed_tokens == 2 * 59


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("model", ["mixed", "two_windows"])
def test_windowed_groups_hold_a_bounded_number_of_pages(model: str, prefix_cache: bool) -> None:
    """While decoding, whatever the length; and the pages they let go are free, or the prefix cache's to give."""
    made = engine(model, prefix_cache=prefix_cache)
    made.add(
        Request(
            id="a", prompt=PROMPT[:20], params=SamplingParams(temperature=0, max_tokens=75, ignore_eos=True)
        )
    )
    held = []
    while made.busy:
        made.step()
        for seq in made.queues:
            pages = [made.kv.tables.live_pages(seq.id, g) for g in range(len(made.kv.tables.groups))]
            held.append([sum(page != FREED for page in group) for group in pages])
            total = made.kv.tables.available + sum(held[-1])
            assert total == len(made.kv.tables.pool)
    assert len(held) > 70
    for group, spec in enumerate(made.kv.tables.groups):
        counts, size = [row[group] for row in held], made.kv.tables.sizes.tokens[group]
        if spec.window is None:
            assert counts == sorted(counts) and counts[-1] == -(-94 // size)
        else:
            assert max(counts) <= spec.window // size + 2
    nothing_left(made)


def crowded(preempt: str, pages: int = 40) -> tuple[Engine, Outputs]:
    """Four requests in a pool with room for one and a half."""
    made = engine(
        kv_bytes=pages * 2 * 2 * 2 * 4 * 4 * 8,
        preempt=preempt,
        swap_bytes=1 << 20 if preempt == "swap" else 0,
    )
    for i in range(4):
        params = SamplingParams(temperature=1.0, seed=i, max_tokens=40, ignore_eos=True)
        made.add(Request(id=f"r{i}", prompt=PROMPT[i : i + 40], params=params, arrival=float(i)))
    outputs: Outputs = {}
    while made.busy:
        for delta in made.step():
            outputs.setdefault((delta.request, delta.index), []).extend(delta.tokens)
        made.kv.tables.check()
    return made, outputs


def test_paused_sequences_move_or_start_over_and_go_on_with_the_same_tokens() -> None:
    roomy, expected = crowded("recompute", pages=200)
    assert roomy.counters.recomputes == roomy.counters.swaps == 0
    recomputed, tokens = crowded("recompute")
    assert tokens == expected
    assert recomputed.counters.recomputes > 0 and recomputed.counters.swaps == 0
    assert recomputed.counters.computed_tokens > roomy.counters.computed_tokens
    swapped, tokens = crowded("swap")
    assert tokens == expected
    assert swapped.counters.swaps > 0 and swapped.counters.recomputes == 0
    assert swapped.counters.computed_tokens == roomy.counters.computed_tokens, "nothing was computed twice"
    for made in (roomy, recomputed, swapped):
        nothing_left(made)
        assert made.counters.generated_tokens == 160


def test_bytes_really_move() -> None:
    """What comes back from host memory is what was put there: tampering with it there shows."""
    made, other = (engine(preempt="swap", swap_bytes=1 << 20, prefix_cache=False) for _ in range(2))
    answers = []
    for each, tamper in ((made, False), (other, True)):
        each.add(Request(id="a", prompt=PROMPT, params=ANSWER))
        deltas = each.step()
        (seq,) = each.queues
        each.kv.tables.swap_out(seq.id)
        assert each.kv.tables.pool.num_free == len(each.kv.tables.pool)
        assert bool((each.kv.tables.pool.arena_PX == 0xFF).all()), "something was left behind"
        if tamper:
            assert each.kv.tables.host is not None
            each.kv.tables.host.arena_PX.view(torch.float64).mul_(-1)
        each.kv.tables.swap_in(seq.id, "")
        answers.append([t for delta in deltas for t in delta.tokens] + collect(each)["a", 0])
    assert answers[0] == ask(engine(), "a", PROMPT) and answers[1] != answers[0]


def test_closing_ends_everything_and_frees_everything() -> None:
    made = engine()
    for i in range(3):
        made.add(Request(id=f"r{i}", prompt=PROMPT, params=SamplingParams(n=2, seed=i)))
    for _ in range(4):
        made.step()
    made.close()
    assert not made.busy and made.step() == []
    nothing_left(made)
