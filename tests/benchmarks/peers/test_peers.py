from __future__ import annotations

import dataclasses
import json
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import model, process, report, roster, setup
from benchmarks.peers.process import Case, Failed
from benchmarks.peers.report import Results
from benchmarks.peers.roster import HEADRACE, PEERS, Variant
from benchmarks.peers.runners import Reading, time_steps
from headrace.commands import shapes

FOLDER = Path(process.__file__).parent
OURS = Variant("headrace int4", HEADRACE, options=("--weights", "int4"))
FAST, SLOW = Variant("A", "a", "one"), Variant("A", "a", "two")
OTHER = Variant("B", "b")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case("llama-3.2-1b", 100, (1, 4), 8, 4, 1, tmp_path, 20.0)


def reading(prefill: float, *decode: float, rss: int = 1 << 30) -> Reading:
    return Reading(prefill, dict(zip((1, 4), decode, strict=False)), rss, "1.0", ["said"])


# ---- what a runner times ----


def test_only_steps_of_the_whole_batch_count(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(1, 0), (2, 0), (3, 1), (4, 2), (4, 3), (4, 4)]
    clock: Iterator[float] = iter(range(1, 7))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    left = iter(steps)
    timing = time_steps(lambda: next(left), 0.0, 4)
    assert timing.prefill_s == 3
    assert (timing.decode_tokens, timing.decode_s) == (2, 1)


def test_a_batch_that_never_decodes_together_has_no_figure() -> None:
    left = iter([(4, 0), (4, 1), (4, 4)])
    assert time_steps(lambda: next(left), 0.0, 4).decode_tokens == 0


# ---- the table ----


def test_the_better_variant_of_each_column_and_ratios_to_the_best_peer() -> None:
    results = Results({"int4": (OURS, FAST, SLOW, OTHER)})
    results.readings = {
        OURS: [reading(300, 60), reading(200, 60), reading(100, 60)],
        FAST: [reading(100, 10)],
        SLOW: [reading(50, 20)],
        OTHER: [reading(80, 40)],
    }
    lines = report.table(results.groups["int4"], results, (1, 4)).splitlines()
    assert lines[2].startswith("| headrace int4 | 200.0 (100.0-300.0) 2.00x | 60.0 (60.0-60.0) 1.50x |  |")
    assert lines[3].startswith("| A | **100.0** (100.0-100.0) 1.00x one | 20.0 (20.0-20.0) 0.50x two |")
    assert lines[4].startswith("| B | 80.0 (80.0-80.0) 0.80x | **40.0** ")


def test_an_engine_without_figures_has_its_reason_in_its_row() -> None:
    results = Results({"int4": (OURS, OTHER)}, {OURS: [reading(1, 1)]}, {OTHER: "not set up: x"})
    table = report.table((OURS, OTHER), results, (1,))
    assert "| B | **no result**: not set up: x |  |  |" in table
    assert "1.0 (1.0-1.0) |" in table, "no peer, no ratio"


def test_a_machine_is_named_after_its_processor() -> None:
    assert report.slug("Intel(R) Xeon(R) Processor", 2) == "intel-xeon-2cores"
    assert report.slug("AMD EPYC 9R45 96-Core Processor", 2) == "amd-epyc-9r45-2cores"


# ---- processes ----


def run(case: Case, code: str) -> object:
    return process.call([sys.executable, "-c", code], {"SAID": "yes"}, case)


def test_the_last_line_of_json_is_the_result(case: Case) -> None:
    code = "import os; print('noise'); print('{\"a\": 1}'); print(os.environ['SAID'], os.environ['OMP_NUM_THREADS'])"
    assert run(case, code) == {"a": 1}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('no such file')", "no such file"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "killed by SIGILL"),
        ("print('no json')", "no result"),
        ("import sys; print('\\n│ a | b │\\n╰──╯', file=sys.stderr); sys.exit(2)", "a \\| b"),
    ],
)
def test_a_failure_has_a_reason(case: Case, code: str, reason: str) -> None:
    with pytest.raises(Failed) as failure:
        run(case, code)
    assert str(failure.value).startswith(reason)


def test_a_reason_does_not_name_folders_of_this_machine(case: Case) -> None:
    with pytest.raises(Failed, match=r"^cannot open ENVS/x ./y$"):
        run(case, f"import sys; sys.exit('cannot open {case.envs}/x {process.ROOT}/y')")


def test_a_process_that_does_not_end_is_killed(case: Case) -> None:
    with pytest.raises(Failed, match="no end after"):
        run(dataclasses.replace(case, timeout_s=0.5), "import time; time.sleep(60)")


def test_an_illegal_instruction_is_met_by_showing_the_tiles(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict] = []

    def read(variant: Variant, case: Case, repetition: int, environment: dict) -> Reading:
        asked.append(environment)
        if not environment:
            raise Failed("killed", -signal.SIGILL)
        return reading(1, 1)

    monkeypatch.setattr(process, "_read", read)
    turns = process.Turns(case)
    with pytest.raises(Failed):
        turns.read(OTHER, 0)  # there is no such library
    library = roster.show_tiles(case.envs)
    library.touch()
    turns.read(OTHER, 0)
    assert "show_tiles.c" in turns.read(OTHER, 1).notes[-1]
    shown = {"LD_PRELOAD": str(library)}
    assert asked == [{}, {}, shown, shown], "remembered"


def test_headrace_runs_with_its_defaults_if_it_refuses_a_flag(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "prefill_tok_s": 9.0,
        "decode_tok_s": 3.0,
        "peak_rss_bytes": 5,
        "weight_bytes": 7,
        "dtype": "float32",
        "isa": "avx2",
        "stack": "--policy orca",
    }

    def call(command: list[str], environment: dict, case: Case) -> object:
        if "--weights" in command:
            raise Failed("No such option: --weights", 2)
        return [{**row, "batch": 1}, {**row, "batch": 4}]

    monkeypatch.setattr(process, "call", call)
    found = process.Turns(case).read(OURS, 0)
    assert found.decode_tok_s == {1: 3.0, 4: 3.0}
    assert "its default stack" in found.notes[0]


# ---- who goes on ----


@pytest.mark.parametrize(
    "slow, beaten",
    [((80, 1.7, 3.5), True), ((80, 1.9, 3.5), False), ((101, 1.0, 1.0), False)],
    ids=["behind-everywhere", "close-in-one", "ahead-in-one"],
)
def test_a_variant_behind_in_every_speed_is_beaten(slow: tuple[float, ...], beaten: bool) -> None:
    results = Results({"int4": [FAST, SLOW, OTHER]})
    results.readings = {FAST: [reading(100, 2, 4)], SLOW: [reading(*slow)], OTHER: [reading(900, 9, 9)]}
    assert report.beaten([FAST, SLOW, OTHER], results, (1, 4)) == ({SLOW} if beaten else set())


# ---- what setting up writes ----


def test_only_the_models_of_a_group_are_written() -> None:
    assert setup.models_read("llama_cpp", ["int4"]) == ["Q4_0", "Q4_K_M"]
    assert setup.models_read("openvino", ["int4", "bf16"]) == ["int4", "fp16"]
    assert setup.models_read("vllm", ["int4"]) == []


# ---- the whole command ----

FAKE = """#!{python}
import json, sys
print(json.dumps(dict(prefill_tok_s=8.0, decode_tok_s={{"1": 2.0, "2": 3.0}}, peak_rss_bytes=1 << 30, version="9",
                      notes=[sys.argv[2]])))
"""


@pytest.fixture
def envs(tmp_path: Path) -> Path:
    python = roster.python_of(tmp_path, "transformers")
    python.parent.mkdir(parents=True)
    python.write_text(FAKE.format(python=sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (roster.models_of(tmp_path, "qwen2.5-0.5b") / "source").mkdir(parents=True)
    return tmp_path


def test_a_run_from_start_to_end(envs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "has_amx", lambda: False)
    monkeypatch.setattr(command, "read_limits", lambda case: {"read_gb_s": 20.0})
    out = tmp_path / "table.md"
    flags = "--shape qwen2.5-0.5b --weights bf16 --batch 1,2 --repeat 2 --engines transformers,vllm"
    assert command.main([*flags.split(), "--envs", str(envs), "--out", str(out)]) == 0
    text = out.read_text()
    assert "| Transformers bf16 | **8.0** (8.0-8.0) 1.00x |" in text
    assert "| vLLM bf16 | **no result**: not set up" in text
    assert "python -m benchmarks.peers.setup vllm --shape qwen2.5-0.5b" in text
    assert "memory read, GB/s: 20.0" in text
    assert str(tmp_path) not in text
    data = json.loads(out.with_suffix(".json").read_text())
    readings = {entry["engine"]: len(entry["readings"]) for entry in data["groups"]["bf16"]}
    assert readings == {"vLLM bf16": 0, "Transformers bf16": 2}


@pytest.mark.parametrize(
    "flags", ["--weights int5", "--engines nobody", "--batch 1,x", "--batch 0", "--gen-len 1", "--shape none"]
)
def test_a_bad_command_line_is_refused(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.parse(flags.split())
    assert end.value.code == 2
    assert "error" in capsys.readouterr().err


# ---- roster and model ----


def test_every_runner_and_export_is_there() -> None:
    for variants in roster.groups().values():
        assert variants[0].peer == HEADRACE
        for variant in variants[1:]:
            assert variant.peer in PEERS
            assert (FOLDER / "runners" / f"{variant.runner}.py").exists()
    for peer in PEERS.values():
        assert peer.export is None or (FOLDER / "exports" / f"{peer.export}.py").exists()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_random_model_is_one_that_headrace_reads(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from headrace.forward.load import load

    small = {
        "model_type": kind,
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
    }
    monkeypatch.setitem(shapes.SHAPES, "small", small)
    monkeypatch.setattr(model, "_SHARD", 10_000)
    model.write("small", tmp_path / "source")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
    loaded = load(tmp_path / "source", torch.float32)
    assert loaded.architecture.vocab == 300
