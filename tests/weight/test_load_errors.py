"""Every way in which a model folder can be wrong: one line that names the file, the reason and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace.errors import ConfigError, ModelError
from headrace.forward.load import describe, load
from headrace.weight import memory
from tests.weight import folders
from tests.weight.folders import CONFIG, INDEX, SINGLE

EMBED = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SHARD = "model-00001-of-00002.safetensors"


def config(folder: Path, **changes: object) -> None:
    folders.write(folder)
    kept = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], **settings: object) -> None:
    found = folders.tensors_of({**CONFIG, **settings})
    change(found)
    folders.write(folder, {**CONFIG, **settings}, found)


def header(folder: Path, change: Callable[[dict], object]) -> None:
    folders.write(folder)
    head, data = folders.header((folder / SINGLE).read_bytes())
    change(head)
    (folder / SINGLE).write_bytes(folders.assemble(head, data))


def raw(folder: Path, change: Callable[[bytes], bytes]) -> None:
    folders.write(folder)
    (folder / SINGLE).write_bytes(change((folder / SINGLE).read_bytes()))


def text(folder: Path, name: str, content: str) -> None:
    folders.write(folder)
    (folder / name).write_text(content)


def shards(folder: Path, change: Callable[[Path], object]) -> None:
    folders.write_shards(folder)
    change(folder)


def index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    folders.write_shards(folder)
    found = json.loads((folder / INDEX).read_text())
    change(found["weight_map"])
    (folder / INDEX).write_text(json.dumps(found))


def without_weights(folder: Path, *others: str) -> None:
    folders.write(folder)
    (folder / SINGLE).unlink()
    for name in others:
        (folder / name).write_bytes(b"")


def rope(kind: object, **options: object) -> dict[str, object]:
    return {"rope_scaling": {"rope_type": kind, **options}}


NOT_A_FOLDER: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "absent": (lambda f: None, ("does not exist", "folder")),
    "a file": (lambda f: f.write_text(""), ("is a file", "folder")),
    "empty": (lambda f: f.mkdir(), ("no config.json",)),
}
CONFIGS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "invalid JSON": (
        lambda f: text(f, "config.json", '{"model_type": '),
        ("config.json", "not a valid JSON"),
    ),
    "not UTF-8": (lambda f: (folders.write(f) / "config.json").write_bytes(b'{"a\xff": 1}'), ("valid JSON",)),
    "nested too deep": (lambda f: text(f, "config.json", '{"a":' * 100_000), ("config.json", "valid JSON")),
    "not an object": (lambda f: text(f, "config.json", "[1]"), ("config.json", "valid JSON")),
    "no family": (lambda f: config(f, model_type=...), ("model_type None", "llama")),
    "unknown family": (lambda f: config(f, model_type="lama"), ("'lama'", "did you mean 'llama'")),
    "missing key": (lambda f: config(f, hidden_size=...), ("missing key", "hidden_size")),
    "wrong type": (lambda f: config(f, hidden_size="big"), ("hidden_size", "Expected `int`")),
    "no heads": (lambda f: config(f, num_attention_heads=0), ("num_attention_heads",)),
    "too many layers": (lambda f: config(f, num_hidden_layers=10**9), ("num_hidden_layers",)),
    "unknown key": (lambda f: config(f, mlp_bais=True), ("'mlp_bais'", "did you mean 'mlp_bias'")),
    "quantised": (
        lambda f: config(f, quantization_config={"bits": 4}),
        ("quantization_config", "load the one"),
    ),
    "encoder": (lambda f: config(f, is_encoder_decoder=True), ("is_encoder_decoder",)),
    "activation": (lambda f: config(f, hidden_act="relu2"), ("'relu2'", "silu")),
    "heads do not share": (lambda f: config(f, num_key_value_heads=3), ("no multiple",)),
    "width does not divide": (lambda f: config(f, hidden_size=18), ("hidden_size=18", "head_dim")),
    "odd heads": (lambda f: config(f, head_dim=5), ("heads of 5", "even")),
    "longrope": (
        lambda f: config(f, **rope("longrope", short_factor=[1])),
        ("'longrope' is not supported", "yarn"),
    ),
    "rope without factor": (lambda f: config(f, **rope("linear")), ("'linear' needs a factor",)),
    "rope below 1": (lambda f: config(f, **rope("linear", factor=0.5)), ("factor=0.5",)),
    "rope of text": (lambda f: config(f, **rope("linear", factor="4")), ("factor='4' must be a number",)),
    "rope key": (
        lambda f: config(f, **rope("llama3", factor=2.0, low_frq_factor=1.0)),
        ("did you mean 'low_freq_factor'",),
    ),
    "rope base": (lambda f: config(f, rope_theta=0.5), ("rope_theta",)),
    "partial rotary": (lambda f: config(f, partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    "generation": (
        lambda f: text(f, "generation_config.json", "{"),
        ("generation_config.json", "valid JSON"),
    ),
    "generation type": (
        lambda f: text(f, "generation_config.json", '{"top_k": "all"}'),
        ("generation_config", "top_k"),
    ),
}
WEIGHTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no weights": (without_weights, (SINGLE, INDEX, "download")),
    "pickles": (
        lambda f: without_weights(f, "pytorch_model.bin"),
        ("pytorch_model.bin", "convert to safetensors"),
    ),
    "missing": (
        lambda f: tensors(f, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        ("lacks model.layers.1.mlp.up",),
    ),
    "missing head": (
        lambda f: tensors(f, lambda t: t.pop(HEAD)),
        ("lacks lm_head.weight", "tie_word_embeddings"),
    ),
    "renamed": (
        lambda f: tensors(f, lambda t: t.update(model_norm=t.pop("model.norm.weight"))),
        ("nearest", "model_norm"),
    ),
    "extra": (
        lambda f: tensors(f, lambda t: t.update(extra=torch.zeros(3))),
        ("has extra that config.json has no place",),
    ),
    "many extra": (lambda f: config(f, num_hidden_layers=1), ("and 6 more tensors",)),
    "wrong shape": (lambda f: config(f, intermediate_size=32), ("shape [24, 16]", "asks for [32, 16]")),
    "integers": (
        lambda f: tensors(f, lambda t: t.update({EMBED: torch.zeros(64, 16).byte()})),
        ("stored as U8", "quantised"),
    ),
    "other tied head": (
        lambda f: tensors(f, lambda t: t.update({HEAD: t[EMBED] + 1}), tie_word_embeddings=True),
        ("differs from", "tie_word_embeddings to false"),
    ),
    "empty file": (lambda f: raw(f, lambda b: b""), (SINGLE, "truncated")),
    "half a length": (lambda f: raw(f, lambda b: b[:4]), (SINGLE, "truncated")),
    "half a header": (lambda f: raw(f, lambda b: b[:100]), (SINGLE, "less than its header says")),
    "half the data": (lambda f: raw(f, lambda b: b[: len(b) // 2]), (SINGLE, "truncated")),
    "a byte too many": (lambda f: raw(f, lambda b: b + b"x"), (SINGLE, "corrupt")),
    "giant header": (lambda f: raw(f, lambda b: b"\xff" * 8 + b[8:]), (SINGLE, "header")),
    "header of noise": (
        lambda f: raw(f, lambda b: b[:8] + b"\xfe" * 40 + b[48:]),
        (SINGLE, "header is corrupt"),
    ),
    "header of brackets": (
        lambda f: raw(f, lambda b: folders.assemble(b"[" * 100_000, b"")),
        ("header is corrupt",),
    ),
    "header of lists": (lambda f: header(f, lambda h: h.update({EMBED: []})), ("header is corrupt",)),
    "overlap": (
        lambda f: header(f, lambda h: h[EMBED].update(data_offsets=[4, 4100])),
        (EMBED, "do not fit"),
    ),
    "backwards": (
        lambda f: header(f, lambda h: h[EMBED].update(data_offsets=[4096, 0])),
        (EMBED, "do not fit"),
    ),
    "past the end": (
        lambda f: header(f, lambda h: h[EMBED].update(data_offsets=[0, 1 << 60])),
        (EMBED, "do not fit"),
    ),
    "negative axis": (
        lambda f: header(f, lambda h: h[EMBED].update(shape=[-64, -16])),
        (EMBED, "impossible shape"),
    ),
    "overflowing shape": (
        lambda f: header(f, lambda h: h[EMBED].update(shape=[1 << 62, 1 << 62])),
        ("impossible shape",),
    ),
    "many axes": (
        lambda f: header(f, lambda h: h[EMBED].update(shape=[1] * 99)),
        (EMBED, "impossible shape"),
    ),
    "name of two lines": (
        lambda f: header(f, lambda h: h.update({"a\nb": h.pop(EMBED)})),
        ("not a model", "'a\\nb'"),
    ),
    "unknown dtype": (lambda f: header(f, lambda h: h[EMBED].update(dtype="F7")), (EMBED, "'F7'")),
    "hole": (lambda f: header(f, lambda h: h.pop(EMBED)), (SINGLE, "do not fit")),
    "missing shard": (lambda f: shards(f, lambda f: (f / SHARD).unlink()), (SHARD, "is missing")),
    "broken shard": (lambda f: shards(f, lambda f: (f / SHARD).write_bytes(b"")), (SHARD, "truncated")),
    "shard elsewhere": (
        lambda f: index(f, lambda m: m.update({EMBED: "../x.safetensors"})),
        ("../x.safetensors",),
    ),
    "shard is no safetensors": (lambda f: index(f, lambda m: m.update({EMBED: "x.bin"})), ("x.bin",)),
    "index is wrong": (lambda f: index(f, lambda m: m.update(other=SHARD)), (INDEX, "other is in")),
    "index without map": (lambda f: shards(f, lambda f: (f / INDEX).write_text("{}")), (INDEX, "weight_map")),
    "index of numbers": (lambda f: index(f, lambda m: m.update({EMBED: 1})), (INDEX, "weight_map")),
    "tensor twice": (
        lambda f: shards(
            f, lambda f: (f / SHARD).write_bytes((f / SHARD.replace("00001-", "00002-")).read_bytes())
        ),
        ("is in both",),
    ),
}
EVERY = {**NOT_A_FOLDER, **CONFIGS, **WEIGHTS}


@pytest.mark.parametrize("case", EVERY)
def test_says_what_why_and_what_to_do(case: str, tmp_path: Path) -> None:
    spoil, words = EVERY[case]
    folder = tmp_path / "model"
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        load(folder, torch.float32)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    assert str(folder) in line
    for word in words:
        assert word in line, line


@pytest.mark.parametrize("case", [*NOT_A_FOLDER, *CONFIGS])
def test_known_before_any_weight_is_read(case: str, tmp_path: Path) -> None:
    EVERY[case][0](tmp_path / "model")
    with pytest.raises(ModelError):
        describe(tmp_path / "model")


def test_dtype_that_nothing_computes_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch.int8.*float32"):
        load(folders.write(tmp_path / "model"), torch.int8)


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a tensor exists."""
    folder = folders.write(tmp_path / "model")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10)
    monkeypatch.setattr(torch, "empty", None)
    with pytest.raises(ModelError, match=r"needs .* GiB on cpu, but 0.0 GiB are free"):
        load(folder, torch.float32)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "model")

    def cut(done: int, total: int) -> None:
        with (folder / SINGLE).open("r+b") as file:
            file.truncate(100)

    with pytest.raises(ModelError, match=r"cannot read .* became shorter"):
        load(folder, torch.float32, progress=cut)
