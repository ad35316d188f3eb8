"""d2o: survivors are those most attended to, what is dropped goes into them, and memory is bounded, on any schedule."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from headrace.architecture import Architecture
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.kv.groups import GroupSpec, Member
from headrace.kv.heads import Probe, write_profile
from headrace.kv.keepers import SLOT
from headrace.kv.keepers.d2o import LEAST, _drop, _Record, budgets
from headrace.params import SamplingParams
from headrace.types import Batch, Request
from tests.models.dense_kv import batch_of
from tests.whole import models
from tests.whole.drive import Ask, Fork, collect, nothing_left
from tests.whole.test_schedules import run_schedule, schedules

SINK, WINDOW, BLOCK, HEAVY, EMA = 4, 8, 4, 5, 0.5


class Head:
    """One kv head of one layer, as the paper says it, with lists: every query is asked one by one."""

    def __init__(self) -> None:
        self.memory: list[tuple[Tensor, Tensor, float]] = []
        """Survivors: key, value, attention drawn."""
        self.drawn: dict[int, float] = {}
        """Attention that positions of the window drew."""
        self.near: float | None = None

    def attend(self, q_EH: Tensor, k_LH: Tensor, v_LH: Tensor, position: int, scale: float) -> Tensor:
        """Of a query group at `position`, who sees sink, survivors and window."""
        keys, values, _ = self.seen(k_LH, v_LH, position)
        return (q_EH @ torch.stack(keys).T * scale).softmax(-1) @ torch.stack(values)

    def seen(self, k_LH: Tensor, v_LH: Tensor, position: int) -> tuple[list[Tensor], list[Tensor], list[int]]:
        first = max(0, position // BLOCK * BLOCK + BLOCK - WINDOW)
        own = [*range(min(SINK, first)), *range(first, position + 1)]
        keys = [k_LH[p] for p in own] + [key for key, _, _ in self.memory]
        return keys, [v_LH[p] for p in own] + [value for _, value, _ in self.memory], own

    def fold(self, q_LEH: Tensor, k_LH: Tensor, v_LH: Tensor, end: int, scale: float) -> None:
        """The block that ends here is whole."""
        first = end + BLOCK - WINDOW
        if first <= SINK:
            return
        for p in range(end - BLOCK, end):
            keys, _, own = self.seen(k_LH, v_LH, p)
            mass = (q_LEH[p] @ torch.stack(keys).T * scale).softmax(-1).mean(0).tolist()
            for position, share in zip(own, mass, strict=False):
                self.drawn[position] = self.drawn.get(position, 0.0) + share
            drawn = zip(self.memory, mass[len(own) :], strict=True)
            self.memory = [(key, value, sum_ + share) for (key, value, sum_), share in drawn]
        left = range(max(SINK, first - BLOCK), first)
        every = self.memory + [(k_LH[p], v_LH[p], self.drawn[p]) for p in left]
        best = sorted(range(len(every)), key=lambda i: -every[i][2])
        self.memory = [every[i] for i in sorted(best[:HEAVY])]
        self.mix([every[i] for i in best[HEAVY:]])

    def mix(self, gone: list[tuple[Tensor, Tensor, float]]) -> None:
        if not gone:
            return
        found = []
        for key, _, _ in gone:
            similar = [float(torch.cosine_similarity(key, other, dim=0)) for other, _, _ in self.memory]
            found.append((max(similar), similar.index(max(similar))))
        mean = sum(best for best, _ in found) / len(found)
        self.near = mean if self.near is None else EMA * self.near + (1 - EMA) * mean
        mixed = []
        for i, (key, value, drawn) in enumerate(self.memory):
            parts = [(math.e, key, value)]
            parts += [
                (math.exp(best), k, v)
                for (best, at), (k, v, _) in zip(found, gone, strict=True)
                if at == i and best >= self.near
            ]
            total = sum(weight for weight, _, _ in parts)
            key, value = (sum(part[0] * part[j] for part in parts) / total for j in (1, 2))
            mixed.append((key, value, drawn))
        self.memory = mixed


class Surviving:
    """Keys and values of one text in one batch, every layer limited by d2o."""

    def __init__(self, architecture: Architecture) -> None:
        self._specs = [block.attention for block in architecture.blocks]

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        spec, out_TNH = self._specs[layer], torch.empty_like(q_TNH)
        each = spec.heads // spec.kv_heads
        for g in range(spec.kv_heads):
            head, own = Head(), slice(g * each, (g + 1) * each)
            for p in range(len(q_TNH)):
                if p and p % BLOCK == 0:
                    head.fold(q_TNH[:, own], k_TGH[:, g], v_TGH[:, g], p, spec.scale)
                out_TNH[p, own] = head.attend(q_TNH[p, own], k_TGH[:, g], v_TGH[:, g], p, spec.scale)
        return out_TNH


def engine(keeper: str, page_tokens: int = 4, **options: object) -> Engine:
    stack = {"kv-keeper": keeper, **options.pop("stack", {})}
    config = EngineConfig(stack=stack, page_tokens=page_tokens, threads=1, **options)
    return Engine(config, decoder=models.decoder("full"), poison=True)


def greedy(made: Engine, prompt: tuple[int, ...], tokens: int) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    made.add(Request(id="r", prompt=prompt, params=params))
    found = collect(made)["r", 0]
    nothing_left(made)
    return found


PROMPT = tuple(i * i % models.VOCAB for i in range(37))
SMALL = f"d2o:heavy={HEAVY},window={WINDOW},sink={SINK},block={BLOCK}"


@pytest.mark.parametrize("page_tokens", [1, 4])
def test_tokens_are_those_of_the_paper_s_steps(page_tokens: int) -> None:
    decoder = models.decoder("full")
    got = greedy(engine(SMALL, page_tokens), PROMPT, 16)
    tokens = list(PROMPT)
    for _ in got:
        with torch.inference_mode():
            hidden = decoder.forward(batch_of(tokens), Surviving(decoder.architecture))
            tokens.append(int(decoder.logits(hidden[-1:]).argmax()))
    assert got == tokens[len(PROMPT) :]
    assert got != greedy(engine("everything"), PROMPT, 16), "nothing was dropped"
    assert got != greedy(engine(f"streaming:sink={SINK},window={WINDOW}"), PROMPT, 16), "nothing survived"


def test_where_all_survive_it_is_exact() -> None:
    roomy = f"d2o:heavy=90,window={WINDOW},sink={SINK},block={BLOCK}"
    assert greedy(engine(roomy), PROMPT, 40) == greedy(engine("everything"), PROMPT, 40)


def test_tokens_do_not_depend_on_the_schedule() -> None:
    happened: Counter[str] = Counter()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(schedules(("d2o", "d2o_kivi", "d2o_kvquant")))
    def check(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
        happened["prefix hits"] += run_schedule(schedule).counters.cached_tokens > 0

    check()
    assert happened["prefix hits"] >= 2


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedules(("d2o", "d2o_kivi", "d2o_kvquant")))
def test_at_length(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
    run_schedule(schedule)


def test_drafts_that_are_refused_leave_no_trace() -> None:
    """They may have completed a block, and its record; and their queries were stored."""
    prompt = (3, 4, 5, 6, 7, 8, 9) * 6
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=40, ignore_eos=True)
    found = []
    for stack in ({}, {"drafter": "copyspec:gamma=1", "draft-budget": "fixed:tokens=6"}):
        made = engine(SMALL, 2, stack=stack)
        made.add(Request(id="r", prompt=prompt, params=params))
        found.append(collect(made))
        assert not stack or made.counters.drafted_tokens > made.counters.accepted_tokens + 20
        nothing_left(made)
    assert found[0] == found[1]


def test_memory_is_bounded() -> None:
    """A sink, a window and a block of it, one record or two, the queries of a block: however long the text."""
    made = engine(SMALL, stack={"policy": "sarathi:tokens=4,idle=4"})
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    made.add(Request(id="r", prompt=tuple(i % models.VOCAB for i in range(30)), params=params))
    held = []
    while made.busy:
        made.step()
        held += [made.kv.tables.holding(seq.id, seq.num_computed).live for seq in made.queues]
    assert [group.holds for group in made.kv.tables.groups] == ["all", "summary", "queries"]
    tokens, records, queries = zip(*held, strict=True)
    share = made.kv.tables.sizes.tokens[1]
    assert (
        max(tokens) <= (SINK + WINDOW) // 4 + 1 and max(records) <= 2 * BLOCK // share and max(queries) <= 2
    )
    size = made.kv.tables.sizes.page_bytes
    plain = engine("everything").kv.tables.sizes.page_bytes
    assert sum(held[-1]) * size < 0.75 * -(-90 // 4) * plain
    nothing_left(made)


def test_what_is_near_is_merged_and_what_is_not_is_dropped() -> None:
    keys = torch.tensor([[[1.0, 0], [0, 1], [0.9, 0.1], [-1, -1]]])
    values = torch.tensor([[[1.0], [2], [3], [40]]])
    mass = torch.tensor([[5.0, 4, 1, 2]])
    left = _drop(_Record(keys, values, mass, torch.zeros(1, 3), torch.tensor([torch.nan])), 2, 0.5)
    similar = float(torch.cosine_similarity(keys[0, 0], keys[0, 2], dim=0))
    weight = math.exp(similar) / (math.exp(similar) + math.e)
    assert left.mass_GM.tolist() == [[5, 4]]
    torch.testing.assert_close(left.values_GMH[0, 0], torch.tensor([1 + 2 * weight]))
    assert left.keys_GMH[0, 1].tolist() == [0, 1] and left.values_GMH[0, 1].tolist() == [2]
    mean = (similar - math.sqrt(0.5)) / 2
    torch.testing.assert_close(left.near_G, torch.tensor([mean]))
    again = _drop(_Record(keys, values, mass, torch.zeros(1, 3), torch.tensor([0.4])), 2, 0.5)
    torch.testing.assert_close(again.near_G, torch.tensor([(0.4 + mean) / 2]))


def test_layers_share_the_budget_by_how_evenly_they_attend(tmp_path: Path) -> None:
    shares = budgets([0.0, 0.5, 1.0, 0.5])
    assert sum(shares) == pytest.approx(4) and shares[0] > shares[1] == shares[3] > shares[2] > LEAST
    path = tmp_path / "heads.json"
    write_profile(path, models.decoder("full").architecture, [[0.1, 0.9], [0.8, 0.2]], [0.0, 1.0])
    group = GroupSpec("g", (Member(0, (0,), 4), Member(1, (0,), 4)))
    summary = SLOT.make(f"d2o:heavy=100,profile={path}").limit(group).summary
    assert summary is not None and dict(summary.budgets) == {0: 146, 1: 54}
    assert len(greedy(engine(f"{SMALL},profile={path}"), PROMPT, 8)) == 8
    write_profile(path, models.decoder("full").architecture, [[0.1, 0.9], [0.8, 0.2]])
    with pytest.raises(ConfigError, match="headrace profile"):
        engine(f"{SMALL},profile={path}")


def test_the_profile_knows_how_unevenly_tokens_are_attended_to() -> None:
    """Queries and keys by hand: layer 0 looks at everything alike, layer 1 at the first token."""
    probe = Probe(models.decoder("full").architecture, 4)
    T = 12
    k = torch.zeros(T, 2, 3, dtype=torch.float64)
    k[0] = 50
    for q in (torch.zeros(T, 4, 3, dtype=torch.float64), torch.ones(T, 4, 3, dtype=torch.float64)):
        probe.attend(len(probe.scores), q, k, torch.zeros_like(k), batch_of([1] * T))
    assert probe.spread() == [0.0, 1.0]


def test_layers_with_windows_of_their_own_are_left_alone() -> None:
    group = GroupSpec("g", (Member(0, (0, 1), 16),), 10)
    assert SLOT.make("d2o").limit(group) == group


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("d2o:heavy=0", "heavy"),
        ("d2o:ema=1", "ema"),
        ("d2o:block=48", "power of two"),
        ("d2o:window=100", "multiples"),
        ("d2o:sink=4", "multiples"),
    ],
)
def test_options_that_are_none(spec: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        SLOT.make(spec)
