"""EngineConfig and SamplingParams say at once, in one line, what is wrong with a value."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from headrace.config import _TYPES, EngineConfig
from headrace.errors import ConfigError
from headrace.params import SamplingParams


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n=0 is out of range: it must be at least 1"),
        ({"n": 1000, "temperature": 1.0}, "at most 128"),
        ({"n": 2, "temperature": 0}, "2 equal samples"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"temperature": math.inf}, "temperature must be finite"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {5: 101}}, r"logit_bias\[5\]=101"),
        ({"logit_bias": {"x": 1}}, "is not a token id"),
        ({"logit_bias": dict.fromkeys(range(2000), 1.0)}, "at most 1024"),
        ({"logprobs": 101}, "logprobs=101"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1"),
        ({"stop": ("",)}, "stop string"),
        ({"stop": ("x",) * 65}, "at most 64"),
        ({"stop": ("x" * 2000,)}, "1024 characters"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens=5 is above max_tokens=4"),
        ({"n": True}, "n must be a whole number"),
    ],
)
def test_bad_sampling_params(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SamplingParams(**values)
    assert "\n" not in str(caught.value)


def test_a_single_stop_string_is_a_stop_string() -> None:
    assert SamplingParams(stop="abc").stop == ("abc",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "flaot32"}, "did you mean 'float32'"),
        ({"preempt": "swop"}, "known: recompute, swap"),
        ({"preempt": "swap"}, "swap_bytes"),
        ({"max_seqs": 0}, "max_seqs=0 is out of range"),
        ({"page_tokens": 0}, "page_tokens=0"),
        ({"context": 0}, "context=0"),
    ],
)
def test_bad_engine_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**values)


def test_toml_says_the_same_as_python(tmp_path: Path) -> None:
    file = tmp_path / "stack.toml"
    file.write_text('model = "tiny"\nmax_seqs = 3\n[stack]\npolicy = "orca"\nkv-layout = "single"\n')
    config = EngineConfig.from_toml(file, stack={"kv-layout": "windows"}, max_seqs=4)
    assert config == EngineConfig(max_seqs=4, stack={"policy": "orca", "kv-layout": "windows"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_sqes = 3", "did you mean 'max_seqs'"),
        ('max_seqs = "three"', "max_seqs"),
        ("max_seqs = ", "not valid TOML"),
        ("[stack]\npolicy = 3", "stack"),
    ],
)
def test_bad_toml(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "stack.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_toml(file)


def test_a_missing_toml_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        EngineConfig.from_toml(tmp_path / "none.toml")


def test_the_schema_of_files_has_every_setting() -> None:
    assert set(_TYPES.__struct_fields__) == {field.name for field in dataclasses.fields(EngineConfig)}
