"""How families of models write a call of a tool, one line of a table each.

    answer   text [OPEN call (BETWEEN call)* CLOSE] text ...
    call     BEFORE body AFTER
    body     object   {"name": "f", "arguments": {...}}
             named    f MIDDLE {...}
             python   f(a=1, b="x")
             tagged   f MIDDLE (KEY name KEY' VALUE text VALUE')*

Blanks in the texts of a format may be any white space, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Format:
    """One family's way; where vLLM's --tool-call-parser knows it, under the same name."""

    name: str
    body: Literal["object", "named", "python", "tagged"]
    marks: tuple[str, ...]
    """A chat template that contains all of these is of this family..."""
    unless: tuple[str, ...] = ()
    """...unless it contains one of these."""
    open: str = ""
    before: str = ""
    middle: str = ""
    after: str = ""
    key: tuple[str, str] = ("", "")
    """What stands before and after the name of a tagged argument."""
    value: tuple[str, str] = ("", "")
    """The same of what it is."""
    between: str = ""
    close: str = ""
    bare: bool = False
    """`open` may be missing."""
    anywhere: bool = True
    """Calls may follow text; otherwise an answer is calls from its first character on, or it has none."""
    keys: tuple[str, ...] = ("arguments",)
    """How a body's arguments may be called; the first is the family's own."""
    short_ids: bool = False
    """The template takes no ids of calls but those of nine letters and digits."""
    text_arguments: bool = False
    """The template expects the arguments of earlier calls as JSON text, not as an object."""

    @property
    def triggers(self) -> tuple[str, ...]:
        """Texts of which one begins every run of calls."""
        words = f"{self.open} {self.before}".split()[:1]
        if not words or self.bare:
            words.append("{")
        return tuple(words)

    @property
    def literals(self) -> str:
        """All its texts."""
        ends = (self.open, self.before, self.middle, self.after, self.between, self.close)
        return " ".join((*ends, *self.key, *self.value))


FORMATS = (
    Format(
        name="deepseek_v3",
        body="named",
        marks=("<｜tool▁calls▁begin｜>", "```json"),
        open="<｜tool▁calls▁begin｜>",
        before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        middle="\n```json\n",
        after="\n```<｜tool▁call▁end｜>",
        between="\n",
        close="<｜tool▁calls▁end｜>",
        text_arguments=True,
    ),
    Format(
        name="deepseek_v31",
        body="named",
        marks=("<｜tool▁calls▁begin｜>",),
        open="<｜tool▁calls▁begin｜>",
        before="<｜tool▁call▁begin｜>",
        middle="<｜tool▁sep｜>",
        after="<｜tool▁call▁end｜>",
        close="<｜tool▁calls▁end｜>",
        text_arguments=True,
    ),
    Format(
        name="mistral_v13",
        body="named",
        marks=("[TOOL_CALLS]", "[ARGS]"),
        unless=("[CALL_ID]",),
        before="[TOOL_CALLS]",
        middle="[ARGS]",
        short_ids=True,
    ),
    Format(
        name="mistral",
        body="object",
        marks=("[TOOL_CALLS]",),
        unless=("[CALL_ID]",),
        open="[TOOL_CALLS] [",
        between=", ",
        close="]",
        short_ids=True,
    ),
    Format(
        name="lfm2",
        body="python",
        marks=("<|tool_call_start|>",),
        open="<|tool_call_start|> [",
        between=", ",
        close="] <|tool_call_end|>",
    ),
    Format(
        name="granite",
        body="object",
        marks=("<|tool_call|>",),
        open="<|tool_call|> [",
        between=", ",
        close="]",
    ),
    Format(
        name="hermes",
        body="object",
        marks=("<tool_call>",),
        unless=("<function=", "<arg_key>"),
        before="<tool_call>\n",
        after="\n</tool_call>",
        between="\n",
    ),
    Format(
        name="qwen3_coder",
        body="tagged",
        marks=("<tool_call>", "<function=", "<parameter="),
        before="<tool_call>\n<function=",
        middle=">\n",
        key=("<parameter=", ">"),
        value=("", "</parameter>"),
        after="\n</function>\n</tool_call>",
        between="\n",
    ),
    Format(
        name="glm45",
        body="tagged",
        marks=("<tool_call>", "<arg_key>"),
        before="<tool_call>",
        middle="\n",
        key=("<arg_key>", "</arg_key>"),
        value=("\n<arg_value>", "</arg_value>"),
        after="\n</tool_call>",
        between="\n",
    ),
    Format(
        name="llama3_json",
        body="object",
        marks=('"parameters": dictionary of argument name',),
        open="<|python_tag|>",
        bare=True,
        between="; ",
        keys=("parameters", "arguments"),
        anywhere=False,
    ),
    Format(
        name="pythonic",
        body="python",
        marks=("[func_name1(params_name1=",),
        open="[",
        between=", ",
        close="]",
        anywhere=False,
    ),
)
"""In the order in which a template is compared with them."""


def named(name: str) -> Format:
    """The format called so. Raises ConfigError."""
    for form in FORMATS:
        if form.name == name:
            return form
    known = [form.name for form in FORMATS]
    raise ConfigError(f"--tool-call-parser: no format called {name!r}; {nearest(name, known)}")


def of_template(source: str) -> Format | None:
    """The format of the family that a chat template is of; None if it is of none of these."""
    for form in FORMATS:
        if all(mark in source for mark in form.marks) and not any(mark in source for mark in form.unless):
            return form
    return None
