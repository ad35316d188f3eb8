"""KVCache: attention over pages equals attention over one dense tensor per sequence, whatever the layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from headrace.architecture import Architecture, Attention, Block, Mlp
from headrace.errors import ConfigError
from headrace.forward.batch import build_batch
from headrace.kv.cache import KVCache
from headrace.kv.codecs import SLOT as CODECS
from headrace.kv.groups import GroupSpec, Member
from headrace.kv.keepers import SLOT as KEEPERS
from headrace.kv.layouts import SLOT as LAYOUTS
from headrace.layer.positions import SLOT as POSITIONS
from headrace.params import SamplingParams
from headrace.types import Request, Sequence, Span, StepPlan
from tests.kv.contract import members
from tests.models.dense_kv import DenseKV, batch_of

CPU = torch.device("cpu")
CONTEXT = 80


def architecture(*windows: int | None, kv_heads: int = 2, each: int = 2) -> Architecture:
    def attention(window: int | None) -> Attention:
        return Attention(
            heads=kv_heads * each,
            kv_heads=kv_heads,
            head_size=4,
            scale=0.7,
            positions=POSITIONS.make("rope"),
            theta=10_000.0,
            window=window,
        )

    blocks = tuple(Block(attention=attention(window), mlp=Mlp(width=8)) for window in windows)
    return Architecture(family="llama", vocab=50, width=8, context=CONTEXT, blocks=blocks, norm_eps=1e-5)


@dataclass(frozen=True)
class SplitHeads:
    """A layout double for models with two kv heads: each layer's heads lie in different groups."""

    complete: bool = True

    def groups(self, architecture: Architecture) -> tuple[GroupSpec, ...]:
        layers = range(len(architecture.blocks))
        first = GroupSpec("first heads", tuple(Member(layer, (0,), 4) for layer in layers))
        even = GroupSpec("second heads, even layers", tuple(Member(layer, (1,), 4) for layer in layers[::2]))
        odd = GroupSpec("second heads, odd layers", tuple(Member(layer, (1,), 4) for layer in layers[1::2]))
        return (first, even, odd) if self.complete else (first, even)


@dataclass(frozen=True)
class Holes:
    """A keeper double: the first few and the last few positions, as attention sinks do."""

    first: int = 3
    last: int = 9

    def limit(self, group: GroupSpec) -> GroupSpec:
        return replace(group, window=self.last, sink=self.first)


def cache(
    model: Architecture, layout: object, page_tokens: int = 4, keeper: object = None, **options: object
) -> KVCache:
    return KVCache(
        model,
        layout=layout,
        codec=CODECS.make("plain"),
        keeper=keeper or KEEPERS.make("everything"),
        dtype=torch.float64,
        device=CPU,
        page_tokens=page_tokens,
        num_bytes=int(options.pop("num_bytes", 1 << 18)),
        poison=True,
        **options,
    )


class Twins:
    """The same random queries, keys and values given to a KVCache and, sequence by sequence, to DenseKV."""

    def __init__(self, model: Architecture, kv: KVCache) -> None:
        self.model, self.kv = model, kv
        self.sequences: dict[int, Sequence] = {}
        self.dense: dict[int, DenseKV] = {}
        self.generator = torch.Generator().manual_seed(0)

    def start(self, id: int) -> None:
        request = Request(id=str(id), prompt=tuple([id] * CONTEXT), params=SamplingParams())
        self.sequences[id] = Sequence(
            id=id, request=request, index=0, seed=0, tokens=[id] * CONTEXT, prompt_len=CONTEXT
        )
        self.dense[id] = DenseKV(self.model)
        self.kv.tables.admit(id, [], "")

    def random(self, rows: int, heads: int) -> Tensor:
        return torch.randn(rows, heads, 4, generator=self.generator, dtype=torch.float64)

    def step(self, lengths: dict[int, int], compare: Callable[[int, int, int, Tensor, Tensor], None]) -> None:
        """Every sequence runs as many tokens as said; compare(layer, seq, start, got, expected)."""
        spans = tuple(
            Span(id, self.sequences[id].num_computed, self.sequences[id].num_computed + n)
            for id, n in lengths.items()
        )
        for span in spans:
            self.kv.tables.reserve(span.seq, span.start, span.stop)
        batch = build_batch(spans, self.sequences, self.kv, CPU)
        rows = sum(lengths.values())
        for layer, block in enumerate(self.model.blocks):
            spec = block.attention
            q, k, v = (self.random(rows, heads) for heads in (spec.heads, spec.kv_heads, spec.kv_heads))
            got = self.kv.attend(layer, q, k, v, batch)
            for span, a, b in zip(spans, batch.starts, batch.starts[1:], strict=False):
                dense = self.dense[span.seq]
                expected = dense.attend(layer, q[a:b], k[a:b], v[a:b], batch_of([0] * len(span), span.start))
                compare(layer, span.seq, span.start, got[a:b], expected)
        for span in spans:
            self.sequences[span.seq].num_computed = span.stop
            self.kv.tables.advance(span.seq, self.sequences[span.seq].tokens, span.stop)
        self.kv.tables.check()


def equal(layer: int, seq: int, start: int, got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


SCHEDULE = [
    {1: 13},
    {1: 1, 2: 7},
    {2: 1, 1: 9, 3: 30},
    {3: 1, 1: 1, 2: 1},
    {2: 20, 3: 5, 1: 2},
    *[{1: 1, 2: 1, 3: 1}] * 12,
]


def run(model: Architecture, kv: KVCache, schedule: list[dict[int, int]]) -> Twins:
    twins = Twins(model, kv)
    for lengths in schedule:
        for id in lengths:
            if id not in twins.sequences:
                twins.start(id)
        twins.step(lengths, equal)
    return twins


@pytest.mark.parametrize(
    ("windows", "page_tokens"),
    [((None, None), 1), ((6, None, 6), 5), ((3, 11), 1), ((200, None), 5)],
    ids=str,
)
@pytest.mark.parametrize("layout", members(LAYOUTS))
def test_pages_equal_one_dense_tensor(layout: str, windows: tuple[int | None, ...], page_tokens: int) -> None:
    model = architecture(*windows)
    run(model, cache(model, LAYOUTS.make(layout), page_tokens), SCHEDULE)


@pytest.mark.parametrize("each", [1, 3])
def test_heads_of_one_layer_may_lie_in_several_groups(each: int) -> None:
    model = architecture(None, 8, None, kv_heads=2, each=each)
    run(model, cache(model, SplitHeads()), SCHEDULE)


def test_a_layout_that_leaves_out_a_head_is_refused() -> None:
    model = architecture(None, None, None)
    with pytest.raises(AssertionError, match="leaves out heads of layer 1"):
        cache(model, SplitHeads(complete=False))


@pytest.mark.parametrize("page_tokens", [1, 4])
def test_what_a_keeper_drops_is_not_read(page_tokens: int) -> None:
    """Expected is dense attention over the first three and the last nine positions, however the rows were cut."""
    model = architecture(None)
    kv = cache(model, LAYOUTS.make("single"), page_tokens, Holes())
    twins = Twins(model, kv)
    twins.start(1)
    spec = model.blocks[0].attention
    k_all, v_all = torch.zeros(0, 2, 4).double(), torch.zeros(0, 2, 4).double()
    for length in [5, 1, 9, 1, 1, 6, 30, *[1] * 20]:
        computed = twins.sequences[1].num_computed
        kv.tables.reserve(1, computed, computed + length)
        batch = build_batch((Span(1, computed, computed + length),), twins.sequences, kv, CPU)
        q, k, v = twins.random(length, 4), twins.random(length, 2), twins.random(length, 2)
        got = kv.attend(0, q, k, v, batch)
        k_all, v_all = torch.cat((k_all, k)), torch.cat((v_all, v))
        scores = torch.einsum("tnh,lnh->ntl", q, k_all.repeat_interleave(2, 1)) * spec.scale
        own, other = torch.arange(computed, computed + length)[:, None], torch.arange(len(k_all))[None]
        hidden = (other > own) | ((other <= own - 9) & (other >= 3))
        share = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        expected = torch.einsum("ntl,lnh->tnh", share, v_all.repeat_interleave(2, 1))
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
        twins.sequences[1].num_computed += length
        kv.tables.advance(1, twins.sequences[1].tokens, twins.sequences[1].num_computed)
        kv.tables.check()
    live = sum(page >= 0 for page in kv.tables.live_pages(1, 0))
    assert live <= -(-3 // page_tokens) + -(-9 // page_tokens) + 1, "dropped pages were not freed"


def test_a_pool_of_too_few_pages_is_refused() -> None:
    model = architecture(4, None)
    page = 2 * 2 * 4 * 4 * 8
    with pytest.raises(ConfigError, match="needs at least 4"):
        cache(model, LAYOUTS.make("windows"), num_bytes=4 * page - 1)
    assert len(cache(model, LAYOUTS.make("windows"), num_bytes=5 * page - 1).tables.pool) == 4


def test_bytes_per_token_come_from_the_pages() -> None:
    per_layer = 2 * 2 * 4 * 8  # keys and values, kv heads, head size, float64
    for windows in [(None,), (None, None), (4, None), (4, 4, None)]:
        model = architecture(*windows)
        assert cache(model, LAYOUTS.make("windows")).bytes_per_token() == per_layer * len(windows)


def test_reserve_notices_a_plan_that_does_not_know_of_a_hit() -> None:
    model = architecture(None)
    kv = cache(model, LAYOUTS.make("single"), fingerprint="stack")
    twins = Twins(model, kv)
    twins.start(1)
    twins.step({1: 10}, equal)
    other = replace(twins.sequences[1], id=2, num_computed=0)
    with pytest.raises(AssertionError, match="should start where the prefix hit ends, at 8"):
        kv.reserve(StepPlan((Span(2, 0, 5),)), {2: other})
