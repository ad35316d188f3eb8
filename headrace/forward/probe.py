"""A prompt through the first layers of the model, some rows at a time: what a shrinker looks at.

Keys and values have pages of their own, in the model's dtype, for as long as the probe lasts: what the first layers
alone have computed is of no use to anybody else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headrace.forward.batch import build_batch
from headrace.forward.decoder import Decoder
from headrace.forward.memory import pages_for
from headrace.kv.cache import KVCache
from headrace.kv.codecs import SLOT as CODECS
from headrace.kv.keepers import SLOT as KEEPERS
from headrace.kv.layouts import SLOT as LAYOUTS
from headrace.kv.stored import page_sizes, stored_groups
from headrace.params import SamplingParams
from headrace.text.shrinkers import Look, Seen
from headrace.types import Request, Sequence, Span
from headrace.weight.adapter import Adapter

PAGE_TOKENS = 16


class Probe:
    """Runs the tokens of a look up to its layer."""

    def __init__(self, decoder: Decoder, look: Look, adapter: Adapter | None) -> None:
        assert 1 <= look.layer < len(decoder.blocks), f"no layer {look.layer}"
        self._decoder, self._look = decoder, look
        self._kv = _cache(decoder, look)
        self._kv.tables.admit(0, look.tokens, "")
        tokens = list(look.tokens)
        request = Request(id="", prompt=tuple(tokens), params=SamplingParams())
        self._seq = Sequence(0, request, 0, 0, tokens, len(tokens), adapter=adapter)
        self._keys: list[Tensor] = []

    @torch.inference_mode()
    def run(self, rows: int) -> Seen | None:
        """The next rows; what there is to see, once they were the last."""
        seq, tables = self._seq, self._kv.tables
        span = Span(seq.id, seq.num_computed, min(seq.num_computed + rows, len(seq)))
        tables.reserve(seq.id, span.start, span.stop)
        batch = build_batch((span,), {seq.id: seq}, self._kv, self._decoder.device)
        q_TNH, k_TGH = self._decoder.peek(self._look.layer, batch, self._kv)
        self._keys.append(k_TGH.clone())
        tables.advance(seq.id, seq.tokens, span.stop)
        seq.num_computed = span.stop
        return None if span.stop < len(seq) else Seen(q_TNH[-1].clone(), torch.cat(self._keys))


def _cache(decoder: Decoder, look: Look) -> KVCache:
    """For one sequence, and the layers below the look's."""
    architecture = replace(decoder.architecture, blocks=decoder.architecture.blocks[: look.layer])
    layout, codec, keeper = (slot.make(slot.default) for slot in (LAYOUTS, CODECS, KEEPERS))
    groups = stored_groups(layout.groups(architecture), keeper, codec)
    sizes = page_sizes(groups, PAGE_TOKENS, codec, decoder.dtype)
    pages = max(pages_for(groups, sizes, len(look.tokens), None), 2 * len(groups))
    return KVCache(
        architecture,
        layout=layout,
        codec=codec,
        keeper=keeper,
        dtype=decoder.dtype,
        device=decoder.device,
        page_tokens=PAGE_TOKENS,
        num_bytes=pages * sizes.page_bytes,
    )
