"""The model's chat template, rendered in a process of its own: it came with a model, from strangers.

The sandbox bounds what a template may reach and most of what it may do; what it does inside one call of a filter only
a process that can be killed bounds. The process encodes what it rendered as well, so neither holds up anybody.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.errors import ConfigError
from headrace.server.killable import Killable, Killed, answering
from headrace.text.chat import MAX_SECONDS

_GRACE_S = 0.4
"""Beyond what the template itself may take: to render and encode short messages."""
_BYTES_PER_S = 500_000
"""At which long ones are encoded, at least."""
_MEMORY = 1 << 30
"""Bytes: encoding four megabytes takes most of it."""


class Templates:
    """Renders chats; belongs to one event loop."""

    def __init__(self, folder: str) -> None:
        """folder: the model's."""
        self._process = Killable("headrace.server.templates", folder)
        self._process.warm()

    async def encode(self, messages: Sequence[dict[str, Any]], **options: Any) -> tuple[str, list[int]]:
        """What ChatTemplate.encode makes of them. Raises ConfigError, also if it takes too long."""
        try:
            question = msgspec.json.encode([messages, options])
        except RecursionError:
            raise ConfigError("the messages are nested too deeply") from None
        seconds = MAX_SECONDS + _GRACE_S + len(question) / _BYTES_PER_S
        try:
            answer = await self._process.ask(msgspec.Raw(question), seconds)
        except Killed:
            raise ConfigError(
                f"the model's chat template took longer than {MAX_SECONDS:g} s, or too much memory, for these messages"
            ) from None
        if isinstance(answer, str):
            raise ConfigError(answer)
        text, ids = answer
        return text, ids

    async def close(self) -> None:
        """Ends the process."""
        await self._process.close()


def main() -> None:
    """The other process."""
    from headrace.text.chat import ChatTemplate
    from headrace.text.tokenizer import Tokenizer

    folder = json.loads(sys.argv[1])
    tokenizer = Tokenizer(folder)
    templates: dict[bool, ChatTemplate] = {}  # that of conversations with tools may be another one

    def answer(question: Any) -> Any:
        messages, options = question
        try:
            tools = bool(options.get("tools"))
            if tools not in templates:
                templates[tools] = ChatTemplate.load(folder, tools=tools)
            return templates[tools].encode(tokenizer, messages, **options)
        except ConfigError as error:
            return str(error).replace(f"{tokenizer.folder}/", "")  # clients learn no paths
        except MemoryError:
            return "the model's chat template took too much memory for these messages"
        except RecursionError:
            return "the messages are nested too deeply"

    answering(answer, _MEMORY)


if __name__ == "__main__":
    main()
