"""draft_model: the same tokens as without, whatever the second model thinks; and only models that speak the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.auxiliary import SecondModel, open_beside
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.params import SamplingParams
from headrace.types import Request
from tests.text.folders import random_model
from tests.whole import models
from tests.whole.drive import Outputs, collect, nothing_left

PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
    "sampled": SamplingParams(temperature=0.7, seed=5, n=2, max_tokens=24, ignore_eos=True, top_p=0.9),
}


def second(model: str) -> SecondModel:
    config = EngineConfig(stack=models.stack(model), page_tokens=models.page_tokens(model)[-1], threads=1)
    return SecondModel(Engine(config, decoder=models.decoder(model)), models.VOCAB)


def run(
    monkeypatch: pytest.MonkeyPatch, drafter: str, params: SamplingParams, **options: object
) -> tuple[Outputs, Engine]:
    monkeypatch.setattr(Engine, "_open", lambda self, name: second(name))
    stack = {"policy": "sarathi:tokens=6"}
    if drafter:
        stack |= {"drafter": drafter, "draft-budget": "fixed:tokens=4"}
    config = EngineConfig(stack=stack, page_tokens=4, threads=1, **options)
    made = Engine(config, decoder=models.decoder("full"), poison=True)
    for i, length in enumerate((19, 3, 11)):
        prompt = tuple((7 * i + 5 * k) % models.VOCAB for k in range(length))
        made.add(Request(id=str(i), prompt=prompt, params=params, arrival=float(i)))
    found = collect(made)
    nothing_left(made)
    return found, made


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("model", ["full", "mixed"])
def test_the_same_tokens(model: str, params: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second model that is the first one is always right when it is greedy; another one hardly ever."""
    plain, one = run(monkeypatch, "", PARAMS[params])
    drafted, other = run(monkeypatch, f"draft_model:model={model}", PARAMS[params])
    assert drafted == plain and other.counters.drafted_tokens > 0
    if params == "greedy" and model == "full":
        assert other.counters.accepted_tokens == other.counters.drafted_tokens
        assert other.counters.steps < 0.5 * one.counters.steps


@pytest.mark.parametrize(("model", "keeps"), [("full", True), ("mixed", False)])
def test_a_text_that_goes_on_is_not_read_again(model: str, keeps: bool) -> None:
    """Where every group keeps all, what a guess got wrong is computed again. Answers are those of a new model."""
    kept, draw = second(model), random.Random(0)
    texts = {name: [draw.randrange(1, models.VOCAB) for _ in range(30)] for name in "ab"}
    for step in range(12):
        for text in texts.values():
            before = kept._engine.counters.computed_tokens
            found = kept.greedy(text, 4)
            ran = kept._engine.counters.computed_tokens - before
            assert found == second(model).greedy(text, 4)
            assert ran <= 3 + 4 or step == 0 or not keeps, (
                "up to three new tokens, the last guess, and three guesses"
            )
            text += [*found[: step % 5], *draw.choices(range(1, models.VOCAB), k=1 + step % 3)]
            kept._engine.kv.check()
    kept._engine.close()
    kept._engine.kv.check()
    stats = kept._engine.stats()
    assert stats.free_pages == stats.pages


def test_a_small_pool_and_a_context_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = Engine(EngineConfig(page_tokens=4, threads=1), decoder=models.decoder("full"))
    params = SamplingParams(temperature=0, ignore_eos=True)
    options = {"kv_bytes": 27 * roomy.kv.tables.sizes.page_bytes, "context": 40}
    plain, drafted = (run(monkeypatch, d, params, **options)[0] for d in ("", "draft_model:model=full"))
    assert drafted == plain


def test_guesses_end_where_its_context_or_the_vocabulary_does() -> None:
    model = second("full")
    known: Sequence[int] = [1] * (models.CONTEXT - 2)
    assert len(model.greedy(known, 5)) == 2 and model.greedy([1] * models.CONTEXT, 5) == ()
    found = model.greedy([5, 6, 7], 8)
    narrow = SecondModel(model._engine, min(found))
    assert narrow.greedy([5, 6, 7], 8) == found[: next(i for i, t in enumerate(found) if t >= min(found))]


def test_models_that_speak_otherwise_are_refused(tmp_path: Path) -> None:
    other = random_model(tmp_path)
    with LLM("tiny") as llm, pytest.raises(ConfigError, match="same vocabulary"):
        open_beside(llm.engine, str(other))


def test_the_box_has_a_pair() -> None:
    """tiny-draft guesses what tiny says, often enough."""
    prompt, params = "def main():\n    ", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    with LLM("tiny") as plain:
        want = plain.generate(prompt, params)[0].samples[0].token_ids
    stack = {"drafter": "draft_model:model=tiny-draft", "draft-budget": "fixed:tokens=4"}
    with LLM("tiny", stack=stack) as drafted:
        assert drafted.generate(prompt, params)[0].samples[0].token_ids == want
        counters = drafted.engine.counters
        assert counters.accepted_tokens > 0.4 * counters.drafted_tokens > 0
