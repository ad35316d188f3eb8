"""The shipped files: tokenizer, template, weights and cards are whole and agree with each other."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2.sandbox
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from headrace import box

TOKENIZER = Tokenizer.from_file(str(box.path("tiny") / "tokenizer.json"))
SIZES = {"tiny": (5_500_000, 7_000_000), "tiny-draft": (800_000, 1_500_000)}
MODELS = pytest.mark.parametrize("folder", [box.path(name) for name in box.MODELS], ids=box.MODELS)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@given(st.text())
def test_tokenizer_gives_any_text_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_gives_python_back_in_few_tokens() -> None:
    text = box.held_out_text()
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids) == text
    assert len(text.encode()) / len(ids) > 2.8


def test_every_byte_has_a_token() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = ByteLevel.alphabet()
    assert len(letters) == 256
    assert all(TOKENIZER.token_to_id(letter) is not None for letter in letters)


def test_digits_are_single_and_documents_start_with_the_first_token() -> None:
    assert TOKENIZER.encode("x=12345").tokens[-5:] == list("12345")
    assert TOKENIZER.encode("").ids == [0]
    assert TOKENIZER.get_vocab_size() == 4096
    specials = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    assert [TOKENIZER.token_to_id(text) for text in specials] == [0, 1, 2, 3, 4]


@MODELS
def test_tensors_are_those_of_the_config(folder: Path) -> None:
    c = read(folder, "config.json")
    width, heads, groups = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    head, mlp = c["head_dim"], c["intermediate_size"]
    wanted = {"model.embed_tokens.weight": [c["vocab_size"], width], "model.norm.weight": [width]}
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        wanted |= {
            at + "self_attn.q_proj.weight": [heads * head, width],
            at + "self_attn.k_proj.weight": [groups * head, width],
            at + "self_attn.v_proj.weight": [groups * head, width],
            at + "self_attn.o_proj.weight": [width, heads * head],
            at + "mlp.gate_proj.weight": [mlp, width],
            at + "mlp.up_proj.weight": [mlp, width],
            at + "mlp.down_proj.weight": [width, mlp],
            at + "input_layernorm.weight": [width],
            at + "post_attention_layernorm.weight": [width],
        }
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {name: file.get_slice(name).get_shape() for name in file.keys()} == wanted  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    low, high = SIZES[folder.name]
    assert low < sum(int(np.prod(shape)) for shape in wanted.values()) < high


@MODELS
def test_chat_template_renders(folder: Path) -> None:
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(
        (folder / "chat_template.jinja").read_text()
    )
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": " sort 3 1 2\n"}]
    text = template.render(messages=messages, bos_token="<|endoftext|>", add_generation_prompt=True)
    assert text == "<|endoftext|><|system|>\nbe brief<|end|>\n<|user|>\nsort 3 1 2<|end|>\n<|assistant|>\n"
    assert TOKENIZER.encode(text, add_special_tokens=False).ids[:2] == [0, 3]


@MODELS
def test_cards_say_what_was_measured(folder: Path) -> None:
    card = read(folder, "card.json")
    gates = card["gates"]
    assert card["name"] == folder.name
    assert set(gates["at_least"]) | set(gates["at_most"]) <= set(card["figures"])
    readme = (folder / "README.md").read_text()
    assert all(f"| {key} |" in readme for key in card["figures"])
    for key, value in card["figures"].items():
        missed = value < gates["at_least"].get(key, value) or value > gates["at_most"].get(key, value)
        assert not missed or key in readme.split("Not reached:")[-1]


def test_both_models_share_the_tokenizer_and_end_tokens() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        first, second = ((box.path(model) / name).read_text() for model in box.MODELS)
        assert first == second
    assert read(box.path("tiny"), "generation_config.json")["eos_token_id"] == [0, 4]


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="no model called"):
        box.path("large")
