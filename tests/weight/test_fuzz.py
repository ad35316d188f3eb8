"""Damaged files end in a ModelError or load; never in another exception, a hang or a large allocation."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from headrace.errors import ModelError
from headrace.forward.load import describe
from headrace.weight.checkpoint import find_tensors, read_header
from tests.models.test_published_configs import COUNTS
from tests.weight import folders

quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
VALUES = st.recursive(
    st.one_of(SCALARS, st.integers(0, 8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
ROPE_KEYS = (
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "original_max_position_embeddings",
    "beta_fast",
    "truncate",
)
ROPES = st.dictionaries(
    st.sampled_from(ROPE_KEYS),
    st.one_of(VALUES, st.sampled_from(["linear", "dynamic", "yarn", "llama3", 0, 1, 2.0, 1e300, 16])),
)


@functools.cache
def good() -> bytes:
    return save(folders.tensors_of(folders.CONFIG))


def once(write: Callable[[Path], Path], tmp_path: Path) -> Path:
    """The same folder for every example."""
    folder = tmp_path / "model"
    return folder if folder.exists() else write(folder)


def survives(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    try:
        described = describe(folder)
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert described.architecture.blocks


@quick
@given(data=st.data(), name=st.sampled_from(sorted(COUNTS)))
def test_any_value_of_any_key(data: st.DataObject, name: str, tmp_path: Path) -> None:
    config, _ = COUNTS[name]
    key = data.draw(st.sampled_from(sorted(config)))
    survives(tmp_path, {**config, key: data.draw(VALUES)})


@quick
@given(rope=ROPES, key=st.sampled_from(["rope_scaling", "rope_parameters"]))
def test_any_rope(rope: dict[str, Any], key: str, tmp_path: Path) -> None:
    survives(tmp_path, {**folders.CONFIG, key: rope})


@quick
@given(VALUES)
def test_any_generation_config(tmp_path: Path, value: object) -> None:
    folder = once(folders.write, tmp_path)
    for content in (value, {"eos_token_id": value, "temperature": value}):
        (folder / "generation_config.json").write_text(json.dumps(content))
        try:
            describe(folder)
        except ModelError:
            pass


@quick
@given(data=st.data())
def test_any_bytes_in_a_header(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / folders.SINGLE
    content = bytearray(good())
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        entries = read_header(file)
    except ModelError:
        return
    assert all(0 <= entry.start <= entry.start + entry.size <= len(content) for entry in entries)


@quick
@given(data=st.data())
def test_any_fields_in_a_header(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / folders.SINGLE
    head, body = folders.header(good())
    name = data.draw(st.sampled_from(sorted(head)))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    head[name] = {**head[name], field: data.draw(VALUES)}
    file.write_bytes(folders.assemble(head, body))
    try:
        read_header(file)
    except ModelError:
        pass


@quick
@given(VALUES)
def test_any_index(tmp_path: Path, value: object) -> None:
    folder = once(folders.write_shards, tmp_path)
    for content in (value, {"weight_map": value}, {"weight_map": {"lm_head.weight": value}}):
        (folder / folders.INDEX).write_text(json.dumps(content))
        with pytest.raises(ModelError):
            find_tensors(folder)
