"""`headrace chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.commands.flags import AsJson, Quiet
from headrace.commands.output import note, write, write_json
from headrace.commands.start import start
from headrace.config import EngineConfig
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.llm import LLM
    from headrace.params import SamplingParams

HELP = "/exit ends, /reset forgets the conversation, Ctrl-C stops an answer"


def chat(
    config: EngineConfig,
    sampling: dict[str, Any],
    system: Annotated[str | None, typer.Option(help="System message before the conversation.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Talk in the terminal; without one, each line of standard input is a turn."""
    with start(config, quiet) as llm:
        params = llm.sampling(**sampling)
        if params.n > 1:
            raise ConfigError("chat gives one answer per turn: leave --n at 1, or use headrace run")
        _ = llm.template  # a model without one is refused before the first question
        note(HELP, quiet or not sys.stdin.isatty())
        Conversation(llm, params, system, as_json).run()


class Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, as_json: bool) -> None:
        self._llm = llm
        self._params = params
        self._as_json = as_json
        self._start = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._start)

    def run(self) -> None:
        """Reads turns until the end of input or /exit."""
        while (line := _read_turn()) is not None:
            if line == "/exit":
                return
            if line == "/reset":
                self.messages = list(self._start)
                note("the conversation is forgotten")
            elif line.startswith("/"):
                note(f"no command {line!r}: {HELP}")
            elif line:
                self.turn(line)

    def turn(self, line: str) -> None:
        """One question and its answer. What cannot be asked leaves the conversation as it was."""
        asked = [*self.messages, {"role": "user", "content": line}]
        try:
            answer = self._answer(asked)
        except ConfigError as error:
            if not sys.stdin.isatty():
                raise
            note(f"{error}; nothing was asked. /reset starts over")
            return
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    def _answer(self, messages: list[dict[str, str]]) -> str:
        if self._as_json:
            from headrace.commands.run import to_json

            [output] = self._llm.chat(messages, self._params)
            write_json(
                to_json(output, self._params.logprobs is not None, self._params.prompt_logprobs is not None)
            )
            return output.text
        pieces: list[str] = []
        reason = None
        try:
            for chunk in self._llm.stream_chat(messages, self._params):
                pieces.append(chunk.text)
                reason = chunk.finish_reason
                write(chunk.text)
        except KeyboardInterrupt:
            reason = "cancelled"
        write("\n")
        if reason == "length":
            note("the answer was cut: it reached --max-tokens or the end of the context")
        return "".join(pieces)


def _read_turn() -> str | None:
    """One line without its end; None at the end of input. Raises ConfigError if it is not UTF-8."""
    if sys.stdin is None:
        return None
    if sys.stdin.isatty():
        try:
            sys.stderr.write("> ")
            return input().strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return None
    data = sys.stdin.buffer.readline()
    try:
        return data.decode("utf-8").strip() if data else None
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not valid UTF-8: {error.reason}") from None
