"""How many tokens a request took, as OpenAI counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.text.reply import Usage


def usage(parts: Sequence[Usage], *, silent: bool = False) -> dict[str, Any]:
    """Of all prompts and samples. silent: what was generated was asked of nobody, and is not counted."""
    prompt = sum(part.prompt_tokens for part in parts)
    answer = 0 if silent else sum(part.completion_tokens for part in parts)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
