"""Every family agrees with transformers, the oracle: same folder, same logits, same greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from headrace.forward.decoder import Decoder
from headrace.forward.load import Loaded, load
from headrace.models import SLOT
from tests.models import oracle
from tests.models.dense_kv import DenseKV, batch_of

IDS = [3 + (7 * i * i + 11 * i) % 90 for i in range(40)]  # longer than every window and original context
CLOSE = 1e-4
FAMILIES = [name for name in oracle.CASES if name in SLOT.index]


@pytest.fixture(scope="module", params=oracle.CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Loaded]:
    """(transformers' model, ours loaded from what it saved)."""
    model = oracle.make(request.param)
    folder = oracle.save(model, tmp_path_factory.mktemp(request.param))
    return model, load(folder, torch.float32)


def run(decoder: Decoder, ids: list[int], cuts: list[int]) -> Tensor:
    """Logits [T, V] of one sequence run in pieces that end at `cuts` and at its end."""
    kv, rows = DenseKV(decoder.architecture), []
    for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        rows.append(decoder.logits(decoder.forward(batch_of(ids[start:stop], start), kv)))
    return torch.cat(rows)


def expected(model: Any) -> Tensor:
    # a whole prompt shares one base in transformers' dynamic scaling; ours is what it does token by token
    rope = getattr(model.config, "rope_parameters", None) or getattr(model.config, "rope_scaling", None) or {}
    one_by_one = rope.get("rope_type") == "dynamic"
    return oracle.logits_step_by_step(model, IDS) if one_by_one else oracle.logits(model, IDS)


def test_logits_at_every_position(pair: tuple[Any, Loaded]) -> None:
    model, loaded = pair
    want = expected(model)
    assert want.std() > 0.3, "the oracle's logits must be spread enough to tell a mistake"
    assert (run(loaded.decoder, IDS, []) - want).abs().max() <= CLOSE
    assert (run(loaded.decoder, IDS, [5, 6, 7, 23]) - want).abs().max() <= CLOSE


@pytest.mark.parametrize("name", [*FAMILIES, "llama-dynamic", "llama-yarn", "qwen2-window"])
def test_64_greedy_tokens(name: str, tmp_path: Path) -> None:
    model = oracle.make(name)
    decoder = load(oracle.save(model, tmp_path), torch.float32).decoder
    prompt = IDS[:12]
    tokens, kv, start = list(prompt), DenseKV(decoder.architecture), 0
    while len(tokens) < len(prompt) + 64:
        hidden_TD = decoder.forward(batch_of(tokens[start:], start), kv)
        start = len(tokens)
        tokens.append(int(decoder.logits(hidden_TD[-1:]).argmax()))
    assert tokens[len(prompt) :] == oracle.greedy(model, prompt, 64)


def test_every_family_is_compared() -> None:
    assert {*FAMILIES, "gemma3"} == set(SLOT.index)


def test_text_part_of_a_multimodal_gemma(tmp_path: Path) -> None:
    import transformers

    text = {**oracle.SMALL, "head_dim": 16, "sliding_window": 8, "num_hidden_layers": 7}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    oracle.redraw(model, 1)
    decoder = load(oracle.save(model, tmp_path), torch.float32).decoder
    assert (run(decoder, IDS, []) - oracle.logits(model, IDS)).abs().max() <= CLOSE


def test_shards(tmp_path: Path) -> None:
    model = oracle.make("qwen3")
    oracle.save(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (
        run(load(tmp_path, torch.float32).decoder, IDS, []) - oracle.logits(model, IDS)
    ).abs().max() <= CLOSE


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(name: str, stored: torch.dtype, dtype: torch.dtype, tmp_path: Path) -> None:
    """What is stored and what is computed in may differ; bfloat16 is as near as 8 bits allow."""
    model = oracle.make(name)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored).float()
    want = oracle.logits(model, IDS)
    decoder = load(oracle.save(model.to(stored), tmp_path), dtype).decoder
    with torch.backends.mkldnn.flags(
        enabled=False
    ):  # its AMX code dies where a virtual machine hides the tiles
        got = run(decoder, IDS, [])
    assert got.dtype == dtype
    if dtype == torch.float64:
        assert (got - want).abs().max() <= CLOSE
    elif name != "qwen3_moe":  # there a rounded score may pick another expert
        assert (got.float() - want).abs().mean() <= 0.1 * want.std()


OLD_SPELLINGS: dict[str, dict[str, Any]] = {
    "llama-linear": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-llama3": {"rope_theta": 100.0, "rope_scaling": {"rope_type": "llama3", **oracle.LLAMA3}},
    "qwen2-yarn": {"rope_scaling": {"type": "yarn", **oracle.YARN}},
    "qwen2-window": {"layer_types": None},
    "qwen3-window": {"layer_types": None},
    "gemma3_text": {
        "layer_types": None,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window_pattern": 6,
    },
    "gemma3_text-types": {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}
"""What files of older versions say instead of rope_parameters and layer_types; None is nothing."""


@pytest.mark.parametrize("name", OLD_SPELLINGS)
def test_old_spellings_mean_the_same(name: str, tmp_path: Path) -> None:
    folder = oracle.save(oracle.make(name), tmp_path)
    new = load(folder, torch.float32).architecture
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling", "rope_theta"):
        config.pop(key, None)
    old = {key: value for key, value in {**config, **OLD_SPELLINGS[name]}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(old))
    assert load(folder, torch.float32).architecture == new
