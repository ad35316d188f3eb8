from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from headrace import cli
from headrace.commands import techniques
from headrace.commands.flags import parse_size
from headrace.compose import user_slots
from headrace.errors import ConfigError
from headrace.slots import slots
from tests.text.folders import TEMPLATE, random_model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def headrace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs one command line in this process: (exit code, stdout, stderr). No terminal; standard input as given."""

    def run(*argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def process(*argv: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Runs one command line in a process of its own."""
    command = [sys.executable, "-m", "headrace", *argv]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, env={**os.environ, **env}, timeout=120)


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
    "bias beyond the vocabulary": (["run", "x", "--logit-bias", "9999=1"], "token 9999 is not in the vocabulary"),
    "unknown technique": (["run", "x", "--policy", "sarathy"], "did you mean 'sarathi'?"),
    "unknown option of a technique": (["run", "x", "--policy", "sarathi:tokns=3"], "did you mean 'tokens'?"),
    "wrong option of a technique": (["run", "x", "--policy", "sarathi:tokens=many"], "must be a whole number"),
    "two members for one slot": (["run", "x", "--policy", "orca+sarathi"], "choose one"),
    "impossible stack": (["run", "x", "--preempt", "swap"], "preempt=swap needs room in host memory"),
    "unknown option": (["run", "--temprature", "1"], "no option --temprature; did you mean '--temperature'?"),
    "option nothing is like": (["run", "--zzzzzz"], "no option --zzzzzz; `headrace run --help` lists all"),
    "unknown verb": (["rnu"], "no verb 'rnu'; did you mean 'run'?"),
    "unknown bench": (["bench", "latncy"], "no verb 'latncy'; did you mean 'latency'?"),
    "bench of nothing": (["bench"], "Missing command; `headrace bench --help`"),
    "two prompts": (["run", "a", "b"], "unexpected extra argument"),
    "not a folder": (["run", "x", "--model", "no/such"], "no/such does not exist"),
    "a folder that is not a model": (["run", "x", "--model", "tests"], "tests has no config.json"),
    "context beyond the model's": (["run", "x", "--context", "9999"], "context=9999 is beyond this model's 256"),
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
    "beyond the context": (["bench", "latency", "--prompt-len", "300"], "do not fit in the context of 256"),
    "several answers in a chat": (["chat", "--n", "2"], "chat gives one answer per turn"),
}
MODELLESS = ("rnu", "bench", "techniques")


@pytest.mark.parametrize(("argv", "line"), BAD.values(), ids=BAD.keys())
def test_bad_input(headrace, model: str, argv: list[str], line: str) -> None:
    takes_model = "--model" not in argv and (argv[0] not in MODELLESS or argv[:2] == ["bench", "latency"])
    code, out, err = headrace(*argv, *(["--model", model] if takes_model else []), "--quiet" if takes_model else "--help"[:0] or "--")
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("headrace: error: ") and line in err
