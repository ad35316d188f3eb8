from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError, ModelError
from headrace.text.tokenizer import Tokenizer

TEXTS = ["hello world", " two  spaces", "東京 🎉x", "", "tab\tand\nline", "naïve café\u0301"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", [*TEXTS, "<|end|> </s><think>"])
def test_decoding_agrees_with_the_library(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer._core.decode(ids)
    assert tokenizer.decode(ids, skip_special=False) == tokenizer._core.decode(ids, skip_special_tokens=False)


def test_the_post_processor_decides_about_the_first_token(tokenizer: Tokenizer) -> None:
    with_special, without = tokenizer.encode("hello"), tokenizer.encode("hello", add_special=False)
    assert with_special == [tokenizer.bos, *without]


def test_special_tokens_in_text_of_strangers_are_characters(plain: Tokenizer) -> None:
    assert plain.eos in plain.encode("a<|end|>b")
    ids = plain.encode("a<|end|>b", parse_special=False, add_special=False)
    assert plain.eos not in ids and plain.decode(ids) == "a<|end|>b"
    assert plain.eos in plain.encode("a<|end|>b")  # the two vocabularies do not disturb each other


def test_special_tokens_are_not_text(plain: Tokenizer) -> None:
    ids = plain.encode("a<|end|>b<think>")
    assert plain.decode(ids) == "ab<think>"
    assert plain.decode(ids, skip_special=False) == "<|begin|>a<|end|>b<think>"


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_come_back(tokenizer: Tokenizer, data: bytes) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_all_bytes_and_broken_characters_come_back(tokenizer: Tokenizer) -> None:
    data = bytes(range(256)) + "東".encode()[:2] + "京 ok ".encode() + b"\xff\xfe" + "🎉".encode()
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_valid_text_is_encoded_normally(plain: Tokenizer) -> None:
    assert plain.encode_bytes(b"hello world") == plain.encode("hello world", add_special=False)
    assert len(plain.encode_bytes(b"The quick\xffThe quick")) == 2 * len(plain.encode_bytes(b"The quick")) + 1


def test_a_continuation_keeps_its_space(sentencepiece_folder: Path) -> None:
    tokenizer = Tokenizer(sentencepiece_folder)
    ids = tokenizer.encode("the dog", add_special=False)
    assert tokenizer.decode(ids) == "the dog"
    assert tokenizer.decode(ids, start=False) == " the dog"


def test_ids_beyond_the_vocabulary(plain: Tokenizer) -> None:
    assert plain.bytes_of(plain.size + 5) == b""  # an embedding may be padded
    with pytest.raises(ConfigError, match="-1"):
        plain.bytes_of(-1)


def test_a_lone_surrogate_is_refused(plain: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="surrogate at character 2"):
        plain.encode("ok\ud800")


def test_truncation_and_padding_of_the_file_are_ignored(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(byte_level_folder, tmp_path / "m")
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(state))
    assert len(Tokenizer(folder).encode("a long text " * 20)) > 100


def test_without_a_post_processor_the_configuration_decides(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(byte_level_folder, tmp_path / "m")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(state))
    assert Tokenizer(folder).encode("a")[0] != Tokenizer(folder).bos
    config = {**json.loads((folder / "tokenizer_config.json").read_text()), "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer(folder).encode("a")[0] == Tokenizer(folder).bos


def test_folders_that_are_no_model(byte_level_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        Tokenizer(tmp_path / "absent")
    with pytest.raises(ModelError, match="no tokenizer.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelError, match="convert it once"):
        Tokenizer(tmp_path)
    for text in ("", "{", "[1]", '{"model": {"type": "Nonsense"}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be read"):
            Tokenizer(tmp_path)
    shutil.copy(byte_level_folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}])
def test_other_decoders_are_refused(byte_level_folder: Path, tmp_path: Path, decoder: dict | None) -> None:
    folder = shutil.copytree(byte_level_folder, tmp_path / "m")
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**state, "decoder": decoder}))
    with pytest.raises(ModelError, match="decoder .* is not supported"):
        Tokenizer(folder)
