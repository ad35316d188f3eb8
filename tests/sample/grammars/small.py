"""A vocabulary of some dozen tokens, so small that every token can be judged at every step; and forms to judge by."""

from __future__ import annotations

import json
from dataclasses import dataclass

import regex

from headrace.params import Grammar
from headrace.sample.vocabulary import Vocabulary

EOS = (0, 3)
TEXTS = {
    0: b"<end>",
    1: b"<begin>",
    3: b"<turn>",
    4: b"",  # an entry that stands for nothing
}
SINGLES = [bytes([byte]) for byte in b'abcdeflrstuxn-012789{}[]":, \n\t\\']
HALVES = [b"\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac", b"\xe2\x82", b"\xc3\xa9", b"a\xe2", b"\xacb"]
"""Of e-acute and the euro sign: tokens that are no UTF-8 by themselves."""
LONG = [b"ab", b"abc", b"red", b"re", b"true", b'":', b'{"', b'"ab"', b'"c"', b"  ", b'"}', b"12", b"aa"]
TWICE = [b"ab", b"b"]
"""Bytes that two tokens share."""


class Words:
    """Stands for a tokenizer: the longest token that fits comes first. Token 2 stands for nothing."""

    bos, eos, special = 1, 0, frozenset({0, 1, 3})

    def __init__(self, singles: list[bytes] = SINGLES) -> None:
        self._texts = dict(TEXTS)
        for text in [*singles, *HALVES, *LONG, *TWICE]:
            self._texts[len(self._texts) + 1] = text  # token 2 is left out
        self.size = max(self._texts) + 1
        ids = {text: i for i, text in reversed(self._texts.items()) if i not in self.special and text}
        self._by_length = sorted(ids.items(), key=lambda item: -len(item[0]))

    def bytes_of(self, token: int) -> bytes:
        return self._texts.get(token, b"")

    def encode_bytes(self, data: bytes) -> list[int]:
        ids: list[int] = []
        while data:
            text, token = next(item for item in self._by_length if data.startswith(item[0]))
            ids.append(token)
            data = data[len(text) :]
        return ids


def vocabulary(more: int = 3, eos: tuple[int, ...] = EOS, singles: list[bytes] = SINGLES) -> Vocabulary:
    """With some logits more than the tokenizer has tokens, as padded models have."""
    words = Words(singles)
    return Vocabulary(words, words.size + more, eos)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Form:
    """A grammar, and the same written as a regular expression over bytes, which says what it should allow."""

    grammar: Grammar
    twin: str

    def fits(self, text: bytes) -> bool:
        """Whether some text of this form starts so."""
        return self._match(text, partial=True)

    def complete(self, text: bytes) -> bool:
        return self._match(text, partial=False)

    def _match(self, text: bytes, *, partial: bool) -> bool:
        return regex.fullmatch(self.twin.encode(), text, partial=partial) is not None


def _schema(**schema: object) -> Grammar:
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))


_S = r"[ \n\t\r]{0,1}"
"""Space that the members are told to allow."""

FORMS = {
    "regex": Form(Grammar("regex", "[a-c]{1,3}-(é|€|re)?"), "[a-c]{1,3}-(?:é|€|re)?"),
    "repeated": Form(Grammar("regex", "(ab|b)+"), "(?:ab|b)+"),
    "forced": Form(Grammar("regex", "abctrue-€(red|rea)12"), "abctrue-€(?:red|rea)12"),
    "choice": Form(Grammar("choice", json.dumps(["red", 'a"\n\\b', "re", "€é"])), 'red|a"\n\\\\b|re|€é'),
    "lark": Form(Grammar("lark", 'start: "a" pair\npair: "[" pair? "]"'), r"a(?P<pair>\[(?&pair)?\])"),
    "object": Form(
        _schema(
            type="object",
            properties={"ab": {"type": "boolean"}, "c": {"enum": ["é", "a"]}},
            required=["ab"],
            additionalProperties=False,
        ),
        r'\{S"ab"S:S(?:true|false)(?:S,S"c"S:S"(?:é|a)")?S\}'.replace("S", _S),
    ),
    "array": Form(
        _schema(type="array", items={"type": "integer", "minimum": 7, "maximum": 12}, maxItems=3),
        r"\[S(?:N(?:S,SN){0,2}S)?\]".replace("S", _S).replace("N", "(?:[789]|1[012])"),
    ),
    "nested": Form(
        _schema(
            **{"$ref": "#/$defs/node"},
            **{"$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}},
        ),
        r"(?P<n>\[S(?:(?&n)(?:S,S(?&n))?S)?\])".replace("S", _S),
    ),
    "string": Form(_schema(type="string", pattern="^a[bc]{1,2}(€|x)$"), '"a[bc]{1,2}(?:€|x)"'),
}
"""Name -> form. Written for both members: of the texts that fit a schema, they allow those with the properties in
the schema's order."""
