"""Parts: which heads of a layer a cache group stores, and what lies beside it for the same heads."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.architecture import Architecture
from headrace.kv.groups import GroupSpec


class Part:
    """The heads of one layer that one group stores; or two, if one has whole blocks; and perhaps records."""

    def __init__(
        self,
        architecture: Architecture,
        layer: int,
        within: GroupSpec,
        group: int,
        blocks: int | None,
        records: int | None,
        asked: int | None,
        kv_heads: tuple[int, ...],
    ) -> None:
        """within: the group that is number `group`; what it keeps, its layers see."""
        spec = architecture.blocks[layer].attention
        self.group, self.blocks, self.records, self.asked = group, blocks, records, asked
        self.stored = group if blocks is None else blocks
        self.scale = spec.scale
        self.window = min((w for w in (spec.window, within.window) if w is not None), default=None)
        self.sink = within.sink if spec.window is None else 0
        whole = kv_heads == tuple(range(spec.kv_heads))
        each = spec.heads // spec.kv_heads
        self.kv_heads = None if whole else list(kv_heads)
        self.heads = [g * each + i for g in kv_heads for i in range(each)]


def parts_of(architecture: Architecture, groups: tuple[GroupSpec, ...]) -> Mapping[int, list[Part]]:
    """Of every layer; together they have each of its heads once."""
    parts: dict[int, list[Part]] = {}
    for index, group in enumerate(groups):
        if group.holds in ("blocks", "summary", "queries"):  # it goes with the one beside it
            continue
        blocks = index - 1 if group.holds == "rest" else None
        records = None if group.summary is None else index + 1
        asked = index + 2 if group.summary is not None and group.summary.asks else None
        for member in group.members:
            parts.setdefault(member.layer, []).append(
                Part(architecture, member.layer, group, index, blocks, records, asked, member.kv_heads)
            )
    for layer, block in enumerate(architecture.blocks):
        heads = sorted(h for part in parts[layer] for h in (part.kv_heads or range(block.attention.kv_heads)))
        assert heads == list(range(block.attention.kv_heads)), f"the layout leaves out heads of layer {layer}"
    return parts
