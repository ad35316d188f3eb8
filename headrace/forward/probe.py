"""A prompt through the first layers of the model, some rows at a time: what a shrinker looks at.

Keys and values have pages of their own, in the model's dtype, for as long as the probe lasts: what the first layers
alone have computed is of no use to anybody else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headrace.forward.decoder import Decoder
from headrace.forward.memory import pages_for
from headrace.kv.cache import KVCache, page_bytes_of, stored_groups
from headrace.kv.codecs import SLOT as CODECS
from headrace.kv.groups import size_pages
from headrace.kv.keepers import SLOT as KEEPERS
from headrace.kv.layouts import SLOT as LAYOUTS
from headrace.text.shrinkers import Look, Seen
from headrace.types import Batch, Span
from headrace.weight.adapter import Adapter, Mix

PAGE_TOKENS = 16


class Probe:
    """Runs the tokens of a look up to its layer."""

    def __init__(self, decoder: Decoder, look: Look, adapter: Adapter | None) -> None:
        assert 1 <= look.layer < len(decoder.blocks), f"no layer {look.layer}"
        self._decoder, self._look, self._adapter = decoder, look, adapter
        self._kv = _cache(decoder, look)
        self._kv.tables.admit(0, look.tokens, "")
        self._keys: list[Tensor] = []
        self._query_NH: Tensor | None = None
        self._done = 0

    @torch.inference_mode()
    def run(self, rows: int) -> Seen | None:
        """The next rows; what there is to see, once they were the last."""
        tokens, tables = self._look.tokens, self._kv.tables
        stop = min(self._done + rows, len(tokens))
        tables.reserve(0, self._done, stop)
        q_TNH, k_TGH = self._decoder.peek(self._look.layer, self._batch(self._done, stop), self._kv)
        self._keys.append(k_TGH.clone())
        tables.advance(0, tokens, stop)
        self._done = stop
        return None if stop < len(tokens) else Seen(q_TNH[-1].clone(), torch.cat(self._keys))

    def _batch(self, start: int, stop: int) -> Batch:
        span, device = Span(0, start, stop), self._decoder.device
        placed = self._kv.place((span,), {})
        return Batch(
            spans=(span,),
            ids_T=torch.tensor(self._look.tokens[start:stop], dtype=torch.int64, device=device),
            positions_T=torch.arange(start, stop, device=device),
            starts=(0, stop - start),
            slots=placed.slots,
            sealed=placed.sealed,
            reads=placed.reads,
            segments=placed.segments,
            folds=placed.folds,
            written=placed.written,
            selecting=placed.selecting,
            rows_R=torch.empty(0, dtype=torch.int64, device=device),
            mix=None if self._adapter is None else Mix([(self._adapter, range(stop - start))]),
            beyond=(start - len(self._look.tokens) + 1,),
        )


def _cache(decoder: Decoder, look: Look) -> KVCache:
    """For one sequence, and the layers below the look's."""
    architecture = replace(decoder.architecture, blocks=decoder.architecture.blocks[: look.layer])
    layout, codec, keeper = (slot.make(slot.default) for slot in (LAYOUTS, CODECS, KEEPERS))
    groups = stored_groups(layout.groups(architecture), keeper, codec)
    sizes = size_pages(groups, PAGE_TOKENS, lambda group, n: page_bytes_of(codec, group, n, decoder.dtype))
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
