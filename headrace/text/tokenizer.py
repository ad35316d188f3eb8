"""Text to token ids and back, from the tokenizer.json of a model folder.

Decoding is defined on bytes: every token stands for fixed bytes, and a text is the UTF-8 reading of all of them.
So a token can be decoded alone, a text while it grows, and what is not UTF-8 loses nothing until it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from headrace.errors import ConfigError, ModelError

MAX_FILE_BYTES = 512 << 20
"""Largest tokenizer.json that is read; the largest in use are about 35 MB."""
MAX_CONFIG_BYTES = 16 << 20

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")  # what "surrogateescape" makes of bytes that are not UTF-8


class Tokenizer:
    """The vocabulary of one model. Reading it does not change it, so one object serves all requests.

    Understood are byte-level vocabularies (GPT-2, Llama 3, Qwen) and SentencePiece-style ones (Llama 2, Mistral,
    Gemma: metaspace with byte fallback). Raises ModelError for anything else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._core, file = _parse(self.folder / "tokenizer.json")
        self.config = read_config(self.folder / "tokenizer_config.json")
        self._rules = _Rules(self.folder, file.decoder)
        added = self._core.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self.size: int = self._core.get_vocab_size(with_added_tokens=True)
        """Entries of the vocabulary, added tokens included; a model's embedding may have more rows."""
        self.bos = self._named("bos_token")
        self.eos = self._named("eos_token")
        special = {i for i, token in added.items() if token.special}
        self.special = frozenset(special | {i for i in (self.bos, self.eos) if i is not None})
        """Ids that steer the model and are not text."""
        self.commands = frozenset(self._added[i] for i in special)
        """Spellings of special tokens that `encode` understands in a text."""
        self._prepend_bos = file.post_processor is None and self.config.get("add_bos_token") is True
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; never truncated.

        `add_special` adds what the model's own post-processor adds (for many, a beginning-of-sequence token).
        With `parse_special` off, "<|eos|>" in the text is seven characters, not a command: for text of strangers.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"lone surrogate at character {error.start}"
            raise ConfigError(
                f"the text is not valid Unicode ({where}): pass text that was decoded properly"
            ) from None
        core = self._core if parse_special else self._plain
        ids: list[int] = core.encode(text, add_special_tokens=add_special).ids
        if add_special and self._prepend_bos and self.bos is not None:
            ids.insert(0, self.bos)
        return ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids whose bytes are exactly `data`: UTF-8 runs as text, every other byte as its byte token.

        Raises ConfigError if the vocabulary lacks a byte token that is needed.
        """
        ids: list[int] = []
        for run in _NOT_UTF8.split(data.decode("utf-8", "surrogateescape")):
            raw = run.encode("utf-8", "surrogateescape")
            if not raw:
                continue
            found = [] if _NOT_UTF8.match(run) else self.encode(run, add_special=False, parse_special=False)
            # Normalisation and dummy prefixes change some texts: those go byte by byte too.
            ids += found if found and self.decode_bytes(found) == raw else [self._byte_token(b) for b in raw]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, start: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. `start`: as in `decode_bytes`."""
        data = self.decode_bytes(ids, skip_special=skip_special, start=start)
        return data.decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False, start: bool = False) -> bytes:
        """Bytes of `ids`. `start`: they begin a text, so SentencePiece's space before it is dropped."""
        skipped = self.special if skip_special else ()
        data = b"".join([self.bytes_of(i) for i in ids if i not in skipped])
        return data.removeprefix(self.lead) if start else data

    def bytes_of(self, token: int) -> bytes:
        """Bytes that one token stands for; none for an id that the vocabulary leaves empty."""
        if token not in self._bytes:
            if token < 0:
                raise ConfigError(f"{token} is not a token id")
            added = self._added.get(token)
            data = (
                self._rules.bytes_of(self._core.id_to_token(token) or "") if added is None else added.encode()
            )
            self._bytes[token] = data
        return self._bytes[token]

    @property
    def lead(self) -> bytes:
        """What the vocabulary puts before a text and decoding takes away: b" " or nothing."""
        return self._rules.lead

    def id_of(self, piece: str) -> int | None:
        """Id of a vocabulary entry or added token, by its exact spelling."""
        found: int | None = self._core.token_to_id(piece)
        return found

    def _named(self, key: str) -> int | None:
        value = self.config.get(key)
        text = value.get("content") if isinstance(value, Mapping) else value
        return self.id_of(text) if isinstance(text, str) else None

    def _byte_token(self, byte: int) -> int:
        token = self.id_of(self._rules.piece_of(byte))
        if token is None:
            raise ConfigError(f"{self.folder.name}: its vocabulary has no token for byte 0x{byte:02X}")
        return token

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same vocabulary, blind to special tokens in the text."""
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        core.encode_special_tokens = True
        return core


class _Rules:
    """How the bytes of a piece are spelled, read from the `decoder` of tokenizer.json."""

    def __init__(self, folder: Path, decoder: dict[str, Any] | None) -> None:
        self.byte_level = self.byte_fallback = False
        self.lead = b""
        self.replacements: list[tuple[str, str]] = []
        for step in _flatten(decoder):
            if not self._take(step):
                raise ModelError(
                    f"{folder / 'tokenizer.json'}: decoder {step.get('type')!r} is not supported: "
                    "byte-level and SentencePiece-style vocabularies are"
                )

    def _take(self, step: Mapping[str, Any]) -> bool:
        match step:
            case {"type": "ByteLevel"}:
                self.byte_level = True
            case {"type": "ByteFallback"}:
                self.byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self.replacements.append((old, new))
            case {"type": "Strip", "content": str(char), "start": 0 | 1 as count, "stop": 0}:
                self.lead = char.encode() * count
            case {"type": "Metaspace", "replacement": str(char)}:
                self.replacements.append((char, " "))
                self.lead = b"" if step.get("prepend_scheme") == "never" else b" "
            case _:
                return False
        return True

    def bytes_of(self, piece: str) -> bytes:
        if self.byte_level and all(char in _BYTE_OF for char in piece):
            return bytes(_BYTE_OF[char] for char in piece)
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        return piece.encode()

    def piece_of(self, byte: int) -> str:
        return _CHAR_OF[byte] if self.byte_level else f"<0x{byte:02X}>"


class _File(msgspec.Struct):
    """The parts of tokenizer.json that `tokenizers` does not tell about."""

    decoder: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def read_config(path: Path) -> dict[str, Any]:
    """A small JSON object, such as tokenizer_config.json; {} if there is no such file. Raises ModelError."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(_read(path, MAX_CONFIG_BYTES), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not a JSON object: {error}") from None


def _read(path: Path, limit: int) -> bytes:
    if not path.is_file():
        raise ModelError(_missing(path))
    size = path.stat().st_size
    if size > limit:
        raise ModelError(f"{path} has {size} bytes; at most {limit} are read")
    return path.read_bytes()


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} is not a folder: name a model folder, or a model in the box (tiny, tiny-draft)"
    if (path.parent / "tokenizer.model").is_file():
        return (
            f"{path.parent} has tokenizer.model but no {path.name}: convert it once with "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return f"{path.parent} has no {path.name}: it is not a complete model folder"


def _parse(path: Path) -> tuple[tokenizers.Tokenizer, _File]:
    data = _read(path, MAX_FILE_BYTES)
    try:
        core = tokenizers.Tokenizer.from_buffer(data)
        file = msgspec.json.decode(data, type=_File)
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{path} cannot be read: {error}") from None
    core.no_truncation()
    core.no_padding()
    return core, file


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return [{"type": None}]
    if decoder.get("type") == "Sequence":
        return [step for part in decoder.get("decoders", []) for step in _flatten(part)]
    return [decoder]


def _byte_chars() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other 68 are U+0100 onward."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


_CHAR_OF = _byte_chars()
_BYTE_OF = {char: byte for byte, char in _CHAR_OF.items()}


def check_same_vocabulary(need: str, ours: Tokenizer, theirs: Tokenizer, text: str) -> None:
    """Two models that read each other's tokens need one vocabulary: `need` says who. Raises ConfigError if they have
    different sizes, or split the text differently."""
    if ours.size != theirs.size or ours.encode(text) != theirs.encode(text):
        raise ConfigError(
            f"{need}: {ours.folder.name} has {ours.size} tokens, {theirs.folder.name} {theirs.size}, and they split "
            "text differently"
        )
