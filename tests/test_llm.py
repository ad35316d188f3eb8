from __future__ import annotations

import sys
from pathlib import Path

import pytest

import headrace
from headrace.errors import ConfigError, ModelError
from headrace.llm import LLM
from headrace.meter import ProgressBar, Spread, percentile
from headrace.params import SamplingParams
from headrace.text.reply import Reply
from headrace.text.tokenizer import Tokenizer
from headrace.types import Delta, Logprob
from tests.text.folders import random_model

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = ["def add(", "The quick brown fox", "東京", "a", "left + right and more " * 5]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    with LLM(str(random_model(tmp_path_factory.mktemp("model"))), max_seqs=4) as llm:
        yield llm


def alone(llm: LLM, prompt, params: SamplingParams = GREEDY) -> str:
    return llm.generate(prompt, params)[0].text


# ---- generate ----


def test_outputs_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=k, ignore_eos=True) for k in (9, 1, 30, 4, 2)]
    outputs = llm.generate(PROMPTS, params)
    assert [output.prompt for output in outputs] == PROMPTS
    assert [len(output.samples[0].token_ids) for output in outputs] == [9, 1, 30, 4, 2]
    assert [output.text for output in outputs] == [
        alone(llm, p, one) for p, one in zip(PROMPTS, params, strict=True)
    ]


def test_an_output_says_what_happened(llm: LLM) -> None:
    [output] = llm.generate(
        "def add(", SamplingParams(temperature=0, max_tokens=5, logprobs=2, prompt_logprobs=1)
    )
    [sample] = output.samples
    assert output.prompt_token_ids == tuple(llm.tokenizer.encode("def add("))
    assert output.usage.prompt_tokens == len(output.prompt_token_ids)
    assert output.usage.completion_tokens == len(sample.token_ids) == len(sample.logprobs) == 5
    assert [entry.token for entry in sample.logprobs] == list(sample.token_ids)
    assert [entry.token for entry in output.prompt_logprobs] == list(output.prompt_token_ids[1:])
    assert len(sample.logprobs[0].top) == 2 and len(output.prompt_logprobs[0].top) == 1
    assert output.ttft_s > 0 and output.decode_tok_s > 0 and sample.finish_reason == "length"


def test_token_ids_are_prompts_too(llm: LLM) -> None:
    ids = llm.tokenizer.encode("def add(")
    [output] = llm.generate([ids], GREEDY)
    assert output.prompt is None and output.text == alone(llm, "def add(")


def test_several_samples(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=8, ignore_eos=True)
    [first], [again] = llm.generate("def", params), llm.generate("def", params)
    assert len({sample.text for sample in first.samples}) == 3
    assert [s.token_ids for s in first.samples] == [s.token_ids for s in again.samples]
    assert first.usage.completion_tokens == 24


def test_more_prompts_than_the_queue_takes(tmp_path: Path) -> None:
    with LLM(str(random_model(tmp_path)), max_waiting=3, max_seqs=2) as llm:
        outputs = llm.generate(["a", "b", "c", "d", "e", "f", "g"], GREEDY)
        assert [output.text for output in outputs] == [alone(llm, output.prompt) for output in outputs]
        with pytest.raises(ConfigError, match="the queue takes 3"):
            llm.generate("a", SamplingParams(n=4))


# ---- stop strings ----


def test_a_stop_string_ends_a_sample_and_its_request(llm: LLM) -> None:
    text = alone(llm, "def", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    stop = text[10:13]
    [output] = llm.generate("def", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=stop))
    assert output.text == text[: text.index(stop)]
    assert output.samples[0].finish_reason == "stop" and len(output.samples[0].token_ids) < 40
    assert not llm.engine.busy


def test_a_stop_token_is_not_text(llm: LLM) -> None:
    [free] = llm.generate("def", GREEDY)
    stop = free.samples[0].token_ids[6]
    [output] = llm.generate(
        "def", SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=(stop,))
    )
    [sample] = output.samples
    assert sample.finish_reason == "stop" and sample.token_ids[-1] == stop
    assert sample.text == llm.tokenizer.decode(sample.token_ids[:-1], start=False)


def test_several_tokens_in_one_step_are_cut_at_the_stop_string(llm: LLM) -> None:
    ids = tuple(llm.tokenizer.encode("one END two", add_special=False))
    reply = Reply(llm.tokenizer, [1], SamplingParams(stop="END", logprobs=0), prompt="p", at=0.0)
    chunk = reply.take(Delta("r", 0, 0, ids, tuple(Logprob(i, -1.0) for i in ids)), at=1.0)
    assert chunk is not None and (chunk.text, chunk.finish_reason, chunk.stop) == ("one ", "stop", "END")
    assert llm.tokenizer.decode(chunk.token_ids) == "one END" and len(chunk.logprobs) == len(
        chunk.token_ids
    ) < len(ids)
    assert reply.done and reply.take(Delta("r", 0, 0, ids), at=2.0) is None
    assert reply.output().samples[0].text == "one "


# ---- stream and chat ----


def test_a_stream_is_the_same_text(llm: LLM) -> None:
    chunks = list(llm.stream("def add(", GREEDY))
    assert "".join(chunk.text for chunk in chunks) == alone(llm, "def add(")
    assert sum(len(chunk.token_ids) for chunk in chunks) == 12
    assert [chunk.finish_reason for chunk in chunks] == [None] * 11 + ["length"]


def test_streams_and_batches_interleave(llm: LLM) -> None:
    expected = {prompt: alone(llm, prompt) for prompt in PROMPTS}
    one, two = llm.stream(PROMPTS[0], GREEDY), llm.stream(PROMPTS[1], GREEDY)
    texts = [next(one).text, next(two).text]
    assert [output.text for output in llm.generate(PROMPTS[2:], GREEDY)] == [expected[p] for p in PROMPTS[2:]]
    texts = [texts[0] + "".join(c.text for c in one), texts[1] + "".join(c.text for c in two)]
    assert texts == [expected[PROMPTS[0]], expected[PROMPTS[1]]]


def test_closing_a_stream_cancels_it(llm: LLM) -> None:
    stream = llm.stream("def", GREEDY)
    next(stream)
    assert llm.engine.busy
    stream.close()
    assert not llm.engine.busy and not llm._replies and not llm._chunks


def test_an_interrupt_cancels_the_batch(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = llm.engine.step, iter(range(3))

    def interrupted() -> list[Delta]:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY)
    monkeypatch.undo()
    assert not llm.engine.busy and not llm._replies
    assert alone(llm, "a")


def test_chat_renders_the_template_and_adds_no_second_start_token(llm: LLM) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    [output] = llm.chat(hello, GREEDY)
    assert output.prompt == "<|begin|><|user|>\nHello<|end|>\n<|assistant|>\n"
    assert output.prompt_token_ids.count(llm.tokenizer.bos) == 1
    assert [o.text for o in llm.chat([hello, hello], GREEDY)] == [output.text] * 2
    assert "".join(chunk.text for chunk in llm.stream_chat(hello, GREEDY)) == output.text


# ---- what is refused ----


@pytest.mark.parametrize(
    ("prompts", "params", "line"),
    [
        ("", None, "the prompt is empty"),
        (["ok", ""], None, "the prompt is empty"),
        ([[]], None, "the prompt is empty"),
        (["ok", "long " * 300], None, r"prompts\[1\]: the prompt has \d+ tokens, and the context holds 256"),
        ("long " * 300, None, "the context holds 256"),
        ([[1, 5000]], None, "token 5000 is not in the vocabulary"),
        ([["a"]], None, "text or a list of token ids"),
        ([1, 2], None, "text or a list of token ids"),
        (["a", "b"], [GREEDY], "2 prompts but 1 sampling params"),
        (["a\ud800"], None, "not valid Unicode"),
    ],
)
def test_bad_prompts(llm: LLM, prompts, params, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        llm.generate(prompts, params)
    assert not llm.engine.busy and not llm._replies


def test_bad_settings(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="'polcy'; did you mean 'policy'"):
        LLM("tiny", polcy="orca")
    with pytest.raises(ConfigError, match="'kv_codek'; did you mean 'kv_codec'"):
        LLM("tiny", kv_codek="plain")
    with pytest.raises(ConfigError, match="'sarathy'; did you mean 'sarathi'"):
        LLM(str(llm.engine.path), policy="sarathy")
    with pytest.raises(ConfigError, match="threads"):
        LLM("tiny", threads="two")
    with pytest.raises(ModelError, match="does not exist"):
        LLM("no/such/folder")


def test_sampling_takes_the_models_defaults(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.engine, "defaults", {"temperature": 0.5, "top_k": 3})
    assert llm.sampling(top_k=9) == SamplingParams(temperature=0.5, top_k=9)
    with pytest.raises(ConfigError, match="'temprature'; did you mean 'temperature'"):
        llm.sampling(temprature=1)


# ---- the package and its meters ----


def test_names_are_fetched_when_used() -> None:
    assert headrace.LLM is LLM and headrace.SamplingParams is SamplingParams
    assert "Engine" in dir(headrace)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = headrace.nothing


def test_percentiles_and_spreads() -> None:
    assert [percentile([4, 1, 3, 2], share) for share in (0, 0.5, 1)] == [1, 2.5, 4]
    assert percentile([7], 0.99) == 7
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)


def test_a_progress_bar_shows_late_and_on_terminals_only(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    with ProgressBar(2, "prompts") as bar:
        bar.advance(2)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar(2, "prompts") as bar:
        bar.advance(2)
        assert bar._bar is None  # two seconds have not passed
    with ProgressBar(2, "prompts", on=True) as bar:
        bar.advance(1)
        assert bar._bar is not None
    assert not capsys.readouterr().out


def test_the_tokenizer_and_the_model_agree(llm: LLM) -> None:
    assert isinstance(llm.tokenizer, Tokenizer) and llm.tokenizer.size == llm.engine.architecture.vocab
