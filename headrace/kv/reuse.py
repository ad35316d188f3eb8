"""Which of a sequence's tokens the prefix cache may have, and whose it is."""

from __future__ import annotations

from headrace.types import Sequence


def namespace(seq: Sequence) -> str:
    """Of its pages in the prefix cache: they are those of its tenant, and of its adapter's very content."""
    assert seq.adapter is None or seq.adapter.digest, "the adapter's content is not known yet"
    adapter, salt = seq.adapter.digest if seq.adapter else "", seq.request.salt
    return f"{adapter}:{salt}" if adapter or salt else ""  # no salt can spell another adapter's


def reusable(seq: Sequence, prompts_only: bool = False) -> list[int]:
    """The tokens of a waiting sequence, up to one that has to run: a prefix hit may hold those before it.

    Cached are keys and values, not what the model thought of a token: what is to be scored or pooled runs again, up to
    where it was delivered or added up before a pause. The last token's hidden state alone needs the last token alone.
    prompts_only: see BlockTables.
    """
    if seq.request.params.prompt_logprobs is not None and seq.num_scored < seq.prompt_len:
        return seq.tokens[: seq.num_scored]
    if seq.request.pooling is not None and seq.request.pooling.kind == "mean":
        return seq.tokens[: 1 + (seq.hidden_sum.stop if seq.hidden_sum else 0)]
    return seq.tokens[: seq.prompt_len + 1] if prompts_only else seq.tokens
