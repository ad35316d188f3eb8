from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import cli
from headrace.commands import techniques
from headrace.compose import user_slots
from headrace.config import parse_size
from headrace.errors import ConfigError
from headrace.slots import slots
from tests.text.folders import TEMPLATE, random_model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model(tmp_path_factory.mktemp("model")))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def headrace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs one command line in this process: (exit code, stdout, stderr)."""

    def run(*argv: str, stdin: bytes = b"", terminal: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", Terminal() if terminal else io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def process(*argv: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Runs one command line in a process of its own."""
    command = [sys.executable, "-m", "headrace", *argv]
    return subprocess.run(
        command, input=stdin, capture_output=True, cwd=ROOT, env={**os.environ, **env}, timeout=120
    )


# ---- bad input: one line, exit 2, nothing half-done ----

BAD = {
    "empty prompt": (["run", ""], "the prompt is empty"),
    "no prompt at all": (["run"], "the prompt is empty"),
    "prompt longer than the context": (["run", "long " * 300], "the context holds 256"),
    "max_tokens=0": (["run", "x", "--max-tokens", "0"], "max_tokens=0 is out of range"),
    "negative temperature": (["run", "x", "--temperature", "-1"], "temperature=-1.0 is out of range"),
    "NaN temperature": (["run", "x", "--temperature", "nan"], "temperature must be finite"),
    "n=0": (["run", "x", "--n", "0"], "n=0 is out of range"),
    "temperature=0 with n>1": (["run", "x", "--temperature", "0", "--n", "2"], "2 equal samples"),
    "a word for a number": (["run", "x", "--seed", "abc"], "Invalid value for '--seed'"),
    "empty stop string": (["run", "x", "--stop", ""], "every stop string must have 1 to"),
    "bias without a token": (["run", "x", "--logit-bias", "a=1"], "is not TOKEN=BIAS"),
    "bias beyond the vocabulary": (
        ["run", "x", "--logit-bias", "9999=1"],
        "token 9999 is not in the vocabulary",
    ),
    "unknown technique": (["run", "x", "--policy", "sarathy"], "did you mean 'sarathi'?"),
    "unknown option of a technique": (["run", "x", "--policy", "sarathi:tokns=3"], "did you mean 'tokens'?"),
    "wrong option of a technique": (
        ["run", "x", "--policy", "sarathi:tokens=many"],
        "must be a whole number",
    ),
    "two members for one slot": (["run", "x", "--policy", "orca+sarathi"], "choose one"),
    "impossible stack": (["run", "x", "--processors", "top_k+top_k"], "names a technique twice"),
    "swapping to nowhere": (["run", "x", "--preempt", "swap"], "preempt=swap needs room in host memory"),
    "unknown option": (["run", "--temprature", "1"], "no option --temprature; did you mean '--temperature'?"),
    "option nothing is like": (["run", "--zzzzzz"], "no option --zzzzzz; `headrace run --help` lists all"),
    "unknown verb": (["rnu"], "no verb 'rnu'; did you mean 'run'?"),
    "unknown bench": (["bench", "latncy"], "no verb 'latncy'; did you mean 'latency'?"),
    "bench of nothing": (["bench"], "Missing command; `headrace bench --help`"),
    "two prompts": (["run", "a", "b"], "unexpected extra argument"),
    "not a folder": (["run", "x", "--model", "no/such"], "no/such does not exist"),
    "a folder that is not a model": (["run", "x", "--model", "tests"], "tests has no config.json"),
    "context beyond the model's": (
        ["run", "x", "--context", "9999"],
        "context=9999 is beyond this model's 256",
    ),
    "a pool that is too small": (["run", "x", "--kv-bytes", "1KiB"], "raise kv_bytes"),
    "a size that is none": (["run", "x", "--kv-bytes", "12q"], "'12q' is not a size"),
    "unknown dtype": (["run", "x", "--dtype", "float23"], "did you mean 'float32'?"),
    "threads=0": (["run", "x", "--threads", "0"], "threads=0 is out of range"),
    "no such file": (["run", "x", "--config", "no/such.toml"], "cannot read no/such.toml"),
    "unknown technique to explain": (["techniques", "sarathy"], "did you mean 'sarathi'?"),
    "unknown task": (["eval", "--tasks", "paskey"], "did you mean 'passkey'?"),
    "agreement with nobody": (["eval", "--tasks", "agreement"], "name the second with --draft"),
    "no list": (["bench", "latency", "--batch", "1,a"], "is not a list of whole numbers"),
    "unknown shape": (["bench", "latency", "--shape", "llama-3.2-2b"], "did you mean 'llama-3.2-1b'?"),
    "shape and model": (
        ["bench", "latency", "--shape", "llama-3.2-1b", "--model", "x"],
        "--shape llama-3.2-1b and --model x both name a model: give one of them",
    ),
    "beyond the context": (["bench", "latency", "--prompt-len", "300"], "do not fit in the context of 256"),
    "no list of rows": (["bench", "kernels", "--rows", "1,0"], "--rows='1,0' is not a list of whole numbers"),
    "too many rows": (["bench", "kernels", "--rows", "100000"], "--rows=100000 is beyond 8192"),
    "kernels of an unknown shape": (["bench", "kernels", "--shape", "lama-3.2-1b"], "did you mean"),
    "kernels of shape and model": (
        ["bench", "kernels", "--shape", "llama-3.2-1b", "--model", "x"],
        "--shape llama-3.2-1b and --model x both name a model: give one of them",
    ),
    "kernels of no folder": (["bench", "kernels", "--model", "no/such"], "no/such does not exist"),
    "kernels in no format": (["bench", "kernels", "--weights", "int44"], "did you mean 'int4'?"),
    "kernels that need another dtype": (
        ["bench", "kernels", "--weights", "int4", "--dtype", "float64"],
        "--weights int4 needs float32",
    ),
    "kernels of a GPU": (["bench", "kernels", "--device", "cuda"], "use --device cpu"),
    "several answers in a chat": (["chat", "--n", "2"], "chat gives one answer per turn"),
}


def with_model(argv: list[str], model: str) -> list[str]:
    """The command line on the small model, where the verb takes one and it names none."""
    takes = argv[0] in ("run", "chat", "eval") or argv[:2] == ["bench", "latency"]
    return [
        *argv,
        *(["--quiet"] if takes else []),
        *(["--model", model] if takes and not {"--model", "--shape"} & set(argv) else []),
    ]


@pytest.mark.parametrize(("argv", "line"), BAD.values(), ids=BAD.keys())
def test_bad_input(headrace, model: str, argv: list[str], line: str) -> None:
    code, out, err = headrace(*with_model(argv, model))
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("headrace: error: ") and line in err


@pytest.mark.parametrize(
    "wrong", [["--kv-codec", "kivy"], ["--prot", "1"], ["--model", "no/such"]], ids="".join
)
def test_a_log_of_json_ends_in_json(headrace, wrong: list[str]) -> None:
    code, out, err = headrace("serve", "--log-json", *wrong)
    assert (code, out, err.count("\n")) == (2, "", 1)
    plain = headrace("serve", *wrong)[2]
    line = json.loads(err)
    assert (line["level"], line["event"]) == ("error", "failed") and plain.endswith(f": {line['message']}\n")


def test_standard_input_that_is_not_text(headrace, model: str) -> None:
    code, out, err = headrace("run", "--model", model, stdin=b"hi \xff")
    assert (code, out) == (2, "")
    assert err == (
        "headrace: error: standard input is not valid UTF-8 (byte 0xff at offset 3): convert it, e.g. with iconv\n"
    )


def test_failures_that_are_nobodys_fault(headrace, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_) -> None:
        raise MemoryError("no\nroom")

    monkeypatch.setattr("headrace.engine.Engine.step", fail)
    code, out, err = headrace("run", "x", "--model", model, "--quiet")
    assert (code, out) == (1, "")
    assert err == "headrace: error: MemoryError: no room (HEADRACE_DEBUG=1 shows where)\n"


# ---- run ----


def test_run_streams_text(headrace, model: str) -> None:
    options = ["--model", model, "--max-tokens", "9", "--temperature", "0", "--ignore-eos"]
    code, out, err = headrace("run", "def add(", *options)
    assert code == 0 and out.endswith("\n")
    assert err.count("\n") == 1 and "--policy sarathi --" in err and "context 256" in err
    code, as_json, err = headrace("run", *options, "--json", "--quiet", stdin=b"def add(")
    row = json.loads(as_json)
    assert (code, err) == (0, "")
    assert row["text"] == out[:-1]
    assert set(row) == {"text", "token_ids", "finish_reason", "usage", "ttft_s", "decode_tok_s"}
    assert (
        len(row["token_ids"]) == row["usage"]["completion_tokens"] == 9 and row["finish_reason"] == "length"
    )


def test_run_with_samples_and_logprobs(headrace, model: str) -> None:
    options = ["--model", model, "--max-tokens", "1", "--n", "2", "--logprobs", "2", "--prompt-logprobs", "0"]
    _, out, _ = headrace("run", "def", *options, "--json", "--quiet")
    row = json.loads(out)
    assert "decode_tok_s" not in row  # nobody generated two tokens
    assert len(row["samples"]) == 2 and row["samples"][0]["text"] == row["text"]
    assert len(row["logprobs"][0]["top"]) == 2
    assert len(row["prompt_logprobs"]) == row["usage"]["prompt_tokens"] - 1
    code, out, _ = headrace("run", "def", *options, "--quiet")
    assert code == 0 and "--- 1 of 2, " in out and "--- 2 of 2, " in out


def test_run_takes_its_settings_from_flags_and_files(headrace, model: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text(
        f'model = {json.dumps(model)}\ncontext = 64\n[stack]\npolicy = "orca"\nkv-layout = "single"\n'
    )
    code, _, err = headrace(
        "run", "x", "--max-tokens", "2", "--config", str(file), "--policy", "sarathi:tokens=8"
    )
    assert (
        code == 0
        and "--policy sarathi:tokens=8" in err
        and "--kv-layout single" in err
        and "context 64" in err
    )
    code, _, err = headrace("run", "x", "--config", str(file), "--context", "4096")
    assert code == 2 and "context=4096" in err


def test_run_stops_at_stop_strings(headrace, model: str) -> None:
    options = [
        "run",
        "def add(",
        "--model",
        model,
        "--max-tokens",
        "40",
        "--temperature",
        "0",
        "--ignore-eos",
        "--json",
    ]
    whole = json.loads(headrace(*options)[1])["text"]
    row = json.loads(headrace(*options, "--stop", whole[9:12], "--stop", "never there")[1])
    assert row["text"] == whole[: whole.index(whole[9:12])] and row["finish_reason"] == "stop"


def test_a_terminal_without_a_prompt_gets_one(headrace, model: str) -> None:
    code, out, err = headrace("run", "--model", model, "--max-tokens", "2", terminal=True)
    assert code == 0 and out and "no prompt given, continuing 'def " in err


# ---- chat ----


def test_chat_keeps_the_conversation(headrace, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.llm import LLM

    asked = []
    render = LLM.stream_chat

    def spy(self, messages, *rest):
        asked.append([message["content"] for message in messages])
        return render(self, messages, *rest)

    monkeypatch.setattr(LLM, "stream_chat", spy)
    turns = b"Hello\nAnd you?\n/reset\nHello\n/nonsense\n\n/exit\nnever\n"
    code, out, err = headrace(
        "chat", "--model", model, "--max-tokens", "3", "--system", "Be kind", "-q", stdin=turns
    )
    assert code == 0
    assert [texts[0] for texts in asked] == ["Be kind"] * 3
    assert [len(texts) for texts in asked] == [2, 4, 2] and asked[1][1] == "Hello" and asked[1][2] in out
    assert "the conversation is forgotten" in err and "no command '/nonsense'" in err


def test_chat_in_json(headrace, model: str) -> None:
    code, out, _ = headrace("chat", "--model", model, "--max-tokens", "3", "--json", stdin=b"Hello\nAgain\n")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (
        code == 0 and len(rows) == 2 and rows[1]["usage"]["prompt_tokens"] > rows[0]["usage"]["prompt_tokens"]
    )


def test_chat_never_forgets_silently(headrace, model: str) -> None:
    code, _, err = headrace(
        "chat", "--model", model, "--max-tokens", "3", "-q", stdin=b"Hello\n" + b"long " * 300
    )
    assert code == 2 and "the context holds 256" in err


def test_chat_on_a_terminal_goes_on_after_an_error(
    headrace, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["long " * 300, "Hello"])

    def answer() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    code, _, err = headrace("chat", "--model", model, "--max-tokens", "3", terminal=True)
    assert code == 0 and "nothing was asked. /reset starts over" in err


def test_a_model_without_a_template_cannot_chat(headrace, tmp_path: Path) -> None:
    folder = random_model(tmp_path)
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace(json.dumps(TEMPLATE), "null"))
    code, _, err = headrace("chat", "--model", str(folder), "-q", stdin=b"Hello\n")
    assert code == 2 and "has no chat template" in err


# ---- techniques, doctor, bench, eval ----


def test_techniques_lists_every_slot(headrace) -> None:
    code, out, err = headrace("techniques", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert {(row["slot"], row["name"]) for row in rows} == {
        (s.name, name) for s in slots().values() for name in s.index
    }
    columns = {"name", "slot", "paper", "exact", "exact_as", "needs", "breaks", "options"}
    assert all(set(row) == columns for row in rows)
    table = headrace("techniques")[1]
    assert all(row["name"] in table for row in rows)


def test_one_technique_is_explained(headrace) -> None:
    code, out, _ = headrace("techniques", "sarathi")
    assert code == 0 and "--policy sarathi" in out and "Chunked prefill" in out and "tokens=32 (int)" in out
    assert headrace("techniques", "policy")[1].count("policy") >= 2


def test_the_generated_page_names_every_technique(headrace) -> None:
    code, out, _ = headrace("techniques", "--markdown")
    assert code == 0 and out == techniques.to_markdown() and "\n\n\n" not in out
    for slot in slots().values():
        assert f"## `{slot.name}`" in out
        assert all(f"| `{name}` |" in out for name in slot.index)


def test_every_slot_is_a_flag(headrace) -> None:
    code, out, _ = headrace("run", "--help")
    assert code == 0 and all(f"--{name}" in out for name in user_slots())


def test_doctor(headrace) -> None:
    code, out, err = headrace("doctor", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["kernels"]["isa"] in facts["kernels"]["available"] and facts["isa_reason"]
    assert facts["read_gb_s"] > 0 and facts["float32_gop_s"] > 0
    assert facts["cores"] >= 1 and facts["threads"] >= 1
    assert ("int8_gop_s" in facts) == (facts["kernels"]["isa"] != "reference")
    assert 0 <= facts.get("steal", 0) <= 1 and 0 <= facts.get("busy_cores", 0) <= facts.get(
        "machine_cores", 0
    )
    code, out, _ = headrace("doctor")
    assert code == 0
    assert all(name in out for name in ("kernels", "threads", "huge pages", "read speed", "arithmetic"))


HEALTHY = {
    "kernels": {"operations": {"rope": "avx512"}, "available": ["reference", "avx2", "avx512"], "asked": {}},
    "huge_pages": "madvise",
    "cores": 4,
    "machine_cores": 4,
    "threads": 4,
    "busy_cores": 0.1,
    "steal": 0.0,
    "memory": {"total": 32 << 30, "available": 16 << 30},
}
ILLS = {
    "huge_pages": ("never", "huge pages are off"),
    "cpu_quota": (1.5, "may use 1.5 of 4 cores"),
    "machine_cores": (8, "may use 4 of 8 cores"),
    "threads": (2, "2 threads for 4 cores"),
    "busy_cores": (2.0, "other processes keep 2.0 of 4 cores busy"),
    "steal": (0.1, "gives 10% of this virtual machine's time to others"),
    "memory": ({"total": 32 << 30, "available": 1 << 30}, "only 1.0 GiB of memory are free"),
    "kernels": (
        {**HEALTHY["kernels"], "available": ["reference", "avx2"]},
        "takes three instructions instead of one",
    ),
}


@pytest.mark.parametrize("fact", ILLS)
def test_doctor_says_what_costs_speed(fact: str) -> None:
    from headrace.commands.doctor import advise

    value, line = ILLS[fact]
    assert advise(HEALTHY) == []
    (found,) = advise({**HEALTHY, fact: value})
    assert line in found


def test_doctor_watches_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.commands import doctor

    ticks = iter([[100, 0, 0, 500, 0, 0, 0, 0], [130, 0, 10, 550, 0, 0, 0, 10]])
    monkeypatch.setattr(doctor, "_ticks", lambda: next(ticks))
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 4)
    found = doctor._busy()
    assert found == {"busy_cores": pytest.approx(1.6), "steal": pytest.approx(0.1), "machine_cores": 4}
    monkeypatch.setattr(doctor, "_ticks", list)  # a system without /proc/stat
    assert doctor._busy() == {}


ROW = {
    *(
        "batch",
        "prompt_len",
        "gen_len",
        "prefill_tok_s",
        "prefill_gop_s",
        "decode_tok_s",
        "ttft_s",
        "itl_p50_s",
        "itl_p99_s",
    ),
    *("itl_max_s", "weight_bytes", "kv_bytes_per_token", "read_gb_s", "roofline_fraction", "peak_rss_bytes"),
    *("threads", "isa", "stack", "model", "dtype", "spread", "repetitions", "file_bytes"),
}


def test_bench_latency(headrace, model: str) -> None:
    argv = ["bench", "latency", "--model", model, "--prompt-len", "20", "--repeat", "1"]
    code, out, _ = headrace(*argv, "--batch", "1,2", "--gen-len", "1,4", "--json")
    rows = json.loads(out)
    assert code == 0 and [(row["batch"], row["gen_len"]) for row in rows] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert set(rows[3]) == ROW
    assert not {"decode_tok_s", "itl_p50_s", "read_gb_s"} & set(rows[0])  # one token has no gap after it
    low, high = rows[3]["spread"]["decode_tok_s"]
    assert low <= rows[3]["decode_tok_s"] <= high
    code, out, _ = headrace(*argv, "--gen-len", "2")
    assert code == 0 and "prefill tok/s" in out and len(out.splitlines()) == 2


KERNEL_ROW = {
    *(
        "kernel",
        "size",
        "rows",
        "us",
        "read_bytes",
        "operations",
        "gb_s",
        "gop_s",
        "fraction",
        "limit",
        "copies",
    ),
    *("spread", "model", "weights", "kv_codec", "threads", "isa", "dtype", "limits"),
}


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures in milliseconds, and not much memory."""
    from headrace import limits
    from headrace.commands import kernel_cases

    monkeypatch.setattr(limits.measure, "__kwdefaults__", {"size": 16 << 20, "seconds": 0.01})
    monkeypatch.setattr(limits.read_bandwidth, "__kwdefaults__", {"size": 16 << 20, "seconds": 0.01})
    monkeypatch.setattr(kernel_cases, "working_bytes", lambda: 1 << 20)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("weights", ["plain", "int4:group=32", "bf16"])
def test_bench_kernels(headrace, model: str, weights: str) -> None:
    argv = [
        "bench",
        "kernels",
        "--model",
        model,
        "--weights",
        weights,
        "--rows",
        "1,3",
        "--contexts",
        "20,40",
    ]
    code, out, err = headrace(*argv, "--seconds", "0.001", "--threads", "1", "--json")
    assert code == 0 and "random weights" in err
    rows = json.loads(out)
    assert all(set(row) == KERNEL_ROW for row in rows)
    names = {row["kernel"] for row in rows}
    assert names >= {"qkv", "out", "gate_up", "down", "head", "rms_norm", "rope", "attention, one sequence"}
    for row in rows:
        assert row["rows"] in (1, 3) and row["weights"] == weights and row["threads"] == 1
        assert row["us"] > 0 and row["gb_s"] > 0 and row["fraction"] > 0 and row["copies"] >= 1
        assert row["limit"] in ("read", "int8", "bf16", "float32")
        low, high = row["spread"]["us"]
        assert low <= row["us"] <= high
    (head,) = [row for row in rows if row["kernel"] == "head" and row["rows"] == 3]
    assert head["operations"] == 2 * 3 * 401 * 32
    attention = [row for row in rows if row["kernel"].startswith("attention")]
    assert [(row["size"], row["rows"]) for row in attention] == [
        (f"{context} tokens", n) for context in (20, 40) for n in (1, 3, 3)
    ]
    assert attention[0]["operations"] == 4 * 8 * 4 * 20  # head size, heads, tokens
    assert attention[1]["operations"] == 3 * attention[0]["operations"]
    assert attention[2]["operations"] == 4 * 8 * 4 * (18 + 19 + 20)


@pytest.mark.usefixtures("small_limits")
def test_bench_kernels_as_a_table(headrace, model: str) -> None:
    argv = [
        "bench",
        "kernels",
        "--model",
        model,
        "--rows",
        "2",
        "--contexts",
        "16",
        "--seconds",
        "0.001",
        "-q",
    ]
    code, out, err = headrace(*argv, "--weights", "int8", "--kv-codec", "bf16")
    lines = out.splitlines()
    assert code == 0 and err == ""
    assert lines[0].split()[:3] == ["kernel", "size", "rows"] and lines[-1].startswith("limits: read ")
    assert len(lines) == 2 + 5 + 2 + 2  # head and foot, matrices, attention, norm and rotation
    code, _, err = headrace(*argv[:-1], "--quiet", "--contexts", "1000000")
    assert code == 2 and "--contexts=1000000 does not fit in a working set of 1 MiB" in err


@pytest.mark.parametrize("spec", ["plain", "int4", "bf16"])
def test_kernels_are_timed_on_copies_that_share_nothing(spec: str) -> None:
    import torch

    from headrace.commands.kernel_cases import _copies
    from headrace.weight.assemble import make

    form = make(spec)
    packing = form.start(64, 64, torch.float32)
    packing.put(0, torch.randn(64, 64))
    copies, x = _copies(packing.finish(), 3), torch.randn(2, 64)
    expected = copies[0].multiply(x)
    for matrix in copies:  # wiped one after the other, which the later ones must not notice
        assert torch.equal(matrix.multiply(x), expected)
        weight = getattr(matrix, "weight", matrix)
        (weight.weight_OI if spec == "plain" else weight.packed).zero_()


def test_bench_decodes_all_requests_together(model: str) -> None:
    from headrace.commands.bench import start, time_once
    from headrace.config import EngineConfig

    config = EngineConfig(
        model=model, stack={"policy": "sarathi:tokens=4,idle=8"}
    )  # prompts come in many steps
    engine = start(config, None, [(3, 33, 6)])
    prompts = [tuple(range(k, k + 33)) for k in (10, 60, 110)]
    cold, warm = time_once(engine, prompts, 6), time_once(engine, prompts, 6)
    assert cold.decode_tokens < 3 * 5  # the first prompt had its answer before the last had begun
    assert warm.decode_tokens == 3 * 5 and len(warm.steps_s) == 5
    engine.close()


def test_eval(headrace, model: str) -> None:
    code, out, err = headrace(
        "eval", "--model", model, "--tasks", "ppl,add,agreement", "--n", "3", "--draft", model, "--json"
    )
    rows = {row["task"]: row for row in json.loads(out)}
    assert code == 0 and list(rows) == ["ppl", "add", "agreement"]
    assert rows["agreement"]["value"] == 1.0 and rows["add"]["value"] == 0.0
    assert 1 < rows["ppl"]["low"] <= rows["ppl"]["value"] <= rows["ppl"]["high"] < 20
    assert all(set(row) == {"task", "metric", "value", "low", "high", "n", "size"} for row in rows.values())
    code, out, _ = headrace("eval", "--model", model, "--tasks", "add,passkey", "--n", "3")
    assert code == 0 and "accuracy" in out and "passkey" not in out  # its prompts do not fit in this context


def test_eval_shows_the_cards_figures(headrace, tmp_path: Path) -> None:
    folder = random_model(tmp_path)
    (folder / "card.json").write_text('{"figures": {"add accuracy": 0.25}}')
    argv = ["eval", "--model", str(folder), "--tasks", "add,sort", "--n", "2"]
    add, sort = json.loads(headrace(*argv, "--json")[1])
    assert add["card"] == 0.25 and "card" not in sort
    assert "0.250" in headrace(*argv)[1]


# ---- the process ----


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from headrace import cli; cli.main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, text=True, check=True)
    assert "techniques" in done.stdout
    assert not {"torch", "tokenizers", "jinja2", "numpy"} & set(done.stderr.split())


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, headrace; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, text=True, check=True)
    assert not {"torch", "tokenizers", "msgspec", "typer", "rich"} & set(done.stdout.split())


def test_a_process_ends_with_the_exit_code(model: str) -> None:
    done = process("run", "x", "--model", model, "--max-tokens", "2", "-q")
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.endswith(b"\n")
    done = process("run", "--model", model, stdin=b"\xff")
    assert done.returncode == 2 and done.stdout == b"" and done.stderr.count(b"\n") == 1
    done = process("run", "x", "--model", model, "--temperature", "-1", HEADRACE_DEBUG="1")
    assert done.returncode == 2 and b"Traceback" in done.stderr


def test_a_reader_that_leaves(model: str) -> None:
    command = [sys.executable, "-m", "headrace", "run", "x", "--model", model, "-q", "--ignore-eos"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.read(1)
    writer.stdout.close()
    assert (writer.wait(60), writer.stderr.read()) == (0, b"")


def test_the_version_is_the_packages() -> None:
    import headrace

    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None and headrace.__version__ == found[1]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("512MiB", 512 << 20),
        ("2GB", 2 * 10**9),
        ("1.5g", 3 << 29),
        ("32k", 32768),
        ("1 KiB", 1024),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("--kv-bytes", text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5.2g", "iB", "1e9", "2 parsecs"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size("--kv-bytes", text)


def test_what_a_step_reads_leaves_out_a_table_that_is_only_looked_up() -> None:
    """As it is stored: packed, not in the arithmetic's type."""
    from types import SimpleNamespace

    from headrace.commands.bench import Case, bytes_per_step

    def read(tied: bool) -> float | None:
        block = SimpleNamespace(mlp=SimpleNamespace(experts=0))
        table = SimpleNamespace(nbytes=30)
        engine = SimpleNamespace(
            architecture=SimpleNamespace(blocks=[block], tied_head=tied, vocab=1000, width=1000),
            decoder=SimpleNamespace(weight_bytes=100, embed=SimpleNamespace(table=table)),
            kv=SimpleNamespace(bytes_per_token=lambda: 2),
        )
        return bytes_per_step(engine, Case(batch=3, prompt_len=4, gen_len=2))

    assert read(tied=True) == 100 + 30 and read(tied=False) == 70 + 30
