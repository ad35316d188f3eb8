"""Every tier behind the pool gives back the bytes that it was given, whatever else it holds, and takes no more memory
than it says."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ClashError, ConfigError
from headrace.kv.shelf import LiveTier
from headrace.kv.tiers import SLOT
from headrace.params import SamplingParams
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import collect, nothing_left

PAGE = 192
BEHIND = [name for name in SLOT.index if hasattr(SLOT.load(name), "start")]
each_tier = pytest.mark.parametrize("name", BEHIND)


def spec(name: str, folder: Path, size: int = 1 << 20, stage: int = 4096) -> str:
    return {"host": f"host:size={size}", "disk": f"disk:size={size},folder={folder},stage={stage}"}[name]


def start(name: str, folder: Path, slots: int = 8, frames: int = 4) -> LiveTier:
    live: LiveTier = SLOT.make(spec(name, folder, slots * PAGE, frames * PAGE)).start(slots, PAGE)
    return live


def expect_nothing_left_of(child: str, folder: Path) -> None:
    """A process that runs this program, which says when it is ready, is killed."""
    command = [sys.executable, "-c", child, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert list(folder.iterdir()) == []
        process.send_signal(signal.SIGKILL)
    assert list(folder.iterdir()) == []


def page(number: int) -> Tensor:
    return torch.randint(0, 256, (PAGE,), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


@each_tier
@pytest.mark.parametrize("frames", [1, 3, 20])
def test_what_is_put_comes_back(name: str, frames: int, tmp_path: Path) -> None:
    """Against a dictionary, over random calls."""
    draw, live, known = random.Random(frames), start(name, tmp_path, 8, frames), dict[int, int]()
    for number in range(400):
        match draw.randrange(3):
            case 0:
                slot, given = draw.randrange(8), page(number)
                live.put(slot, given)
                given.zero_()
                known[slot] = number
            case 1:
                live.ahead(draw.sample(sorted(known), draw.randint(0, len(known))))
            case _:
                slots = draw.sample(sorted(known), draw.randint(0, len(known)))
                pages = torch.zeros((len(slots), PAGE), dtype=torch.uint8)
                assert live.get(slots, list(pages)) == [True] * len(slots)
                for slot, found_X in zip(slots, pages, strict=True):
                    assert torch.equal(found_X, page(known[slot])), f"slot {slot} changed"
    assert live.takes and live.written >= PAGE
    assert live.read >= PAGE or frames >= 8, "all of it was still on the stage"
    live.close()
    live.close()


@each_tier
def test_memory_is_what_it_says(name: str, tmp_path: Path) -> None:
    made = SLOT.make(spec(name, tmp_path, 1000 * PAGE, 7 * PAGE))
    assert made.num_bytes == 1000 * PAGE
    live = made.start(1000, PAGE)
    held = sum(x.nbytes for x in vars(live).values() if isinstance(x, Tensor))
    assert held <= made.memory_bytes
    for slot in range(1000):
        live.put(slot, page(slot))
    assert sum(x.nbytes for x in vars(live).values() if isinstance(x, Tensor)) == held
    live.close()


@each_tier
def test_sizes_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        SLOT.make(f"{name}:size=much")


PROMPTS = [tuple((11 * i + 7 * k * k) % models.VOCAB for k in range(49)) for i in range(3)]


def engine(name: str, folder: Path, size: int = 1 << 20, **options: object) -> Engine:
    """With a pool that holds one of the prompts."""
    config = EngineConfig(
        stack={"policy": "sarathi:tokens=64,idle=64", "kv-tier": spec(name, folder, size)},
        page_tokens=4,
        threads=1,
        kv_bytes=16 * 1024,
        **options,  # type: ignore[arg-type]
    )
    return Engine(config, decoder=models.decoder("full"), poison=True)


def ask(made: Engine, prompt: tuple[int, ...]) -> list[int]:
    made.add(
        Request(id="a", prompt=prompt, params=SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    )
    return collect(made)["a", 0]


@each_tier
def test_a_prompt_comes_back_that_others_drove_out(name: str, tmp_path: Path) -> None:
    made = engine(name, tmp_path)
    assert len(made.kv.tables.pool) < 2 * 49 // 4
    answers = [ask(made, prompt) for prompt in PROMPTS]
    before = made.stats().counters
    assert before.demoted_pages >= 12 and before.promoted_pages == 0
    assert [ask(made, prompt) for prompt in PROMPTS] == answers
    after = made.stats().counters
    assert after.promoted_pages >= 3 * 9, "of the twelve pages of each"
    assert after.computed_tokens - before.computed_tokens == 3 * (1 + 2), (
        "one token of the prompt, two of answers"
    )
    made.kv.check()
    nothing_left(made)


@each_tier
def test_the_bound_holds_and_the_oldest_give_way(name: str, tmp_path: Path) -> None:
    """Room for one of three prompts beside the one that is in the pool."""
    made = engine(name, tmp_path, size=12 * 1024)
    answers = [ask(made, prompt) for prompt in PROMPTS]
    first = made.stats().counters
    assert ask(made, PROMPTS[1]) == answers[1]
    second = made.stats().counters
    assert second.promoted_pages - first.promoted_pages >= 9, "the second was demoted last"
    assert ask(made, PROMPTS[0]) == answers[0]
    third = made.stats().counters
    assert third.promoted_pages == second.promoted_pages, "the first had to give way"
    assert third.computed_tokens - second.computed_tokens == 49 + 2
    nothing_left(made)


@each_tier
def test_a_paused_sequence_goes_on_from_its_pages(name: str, tmp_path: Path) -> None:
    made = engine(name, tmp_path)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    made.add(Request(id="long", prompt=PROMPTS[0], params=params))
    made.step()
    made.pause("long")
    answer = ask(made, PROMPTS[1])
    before = made.stats().counters
    made.resume("long")
    collect(made)
    after = made.stats().counters
    assert after.promoted_pages - before.promoted_pages >= 9, "of its twelve pages the pool still had three"
    assert after.computed_tokens - before.computed_tokens <= 4 + 7, "less than a page of it is computed again"
    assert ask(made, PROMPTS[1]) == answer
    nothing_left(made)


@each_tier
def test_without_a_prefix_cache_it_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ClashError, match="needs prefix_cache: .* Nearest stack that runs"):
        engine(name, tmp_path, prefix_cache=False)


@each_tier
def test_a_tier_too_small_for_pages_that_belong_together_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="room for 0 pages .* raise its size"):
        engine(name, tmp_path, size=100)
