"""A pass in which tokens of the prompt leave between layers, and some come back: see headrace/kv/present.py.

    band 0   every row of the batch          at its end, the prompt's last token and those after it are asked
    band 1   rows of those that stay, and    what they attend to: that decides who goes on
             of those that come back
    ...

A chunk that ends before its prompt does goes no further than band 0, where its states are parked: who stays is decided
by the prompt's last token. So how a prompt is cut changes nothing.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headrace.kv.present import Band
from headrace.layer.attention import KeysValues
from headrace.types import Batch, Reads, Run
from headrace.weight.adapter import Mix

if TYPE_CHECKING:
    from headrace.forward.decoder import Decoder


class Keys(KeysValues, Protocol):
    """A KV store that shows what it has."""

    def keys(self, layer: int, pages_B: Tensor, length: int) -> Tensor:
        """The first `length` keys in these pages, rotated: [L, G, H]."""
        ...


KeysOf = Callable[[Tensor, int], Tensor]
"""A layer's, see Keys."""


@dataclass
class Rows:
    """Rows on their way up, span after span."""

    x_KD: Tensor
    batch: Batch
    """As the KV store is handed it. Its positions are what rows are masked by: places in the band."""
    positions: Sequence[int]
    rows: Sequence[int]
    """Which of the whole batch's each one is; -1 for one that was parked."""
    starts: Sequence[int]
    """S + 1."""


def thinned(decoder: Decoder, x_TD: Tensor, batch: Batch, kv: Keys) -> Tensor:
    """The batch through every band, [T, D] -> [T, D]. What has left is of no meaning in the result."""
    assert len(batch.reads) == 1 and not batch.written, "cards refuse other cache groups, and trees"
    assert len(batch.reads[0].runs) == len(batch.spans), "a span reads one run"
    rows = Rows(x_TD, batch, batch.positions_T.tolist(), range(len(x_TD)), batch.starts)
    floors = (0, *decoder.floors, len(decoder.blocks))
    for band, (first, stop) in enumerate(itertools.pairwise(floors)):
        rows, asked = _run(decoder, first, stop, rows, kv)
        if band == 0:
            x_TD = rows.x_KD
        if stop < len(decoder.blocks):
            layer = stop - 1
            scale = decoder.architecture.blocks[layer].attention.scale
            rows = _Rise(band, rows, batch, asked, partial(kv.keys, layer), scale).rows()
            if not rows.positions:
                return x_TD
    rising = [(row, own) for own, row in enumerate(rows.rows) if row >= 0]
    to_K, from_K = torch.tensor(rising, dtype=torch.int64, device=x_TD.device).unbind(1)
    x_TD[to_K] = rows.x_KD[from_K]
    return x_TD


def _run(decoder: Decoder, first: int, stop: int, rows: Rows, kv: Keys) -> tuple[Rows, dict[int, Tensor]]:
    """Through these layers; and the last one's queries, [N, H], of rows that decide who goes on."""
    positions_K = torch.tensor(rows.positions, dtype=torch.int64, device=rows.x_KD.device)
    turns = [rotary.at(positions_K) for rotary in decoder.rotaries]
    x_KD = rows.x_KD
    deciding = _deciding(rows) if stop < len(decoder.blocks) else []
    watched = _Watched(kv, deciding)
    for layer in range(first, stop):
        block = decoder.blocks[layer]
        x_KD = block(x_KD, turns[block.rotary], rows.batch, watched if layer == stop - 1 else kv)
    return replace(rows, x_KD=x_KD), dict(zip(deciding, watched.queries, strict=True))


def _deciding(rows: Rows) -> list[int]:
    """Rows of the last token of a prompt that is thinned, and of those after it."""
    pairs = zip(rows.batch.present, itertools.pairwise(rows.starts), strict=True)
    spans = ((present.prompt_len - 1, range(*own)) for present, own in pairs if not present.whole)
    return [row for first, own in spans for row in own if rows.positions[row] >= first]


class _Watched:
    """A KV store, and the queries with which some rows read it."""

    def __init__(self, kv: KeysValues, rows: list[int]) -> None:
        self._kv, self._rows = kv, rows
        self.queries: Sequence[Tensor] = ()

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        if self._rows:
            self.queries = q_TNH[self._rows].unbind(0)
        return self._kv.attend(layer, q_TNH, k_TGH, v_TGH, batch)


class _Rise:
    """From the end of one band to the beginning of the next."""

    def __init__(
        self, band: int, rows: Rows, batch: Batch, asked: Mapping[int, Tensor], keys: KeysOf, scale: float
    ) -> None:
        """band: the one that ends, counted from 0. batch: the whole one. keys, scale: of the band's last layer."""
        self._band, self._before, self._batch = band, rows, batch
        self._asked, self._keys, self._scale = asked, keys, scale
        self._pages = [rows.batch.reads[0].pages_B[run.first_page :] for run in batch.reads[0].runs]
        self._states: list[Tensor] = []
        self._positions: list[int] = []
        self._rows: list[int] = []
        self._seen: list[int] = []
        self._slots: list[int] = []
        self._runs: list[Run] = []
        self._returned: list[int] = []

    def rows(self) -> Rows:
        """Those that go on."""
        starts, before = [0], self._before
        for span, (present, own) in enumerate(
            zip(self._batch.present, itertools.pairwise(before.starts), strict=True)
        ):
            if present.whole:
                part, positions = slice(*own), before.positions[slice(*own)]
                self._place(span, before.x_KD[part], positions, before.rows[part], positions)
            else:
                self._some(span, range(*own), present.bands[self._band])
            starts.append(len(self._positions))
        tensor = partial(torch.tensor, dtype=torch.int64, device=before.x_KD.device)
        batch = replace(
            self._batch,
            positions_T=tensor(self._seen),
            starts=tuple(starts),
            slots=(tensor(self._slots),),
            reads=(Reads(self._batch.reads[0].pages_B, tuple(self._runs)),),
            returned=tensor(self._returned) if self._returned else None,
            mix=self._mix(starts),
        )
        x_KD = torch.cat(self._states) if self._states else before.x_KD[:0]
        return Rows(x_KD, batch, self._positions, self._rows, starts)

    def _some(self, span: int, own: range, band: Band) -> None:
        """Of a sequence whose prompt is thinned."""
        positions, x_KD = self._before.positions, self._before.x_KD
        last, waiting = self._batch.present[span].prompt_len - 1, own.start
        for row in own:
            if positions[row] < last:
                continue
            band.park(positions[waiting:row], x_KD[waiting:row])
            waiting, state_1D, came = row + 1, x_KD[row : row + 1], self._before.rows[row]
            if positions[row] == last:
                band.park([last], state_1D)
                staying = self._staying(span, band, row)
                rows = [-1] * (band.stay - 1) + [came]
                self._place(span, band.settle(staying), staying, rows, range(band.stay))
            else:
                returning = self._returning(span, band, row)
                first = len(band.places)
                band.append(returning, positions[row])
                if returning:
                    self._return(span, band, returning, first)
                self._place(span, state_1D, [positions[row]], [came], [first + len(returning)])
        band.park(positions[waiting : own.stop], x_KD[waiting : own.stop])  # the prompt goes on later

    def _staying(self, span: int, band: Band, row: int) -> list[int]:
        """The prompt's tokens that its last one, in this row, attends to most, rising; it stays itself."""
        lying, share_L = self._attended(span, row)
        share_L[-1] = torch.inf
        best = share_L.sort(descending=True, stable=True).indices[: band.stay]  # ties go to the earlier token
        return sorted(lying[place] for place in best.tolist())

    def _returning(self, span: int, band: Band, row: int) -> list[int]:
        """The prompt's tokens that are not here, of those that the token in this row attends to most, rising."""
        prompt_len = self._batch.present[span].prompt_len
        below = len(self._batch.present[span].within(self._band))
        if not band.returns or len(band.within) == below:
            return []
        lying, share_L = self._attended(span, row)
        best = share_L.sort(descending=True, stable=True).indices.tolist()
        prompt = itertools.islice((lying[place] for place in best if lying[place] < prompt_len), band.stay)
        missing = (position for position in prompt if position not in band.within)
        return sorted(itertools.islice(missing, band.returns))

    def _attended(self, span: int, row: int) -> tuple[Sequence[int], Tensor]:
        """Positions that the row sees in the band that ends, and its attention to each in the mean over heads."""
        lying = self._batch.present[span].lying(self._band, self._before.positions[row])
        keys_LGH, query_NH = self._keys(self._pages[span], len(lying)), self._asked[row]
        wide = torch.promote_types(query_NH.dtype, torch.float32)
        query_GIH = query_NH.to(wide).unflatten(0, (keys_LGH.shape[1], -1))
        score_GIL = query_GIH @ keys_LGH.to(wide).permute(1, 2, 0).contiguous() * self._scale
        return lying, score_GIL.softmax(-1).mean((0, 1))

    def _return(self, span: int, band: Band, returning: list[int], first: int) -> None:
        """These come back, and lie from `first` on. Each sees the prompt's tokens before it that stayed."""
        before = [bisect.bisect_left(band.places, position, hi=band.stay) - 1 for position in returning]
        slots = range(first, first + len(returning))
        row = len(self._positions)
        self._place(span, band.states(returning), returning, [-1] * len(returning), slots, before)
        self._returned += range(row, len(self._positions))

    def _place(
        self,
        span: int,
        states_KD: Tensor,
        positions: Sequence[int],
        rows: Sequence[int],
        places: Sequence[int],
        seen: Sequence[int] | None = None,
    ) -> None:
        """Rows that lie at these places. seen: the last place that each one reads, if that is not its own."""
        seen, first = places if seen is None else seen, len(self._positions)
        pages, size = self._pages[span], self._batch.present[span].page_tokens
        used = pages[: max(places) // size + 1].tolist()
        self._slots += [used[place // size] * size + place % size for place in places]
        self._states.append(states_KD)
        self._positions += positions
        self._rows += rows
        self._seen += seen
        page = self._batch.reads[0].runs[span].first_page
        self._runs.append(Run(first, len(self._positions), page, 0, max(1, max(seen) + 1)))

    def _mix(self, starts: Sequence[int]) -> Mix | None:
        """Of each sequence's adapter."""
        if self._batch.mix is None:
            return None
        own = itertools.starmap(range, itertools.pairwise(starts))
        of_first = dict(zip(self._batch.starts, own, strict=False))  # a span's first row -> its rows here
        groups = [
            (adapter, [row for first in rows for row in of_first.get(first, ())])
            for adapter, rows in self._batch.mix.key
        ]
        found = [group for group in groups if group[1]]
        return Mix(found) if found else None
