"""Log-probabilities in OpenAI's two shapes: of chats, and the older one of completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from headrace.text.tokenizer import Tokenizer
from headrace.types import Logprob

LEAST = -9999.0
"""What stands for minus infinity: JSON has none."""


class Names:
    """How tokens are written."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool | None) -> None:
        """as_ids: "token_id:17" instead of the text, which two tokens may share."""
        self._tokenizer, self._as_ids = tokenizer, bool(as_ids)

    def __call__(self, token: int) -> str:
        if self._as_ids:
            return f"token_id:{token}"
        data = self._tokenizer.bytes_of(token)
        try:
            return data.decode()
        except UnicodeDecodeError:  # part of a character: as OpenAI writes it
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def bytes_of(self, token: int) -> list[int]:
        return list(self._tokenizer.bytes_of(token))


def of_chat(items: Iterable[Logprob], names: Names) -> dict[str, Any]:
    """{"content": [{token, logprob, bytes, top_logprobs}]}."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": names(token), "logprob": max(logprob, LEAST), "bytes": names.bytes_of(token)}

    content = [
        {**one(item.token, item.logprob), "top_logprobs": [one(token, value) for token, value in item.top]}
        for item in items
    ]
    return {"content": content, "refusal": None}


class OfCompletion:
    """{"tokens", "token_logprobs", "top_logprobs", "text_offset"}, piece by piece: offsets go on."""

    def __init__(self, tokenizer: Tokenizer, names: Names, count: int, *, skip_special: bool) -> None:
        """count: alternatives per token; the token itself is among them even if it is not that likely.

        With `skip_special`, tokens that steer the model are no part of the text, and take no room in it.
        """
        self._tokenizer, self._names, self._count = tokenizer, names, count
        self._skipped = tokenizer.special if skip_special else frozenset()
        self._offset = 0

    def __call__(self, tokens: Sequence[int], items: Sequence[Logprob | None]) -> dict[str, Any]:
        """For tokens that follow those of the last call. None: the first token of a prompt, which has none."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            if token not in self._skipped:
                self._offset += len(self._tokenizer.bytes_of(token).decode("utf-8", "ignore"))
        return {
            "text_offset": offsets,
            "tokens": [self._names(token) for token in tokens],
            "token_logprobs": [None if item is None else max(item.logprob, LEAST) for item in items],
            "top_logprobs": [None if item is None else self._top(item) for item in items],
        }

    def _top(self, item: Logprob) -> dict[str, float]:
        top = {self._names(token): max(value, LEAST) for token, value in item.top[: self._count]}
        return {**top, self._names(item.token): max(item.logprob, LEAST)}


def of_prompt(ids: Sequence[int], items: Sequence[Logprob], names: Names) -> list[dict[str, Any] | None]:
    """vLLM's prompt_logprobs: null for the first token, then {id: {logprob, rank, decoded_token}}."""
    found: list[dict[str, Any] | None] = [None]
    for item in items:
        ranks = {token: rank for rank, (token, _) in enumerate(item.top, 1)}
        values = {**dict(item.top), item.token: item.logprob}
        found.append(
            {
                str(token): {
                    "logprob": max(value, LEAST),
                    "rank": ranks.get(token),
                    "decoded_token": names(token),
                }
                for token, value in values.items()
            }
        )
    return found[: len(ids)]
