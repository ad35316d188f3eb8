"""Every selector reads less, and what it does not read is not touched; with all pages chosen it is the plain engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.kernels.attention import Queries
from headrace.kv import paged
from headrace.kv.selection import Selecting, Selection
from headrace.kv.selectors import SLOT
from headrace.params import SamplingParams
from headrace.types import Reads, Request
from tests.whole import models
from tests.whole.drive import Ask, Fork, Outputs, collect, nothing_left, scripted

SPECS = {
    "landmarks": "landmarks:share=0.3,least=4,sink=2,recent=4,dense=0",
    "squeezed": "squeezed:share=0.3,least=4,sink=2,recent=4",
    "vslash": "vslash:vertical=4,slash=4,sink=2,recent=3,rows=8,spared=8",
}
"""Of each member that selects, one that does so in a short context."""
ROOMY = {
    "landmarks": "landmarks:least=99",
    "squeezed": "squeezed:share=1,least=0",
    "vslash": "vslash:vertical=80,slash=16,rows=8,spared=8",
}
"""Of each, one that keeps all of it."""
WHOLE = {"vslash": {"policy": "orca"}}
"""What it needs."""

each_selector = pytest.mark.parametrize("name", SPECS)


def test_every_member_is_here() -> None:
    assert set(SPECS) | {"everything"} == set(SLOT.index)


def engine(name: str, model: str = "full", spec: str | None = None, **options: object) -> Engine:
    stack = {**WHOLE.get(name, {"policy": "sarathi:tokens=5,idle=9"}), **options.pop("stack", {})}
    config = EngineConfig(
        stack={**stack, "kv-selector": SPECS.get(name, name) if spec is None else spec},
        threads=1,
        page_tokens=int(options.pop("page_tokens", 2)),
        prefix_cache=bool(options.pop("prefix_cache", name not in WHOLE)),
        **options,
    )
    return Engine(config, decoder=models.decoder(model), poison=True)


def ask(engine: Engine, lengths: tuple[int, ...] = (76,), max_tokens: int = 12) -> Outputs:
    for i, length in enumerate(lengths):
        prompt = tuple((7 * i + 5 * k + k * k) % models.VOCAB for k in range(length))
        params = SamplingParams(temperature=0.7, seed=i, max_tokens=max_tokens, ignore_eos=True)
        engine.add(Request(id=str(i), prompt=prompt, params=params, arrival=float(i)))
    return collect(engine)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Per call of attention: tokens that its rows read, times kv heads; and those that they could see."""
    calls: list[tuple[int, int]] = []
    attend = paged.paged_attention.attend

    def spy(queries: Queries, arena_PX: Tensor, store: paged.PageStore, reads: Reads) -> object:
        runs = reads.runs_W5.tolist()
        rows = [
            (queries.positions_T[first:end] + 1 - start).clamp(0, length)
            for first, end, _, start, length in runs
        ]
        read = int(sum(seen_T.sum() for seen_T in rows)) * store.kv_heads
        calls.append((read, int((queries.positions_T + 1).sum()) * store.kv_heads))
        return attend(queries, arena_PX, store, reads)

    monkeypatch.setattr(paged.paged_attention, "attend", spy)
    return calls


@each_selector
def test_fewer_tokens_are_read(name: str, counted: list[tuple[int, int]]) -> None:
    """What attention is handed, not what it masks. One row of 76 or more tokens and pages of 2: 23 or so pages."""
    made = engine(name)
    ask(made)
    selector = made.stack.one("kv-selector")
    choosing = [call for call in counted if call[0] < call[1]]
    assert choosing, "nothing was chosen"
    if selector.answers:
        for read, seen in choosing:
            pages = -(-seen // 2)
            assert read <= 2 * selector.kept(pages, 2) < seen / 2


def test_everything_costs_nothing() -> None:
    made = engine("everything")
    assert not made.kv._selections and not made.kv.tables.prompts_only
    assert SLOT.make("everything").card.recordable


@each_selector
def test_a_choice_is_never_played_back(name: str) -> None:
    assert not SLOT.make(SPECS[name]).card.recordable


class All:
    """Chooses all pages, on the way that a choice takes."""

    def __init__(self, live: object, kv_heads: int) -> None:
        self._live, self._kv_heads = live, kv_heads
        self.asked = 0

    def index(self, *arguments: object) -> None:
        self._live.index(*arguments)

    def select(self, arena_PX: Tensor, layer: int, queries: Queries, selecting: Selecting) -> Tensor:
        self._live.select(arena_PX, layer, queries, selecting)
        self.asked += 1
        assert selecting.tables_SB is not None
        mask_CB = torch.arange(selecting.tables_SB.shape[1]) < selecting.sets_C6[:, 4, None]
        return mask_CB.expand(self._kv_heads, -1, -1)


@each_selector
@pytest.mark.parametrize("model", ["full", "mixed", "int8_landmarks"])
def test_with_all_pages_chosen_tokens_are_those_of_the_plain_engine(name: str, model: str) -> None:
    """Rows that read all, and rows that choose, in one batch; native kernels give the same bits."""
    native = model in models.NATIVE
    size = 16 if native else 2
    stack = {key: spec for key, spec in models.stack(model).items() if key != "kv-selector"}
    made = engine(name, model, page_tokens=size, stack=stack)
    for index, selection in made.kv._selections.items():
        made.kv._selections[index] = Selection(All(selection._live, 2), selection._pages)
    plain = engine("everything", model, page_tokens=size, stack={**WHOLE.get(name, {}), **stack})
    lengths = (76, 9, 61)
    assert ask(made, lengths) == ask(plain, lengths)
    assert all(selection._live.asked for selection in made.kv._selections.values())


@each_selector
def test_with_a_budget_of_everything_nothing_is_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Selecting, "reads", lambda *_: pytest.fail("a choice was made"))
    made = engine(name, spec=ROOMY[name])
    assert ask(made) == ask(engine("everything"))


@each_selector
def test_tokens_do_not_depend_on_the_schedule(name: str) -> None:
    """Chunks, prefix hits, pauses, swaps, forks and cancels; freed pages hold NaN."""
    shared = tuple((3 * k + k * k) % models.VOCAB for k in range(40))
    asks = [
        Ask(
            Request(
                id=f"r{i}",
                prompt=shared[: 40 - 7 * (i % 3)] + tuple(range(i, i + 9 * i % 20 + 1)),
                params=SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=16, ignore_eos=True),
                arrival=float(i),
            ),
            step=3 * i,
            cancel=16 if i == 3 else None,
        )
        for i in range(4)
    ]
    forks = [Fork("r1", "f", 14, 5)]
    for preempt in ("recompute", "swap"):
        options = {"preempt": preempt, "swap_bytes": 1 << 20}
        size = engine(name, **options).kv.tables.sizes.page_bytes
        made = engine(name, kv_bytes=45 * size, **options)
        run = scripted(made, asks, forks)
        assert made.counters.recomputes + made.counters.swaps > 0, "nobody gave way"
        for one in asks:
            alone = engine(name, stack={"policy": "orca"}, prefix_cache=False)
            alone.add(one.request)
            expected = collect(alone)[one.request.id, 0]
            got = run.outputs.get((one.request.id, 0), [])
            assert got == (expected if (one.request.id, 0) in run.finished else expected[: len(got)])
        nothing_left(made)


@pytest.mark.parametrize("name", ["landmarks", "squeezed"])
def test_what_was_generated_is_not_taken_for_a_prompt(name: str) -> None:
    """Its keys come of a choice; a prompt's do not. The prompt before it is found."""
    prompt = tuple((5 * k + k * k) % models.VOCAB for k in range(60))
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    made = engine(name)
    made.add(Request(id="first", prompt=prompt, params=params))
    answer = collect(made)["first", 0]
    longer = Request(id="next", prompt=(*prompt, *answer, 1, 2), params=params)
    made.add(longer)
    [first] = (seq for seq in made.queues if seq.request.id == "next")
    got = collect(made)["next", 0]
    assert first.num_cached == 60
    alone = engine(name, prefix_cache=False)
    alone.add(longer)
    assert got == collect(alone)["next", 0]


@pytest.mark.parametrize("name", ["landmarks", "squeezed"])
def test_drafts_change_nothing(name: str) -> None:
    """Each drafted row chooses for itself, in a chain or a tree, and what a refused one left in a page's summary goes
    with it."""
    prompt = tuple(range(7)) * 10
    params = SamplingParams(temperature=0, max_tokens=22, ignore_eos=True)
    plain = engine(name)
    plain.add(Request(id="r", prompt=prompt, params=params))
    expected = collect(plain)
    for drafter in ("copyspec:gamma=1,length=5", "recycle"):
        made = engine(name, stack={"drafter": drafter})
        made.add(Request(id="r", prompt=prompt, params=params))
        assert collect(made) == expected, drafter
        assert 0 < made.counters.accepted_tokens < made.counters.drafted_tokens, drafter


def test_pages_grow_by_what_is_known_of_them() -> None:
    plain, boxes = engine("everything", page_tokens=16), engine("landmarks", page_tokens=16)
    added = 16 * (boxes.kv.bytes_per_token() - plain.kv.bytes_per_token())
    assert added == 2 * 2 * 2 * 4 * 2  # layers, kv heads, corners, head size, bytes


def test_heads_with_windows_read_all_of_theirs(counted: list[tuple[int, int]]) -> None:
    """A layer with a window beside one without, in groups of their own or in one."""
    for layout in ("windows", "single"):
        made = engine("landmarks", "mixed", stack={"kv-layout": layout})
        assert len(made.kv._selections) == 1
        ask(made)
        assert ask(made)


REFUSED = [
    ({"kv-selector": "landmarks", "kv-codec": "kivi"}, "whole blocks"),
    ({"kv-selector": "squeezed", "kv-keeper": "streaming"}, "nothing to choose from"),
    ({"kv-selector": "vslash"}, "use --no-prefix-cache"),
    ({"kv-selector": "vslash", "policy": "sarathi", "prefix": "no"}, "--policy orca"),
    ({"kv-selector": "landmarks:share=2"}, "from 0 to 1"),
    ({"kv-selector": "landmarks:recent=0"}, "recent"),
    ({"kv-selector": "squeezed:clusters=0"}, "clusters=0"),
    ({"kv-selector": "vslash:recent=0"}, "recent"),
]


@pytest.mark.parametrize(("stack", "why"), REFUSED)
def test_stacks_that_are_refused(stack: dict[str, str], why: str) -> None:
    stack = dict(stack)
    with pytest.raises(ConfigError, match=why):
        cached = stack.pop("prefix", "") != "no"
        Engine(EngineConfig(stack=stack, threads=1, prefix_cache=cached), decoder=models.decoder("full"))


def test_a_model_of_windows_has_nothing_to_choose_from() -> None:
    for layout in ("windows", "single"):
        with pytest.raises(ConfigError, match="use --kv-selector everything"):
            engine("landmarks", "two_windows", stack={"kv-layout": layout})
