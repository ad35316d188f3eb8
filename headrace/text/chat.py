"""Chat messages to one prompt, by the Jinja template that comes with a model, as Hugging Face does it.

A template is data of strangers: it runs in Jinja's immutable sandbox, with bounds on time and on size. One that
comes with a *request* must not be rendered here: the bounds stop accidents and crude attacks, not patient ones.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from headrace.errors import ConfigError, ModelError, nearest
from headrace.text.tokenizer import Tokenizer, read_config

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
MAX_TEMPLATE_CHARS = 1 << 20
MAX_MESSAGES = 4096
MAX_PROMPT_CHARS = 16 << 20
"""Most characters that one rendering may write, and the largest value that it may build with an operator."""
MAX_SECONDS = 2.0
MAX_LEVELS = 64
"""Deepest nesting of a message."""


class ChatTemplate:
    """One compiled template, with the special tokens that it may name."""

    def __init__(
        self, source: str, tokens: Mapping[str, str] | None = None, *, where: str = "chat template"
    ) -> None:
        """`tokens`: {"bos_token": "<s>", ...}. Raises ModelError if `source` is not a template."""
        self._where = where
        self._tokens = dict(tokens or {})
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(f"{where} has {len(source)} characters; at most {MAX_TEMPLATE_CHARS} are read")
        self.source = source
        self._environment = _Environment()
        with self._valid():
            names = self._environment.parse(source).find_all(nodes.Name)
            self.variables = frozenset(name.name for name in names if name.ctx == "load")
            """Names that it reads: `messages`, `tools`, ..., and some of its own."""

    @contextlib.contextmanager
    def _valid(self) -> Iterator[None]:
        try:
            yield
        except (jinja2.TemplateSyntaxError, RecursionError) as error:
            raise ModelError(f"{self._where} is not a valid template: {error}") from None

    @cached_property
    def _template(self) -> jinja2.Template:
        """Compiled when it is rendered: Jinja computes what is constant in it then, which may take long already."""
        with self._valid():
            return self._environment.compile_template(self.source)

    @classmethod
    def load(cls, folder: str | Path, *, tools: bool = False) -> ChatTemplate:
        """The template of a model folder: chat_template.jinja, or `chat_template` in tokenizer_config.json.

        `tools`: the one for conversations with tools, where a folder has several. Raises ModelError if there is none.
        """
        folder = Path(folder)
        config = read_config(folder / "tokenizer_config.json")
        source, where = _find(folder, config, tools)
        return cls(source, special_tokens(folder, config), where=where)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """The prompt for `messages` ({"role": ..., "content": ...}); it names its special tokens itself.

        `options` are further variables of the template, such as enable_thinking. Raises ConfigError for messages
        of a wrong shape, for what the template itself refuses, and if it takes too long or writes too much.
        """
        values = {
            **self._tokens,
            **options,
            "messages": check_messages(messages),
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._environment.run(self._template, values)
        except ConfigError as error:
            raise ConfigError(f"{self._where}: {error}") from None
        except jinja2.TemplateError as error:
            raise ConfigError(f"{self._where} refuses these messages: {error.message or error}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self._where} fails on these messages: {cause}") from None

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        **options: Any,
    ) -> tuple[str, list[int]]:
        """`render(messages, **options)` and its token ids, in which only the template writes special tokens.

        Where a message, a tool or another option spells one ("<|end|>"), it stays text: nobody can close a turn, or
        open another, by typing. With `continue_final_message` the prompt ends where the last message does, and the
        model goes on with it. `add_special_tokens` begins with what the tokenizer puts before a text.
        """
        messages = check_messages(messages)
        if options.get("documents") and "documents" not in self.variables:
            raise ConfigError(f"{self._where} reads no documents: put them into a message")
        mark, end = secrets.token_hex(16), secrets.token_hex(16)
        commands = [re.escape(text) for text in sorted(tokenizer.commands, key=len, reverse=True) if text]
        if commands:
            # Cut behind its first character, and encoded in two pieces, a special token is not recognised.
            spelled = re.compile("|".join(commands))

            def cut(value: Any) -> Any:
                return _map_texts(value, lambda text: spelled.sub(lambda m: m[0][0] + mark + m[0][1:], text))

            messages = [{**cut(message), "role": message["role"]} for message in messages]
            options = cut(options)
        if continue_final_message:
            messages = [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content'] or ''}{end}"}]
            options["add_generation_prompt"] = False
        text = self.render(messages, **options)
        if continue_final_message and end not in text:
            raise ConfigError(f"{self._where} does not write the last message out: it cannot be continued")
        text = text.rpartition(end)[0] if continue_final_message else text
        pieces = text.split(mark)
        ids = tokenizer.encode("") if add_special_tokens else []
        ids += [i for piece in pieces for i in tokenizer.encode(piece, add_special=False)]
        return "".join(pieces), ids


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as plain dicts, contents as plain text. Raises ConfigError that names the first bad one."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ConfigError('messages must be a list, such as [{"role": "user", "content": "Hello"}]')
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise ConfigError(f"{len(messages)} messages: there must be 1 to {MAX_MESSAGES}")
    return [_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _check_message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ConfigError(f'{where} must be an object with "role" and "content", not {message!r:.40}')
    role = message.get("role")
    if not isinstance(role, str):
        raise ConfigError(f'{where} has no "role"; known: {", ".join(ROLES)}')
    if role not in ROLES:
        raise ConfigError(f"{where}: no role called {role[:40]!r}; {nearest(role[:40], ROLES)}")
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise ConfigError(f'{where} has no "content"')
    return {**message, "content": _text(where, content)}


def _text(where: str, content: Any) -> str | None:
    """The text of a content: a string, or a list of {"type": "text", "text": ...} parts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ConfigError(f"{where}: content must be text, or a list of text parts, not {content!r:.40}")
    for part in content:
        is_text = (
            isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        )
        if not is_text:
            raise ConfigError(f'{where}: a part of content must be {{"type": "text", "text": ...}}')
    return "".join(part["text"] for part in content)


def _map_texts(value: Any, change: Callable[[str], str], levels: int = MAX_LEVELS) -> Any:
    """The same lists and mappings, with every text in them changed, keys too: templates write both as JSON."""
    if isinstance(value, str):
        return change(value)
    if not levels:
        raise ConfigError(f"messages and tools must not be nested more than {MAX_LEVELS} levels deep")
    if isinstance(value, Mapping):
        return {change(str(key)): _map_texts(item, change, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change, levels - 1) for item in value]
    return value


def _find(folder: Path, config: Mapping[str, Any], tools: bool) -> tuple[str, str]:
    """Source of the template, and where it was found."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        if file.stat().st_size > 4 * MAX_TEMPLATE_CHARS:
            raise ModelError(f"{file} has {file.stat().st_size} bytes: too large for a template")
        try:
            return file.read_text(encoding="utf-8"), str(file)
        except UnicodeDecodeError as error:
            raise ModelError(f"{file} is not valid UTF-8: {error.reason} at byte {error.start}") from None
    source = config.get("chat_template") or read_config(folder / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {part.get("name"): part.get("template") for part in source if isinstance(part, Mapping)}
        source = (named.get("tool_use") if tools else None) or named.get("default")
    if not isinstance(source, str):
        raise ModelError(
            f"{folder} has no chat template: put one into chat_template.jinja, or give the model a plain prompt"
            " (headrace run, LLM.generate)"
        )
    return source, f"chat_template of {folder.name}"


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """{"eos_token": "</s>", ...} of a model folder; `config`: its tokenizer_config.json."""
    tokens = {}
    for key, value in {**read_config(folder / "special_tokens_map.json"), **config}.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with Hugging Face's names, bounded operators, and a deadline for loops and macros."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        del self.globals["lipsum"], self.filters["center"]
        self._deadline = float("inf")

    def compile_template(self, source: str) -> jinja2.Template:
        return self.from_string(_Guards().visit(self.parse(source)))

    def run(self, template: jinja2.Template, values: Mapping[str, Any]) -> str:
        # The deadline is the environment's: a rendering in another thread can only move it later.
        self._deadline = time.monotonic() + MAX_SECONDS
        pieces: list[str] = []
        size = 0
        for piece in template.generate(values):
            size += len(piece)
            if size > MAX_PROMPT_CHARS:
                raise ConfigError(f"it wrote more than {MAX_PROMPT_CHARS} characters")
            pieces.append(piece)
            self.tick()
        return "".join(pieces)

    def tick(self) -> str:
        if time.monotonic() > self._deadline:
            raise ConfigError(f"it ran longer than {MAX_SECONDS:g} s")
        return ""

    def join_texts(self, *values: Any) -> str:
        texts = [str(value) for value in values]
        _bound(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):  # "a".ljust(10 ** 12)
            _bound(abs(value) if isinstance(value, int) else 0)
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(count, int):
                    _bound(len(text) * count)
            _bound(_size(left) + _size(right))
        elif operator == "+":
            _bound(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str) and re.search(r"%[^a-zA-Z%]*[\d*]", left):
            raise ConfigError("it formats text to a given width, which could be without bound")
        elif operator == "**" and isinstance(right, int):
            _bound(_size(left) * right)
        return super().call_binop(context, operator, left, right)


class _Guards(NodeTransformer):
    """Makes loops and macros look at the clock, and `~` at its size; no template can name or replace it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("tick", [])]))
        return node

    visit_Macro = visit_CallBlock = visit_For

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("join_texts", node.nodes)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's part for training; here it is nothing."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _call(method: str, arguments: list[nodes.Expr]) -> nodes.Expr:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


def _size(value: Any) -> int:
    """Characters of a text, items of a list, bits of a whole number."""
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, str | list | tuple) else 0


def _bound(size: int) -> None:
    if size > MAX_PROMPT_CHARS:
        raise ConfigError(f"it builds a value larger than {MAX_PROMPT_CHARS} characters")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
