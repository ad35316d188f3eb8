"""Calls of tools: what is one in each format, however it is cut; what a grammar leaves is always one."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import box
from headrace.errors import ConfigError
from headrace.params import Grammar
from headrace.sample.grammars.llguidance import LlGuidance
from headrace.sample.vocabulary import Vocabulary
from headrace.text.tokenizer import Tokenizer
from headrace.text.tool_formats import FORMATS, Format, named, of_template
from headrace.text.tool_grammar import Function, ToolGrammar
from headrace.text.tool_parser import Parsed, ToolParser
from headrace.text.tool_values import as_json

SCHEMAS = {
    "f": {
        "properties": {"c": {"type": "string"}, "x": {"type": ["integer", "null"]}, "z": {"type": "boolean"}}
    },
    "get-it": {},
}
GET = '{"name": "get-it", "arguments": {}}'
GET_BACKWARDS = '{"arguments": {}, "name": "get-it"}'
CALLS = {
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{ARGS}\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get-it\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>get-it<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "mistral_v13": "[TOOL_CALLS]f[ARGS]{ARGS}[TOOL_CALLS]get-it[ARGS]{}",
    "mistral": f'[TOOL_CALLS] [{{"name": "f", "arguments": {{ARGS}}, "id": "abcdefghi"}}, {GET}]',
    "lfm2": "<|tool_call_start|>[f(PYTHON), get-it()]<|tool_call_end|>",
    "granite": f'<|tool_call|>[{{"name": "f", "arguments": {{ARGS}}}}, {GET_BACKWARDS}]',
    "hermes": (
        '<tool_call>\n{"name": "f", "arguments": {ARGS}}\n</tool_call>\n'
        f"<tool_call>{GET_BACKWARDS}</tool_call>"
    ),
    "qwen3_coder": (
        "<tool_call>\n<function=f>\nQWEN</function>\n</tool_call>\n"
        "<tool_call>\n<function=get-it>\n</function>\n</tool_call>"
    ),
    "glm45": "<tool_call>f\nGLM</tool_call>\n<tool_call>get-it\n</tool_call>",
    "llama3_json": '<|python_tag|>{"name": "f", "parameters": {ARGS}}; {"name": "get-it", "parameters": {}}',
    "pythonic": "[f(PYTHON), get-it()]",
}
ARGS = '{"a": [1, -2.5e3, {"b": null}], "c": "é\\n\\"}</tool_call>\\u00e9"}'
PYTHON = """a=[1, -2.5e3, {'b': None}], c='é\\n"}</tool_call>\\xe9'"""
TAGGED = (("a", '[1, -2.5e3, {"b": null}]'), ("c", 'é\n"}</tool_call>é'))
QWEN, GLM = "<parameter={}>\n{}\n</parameter>\n", "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n"
WANT = {"a": [1, -2500.0, {"b": None}], "c": 'é\n"}</tool_call>é'}


def said(form: str) -> str:
    text = CALLS[form].replace("{ARGS}", ARGS).replace("PYTHON", PYTHON)
    for name, tagged in (("QWEN", QWEN), ("GLM", GLM)):
        text = text.replace(name, "".join(tagged.format(*pair) for pair in TAGGED))
    return text


def parse(form: str, pieces: Iterable[str], *, cut: bool = False) -> tuple[str, list[tuple[str, str, bool]]]:
    parser, parsed = ToolParser(named(form), SCHEMAS), Parsed()
    for piece in pieces:
        parsed.take(parser.feed(piece))
    parsed.take(parser.finish(cut=cut))
    return parsed.content, [(call.name, call.arguments, call.complete) for call in parsed.calls]


def test_every_format_has_an_example() -> None:
    assert set(CALLS) == {form.name for form in FORMATS}


@pytest.mark.parametrize("form", CALLS)
def test_calls(form: str) -> None:
    text = said(form)
    for whole in (text, "  " + text + "\n") + ((f"Let me see. {text}",) if named(form).anywhere else ()):
        content, calls = parse(form, [whole])
        assert content == ("Let me see." if "Let" in whole else "")
        assert [(name, json.loads(arguments), complete) for name, arguments, complete in calls] == [
            ("f", WANT, True),
            ("get-it", {}, True),
        ]
        assert parse(form, whole) == (content, calls), "character by character"


@pytest.mark.parametrize("form", CALLS)
def test_any_front_of_a_call(form: str) -> None:
    """Cut anywhere, nothing is lost: what is no call is content, what is one has the front of its arguments."""
    text, (_, whole) = said(form), parse(form, [said(form)])
    for stop in range(len(text)):
        front = text[:stop]
        content, calls = parse(form, [front])
        assert parse(form, front) == (content, calls)
        assert all(complete for *_, complete in calls) and [c[0] for c in calls] == [
            c[0] for c in whole[: len(calls)]
        ]
        if not calls:
            assert content == front
        content, calls = parse(form, [front], cut=True)
        assert parse(form, front, cut=True) == (content, calls)
        for (name, arguments, _), (want, all_arguments, _) in zip(calls, whole, strict=False):
            assert name == want and all_arguments.startswith(arguments)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", "no call at all <tool_cal"),
        ("hermes", "<tool_call> in a sentence"),
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {a: 1}}</tool_call> and on'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\n"}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "name": "f", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 100 + "]" * 100 + "}}</tool_call>"),
        ("hermes", f"<tool_call>{'[' * 9999}"),
        ("llama3_json", 'First text, then {"name": "f", "parameters": {}}'),
        ("llama3_json", '{"name": "Ann", "age": 3}'),
        ("mistral_v13", "[TOOL_CALLS]unknown[ARGS]{}"),
        ("pythonic", "[unknown(a=1)]"),
        ("mistral", "[TOOL_CALLS] is how it begins"),
        ("qwen3_coder", "<tool_call>\n<function=unknown>\n</function>\n</tool_call>"),
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=c>\nno end"),
        ("qwen3_coder", f"<tool_call><function=f>{2 * QWEN.format('c', 'twice')}</function></tool_call>"),
        ("glm45", "<tool_call>f <arg_key>c</arg_key> without <arg_value>x</arg_value>"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[f(a=g())]"),
        ("pythonic", "[f(a=1, a=2)]"),
        ("pythonic", "[f(a=__import__('os'))]"),
        ("pythonic", "[f(a='\\N{DASH}')]"),
        ("pythonic", "[f(a=1 + 1)]"),
    ],
)
def test_no_calls(form: str, text: str) -> None:
    assert parse(form, [text]) == (text, []) == parse(form, text)


def test_what_follows_a_broken_call() -> None:
    good, bad = (
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {!}}</tool_call>',
    )
    assert parse("hermes", [f"a {good} b {bad} c {good}"]) == (f"a  b {bad} c", [("f", "{}", True)] * 2)


WORDS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<",
        "[TOOL_CALLS]",
        "[",
        "]",
        "{",
        "}",
        '"name"',
        '"arguments"',
        '"parameters"',
        ":",
    ]
    + [
        '"f"',
        "f",
        "(",
        ")",
        "=",
        ",",
        " ",
        "\n",
        '"',
        "'",
        "\\",
        "\\u00e9",
        "1",
        "true",
        "None",
        "é",
        '{"name": "f", ',
    ]
    + [
        '"arguments": {',
        '"parameters": {',
        "[ARGS]",
        "<|python_tag|>",
        "; ",
        "<tool",
        '{"a": [1, "x"]}',
        "}}",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from(sorted(CALLS)),
    words=st.lists(WORDS, max_size=25),
    front=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    cut=st.booleans(),
)
def test_cuts_do_not_matter(form: str, words: list[str], front: bool, cuts: list[int], cut: bool) -> None:
    text = (said(form)[: sum(cuts) % 150] if front else "") + "".join(words)
    places = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert parse(form, pieces, cut=cut) == parse(form, [text], cut=cut) == parse(form, text, cut=cut)


HOSTILE = [
    "<tool_call>",
    "<",
    '<tool_call>{"name": "f", "arguments": {"a": "',
    "<tool_call>{",
    " ",
    "\\",
    "[TOOL_CALLS] [{",
    "\n\t",
]
HOSTILE += ["<parameter=c>", "</parameter", "\n</function>", "<parameter=c>x</parameter>"]
HOSTILE += ['[f(a="', "[f(a=[", '{"name": "f", "parameters": {"a":', "<tool_call" * 3, '"']


@pytest.mark.parametrize("form", ["hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder"])
def test_hostile_text_takes_linear_time(form: str) -> None:
    """By the processor's clock, with a wide margin: quadratic would be 64 times as long."""

    def seconds(text: str) -> float:
        begin = time.process_time()
        parse(form, [text])
        return time.process_time() - begin

    front = said(form)[:60]
    for unit in HOSTILE:
        small = min(seconds(front + unit * (20_000 // len(unit))) for _ in range(2))
        large = seconds(front + unit * (160_000 // len(unit)))
        assert large < 24 * small + 0.1, f"{unit!r}: {small:.3f} s, and 8 times as much {large:.3f} s"


@pytest.mark.slow
@pytest.mark.parametrize("front", ["", '<tool_call>{"name": "f", "arguments": {"a": "'], ids=["text", "call"])
def test_so_do_single_characters(front: str) -> None:
    def seconds(count: int) -> float:
        begin = time.process_time()
        parse("hermes", front + "a b\n" * (count // 4) if not front else front + "a" * count)
        return time.process_time() - begin

    small = min(seconds(10_000) for _ in range(2))
    large = seconds(320_000)
    assert large < 90 * small, f"{small:.3f} s, and 32 times as much {large:.3f} s"


TEMPLATES = {
    "hermes": 'return <tool_call>\\n{"name": ...}',
    "llama3_json": '{"name": function name, "parameters": dictionary of argument name and its value}',
    "mistral": '{{- "[TOOL_CALLS] [" }}',
    "mistral_v13": "{{- '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments }}",
    "deepseek_v3": "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + '<｜tool▁sep｜>' + '\\n' + '```json'",
    "deepseek_v31": "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>'",
    "granite": "write <|tool_call|> followed by a JSON list",
    "lfm2": "<|tool_call_start|>",
    "pythonic": "in the format of [func_name1(params_name1=params_value1, params_name2=params_value2...)]",
    "qwen3_coder": "<tool_call>\n<function=example>\n<parameter=a>",
    "glm45": "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>",
    "": "<function_calls>\n<invoke name=example>",
}


@pytest.mark.parametrize("form", TEMPLATES)
def test_the_template_tells(form: str) -> None:
    found = of_template(TEMPLATES[form])
    assert (found.name if found else "") == form


# ---- grammars ----

FUNCTIONS = [
    Function(
        "f",
        {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/I"}, "y": {"type": "string"}, "z": {"type": "boolean"}},
            "required": ["x"],
            "$defs": {"I": {"type": "integer"}},
        },
    ),
    Function("get-it", {"type": "object", "properties": {}}),
]


class Writer:
    """A model that writes whatever a grammar lets it, at random."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer(box.path("tiny-draft"))
        self._compiler = LlGuidance().start(Vocabulary(self.tokenizer, self.tokenizer.size, (0,)))
        self.special = self.tokenizer.id_of("<|assistant|>")

    def write(self, grammar: str, rng: random.Random, most: int) -> tuple[list[int], bool]:
        """Tokens, and whether it came to an end."""
        matcher, ids = self._compiler.compile(Grammar("lark", grammar)), []
        for _ in range(most):
            bits = numpy.unpackbits(numpy.frombuffer(matcher.mask(), numpy.uint8), bitorder="little")
            allowed = numpy.flatnonzero(bits)
            if bits[0] and (rng.random() < 0.5 or len(allowed) == 1):
                return ids, True
            token = int(rng.choice(allowed[allowed != 0]))
            matcher.accept(token)
            ids.append(token)
        return ids, False

    def follows(self, grammar: str, text: str) -> bool:
        matcher = self._compiler.compile(Grammar("lark", grammar))
        for token in self.tokenizer.encode_bytes(text.encode()):
            if not matcher.mask()[token >> 3] >> (token & 7) & 1:
                return False
            matcher.accept(token)
        return bool(matcher.mask()[0] & 1)


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer()


def check(name: str, arguments: str) -> None:
    value: dict[str, Any] = json.loads(arguments)
    if name == "get-it":
        assert value == {}
    else:
        assert (
            isinstance(value["x"], int)
            and set(value) <= {"x", "y", "z"}
            and isinstance(value.get("z", True), bool)
        )


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_what_a_grammar_leaves_is_a_call(form: Format, special: bool, writer: Writer) -> None:
    mark = form.triggers[0]
    known = {mark: writer.special} if special and len(mark) > 1 else {}
    rng, ended = random.Random(0), 0
    for one in (True, False):
        grammar = ToolGrammar(form, known).only_calls(FUNCTIONS, one=one)
        for _ in range(6):
            ids, end = writer.write(grammar, rng, 300)
            text = writer.tokenizer.decode(ids, skip_special=False)
            if known:
                text = text.replace("<|assistant|>", mark)
            content, calls = parse(form.name, [text], cut=not end)
            assert not (content and end) and (len(calls) == 1 or not (one and end)), text
            for name, arguments, complete in calls:
                assert complete or not end
                if complete:
                    check(name, arguments)
            ended += end
    assert ended >= 6


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_text_stays_free_until_a_call(form: Format, writer: Writer) -> None:
    made = ToolGrammar(form, {})
    many, one = (made.text_or_calls(FUNCTIONS, one=one) for one in (False, True))
    calls = said(form.name).replace(ARGS, '{"x": 3}').replace(PYTHON, "x=3")
    for tagged in (QWEN, GLM):
        calls = calls.replace("".join(tagged.format(*pair) for pair in TAGGED), tagged.format("x", 3))
    calls = calls.replace(GET_BACKWARDS, GET).replace(', "id": "abcdefghi"', "")  # as a grammar writes them
    for text in ("", "Hello [1] <b> é\n\n", calls) + ((f"Let me see. {calls}",) if form.anywhere else ()):
        assert writer.follows(many, text), text
    assert not writer.follows(many, calls.replace("3", '"3"')), "arguments of another type"
    assert not writer.follows(many, calls.replace("get-it", "got-it")), "another function"
    assert not writer.follows(one, calls), "two calls"


@pytest.mark.parametrize(
    ("text", "schema", "want"),
    [
        ("\n7\n", {"type": "string"}, "7"),
        ("\n\n a \n\n", {"type": "string"}, "\n a \n"),
        (" 7 ", {"type": "integer"}, 7),
        ("7.5", {"type": "integer"}, "7.5"),
        ("7", {"type": "number"}, 7),
        ("True", {"type": "boolean"}, True),
        ("yes", {"type": "boolean"}, "yes"),
        ("{'a': None}", {"type": "object"}, {"a": None}),
        ("null", {"type": ["string", "null"]}, None),
        ("7", {"type": ["string", "null"]}, "7"),
        ("[1, 2]", None, [1, 2]),
        ("[1, 2] and on", None, "[1, 2] and on"),
        ("True", {}, "True"),
        ("[" * 100 + "]" * 100, {"type": "array"}, "[" * 100 + "]" * 100),
        ("", {"type": "integer"}, ""),
    ],
)
def test_what_plain_text_says(text: str, schema: Any, want: Any) -> None:
    assert json.loads(as_json(text, schema)) == want


def test_strings_that_are_written_plainly(writer: Writer) -> None:
    """Any text up to the mark behind it, one of some, or refused."""
    made = ToolGrammar(named("qwen3_coder"), {})

    def grammar(**schema: Any) -> str:
        function = Function("f", {"type": "object", "properties": {"a": {"type": "string", **schema}}})
        return made.only_calls([function], one=True)

    call = "<tool_call>\n<function=f>\n<parameter=a>\n{}\n</parameter>\n</function>\n</tool_call>"
    for text in ("", "x", "two\n\nlines", '"quoted" </parameter'):
        assert writer.follows(grammar(), call.format(text)), text
        assert writer.follows(grammar(enum=["x", "y"]), call.format(text)) == (text == "x")
        assert writer.follows(grammar(maxLength=2), call.format(text)) == (len(text) < 2)
    with pytest.raises(ConfigError, match="the argument a is a string with pattern"):
        grammar(pattern="a+")


def test_arguments_that_python_cannot_name() -> None:
    function = Function("f", {"type": "object", "properties": {'a"': {}}})
    with pytest.raises(ConfigError, match="cannot be written"):
        ToolGrammar(named("pythonic"), {}).only_calls([function], one=True)
