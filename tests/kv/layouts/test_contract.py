"""Every layout splits every model so that no key is lost, stored twice, or freed while a layer may still read it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.architecture import Architecture, Attention, Block, Mlp
from headrace.kv.cache import KVCache
from headrace.kv.codecs import SLOT as CODECS
from headrace.kv.groups import size_pages
from headrace.kv.keepers import SLOT as KEEPERS
from headrace.kv.layouts import SLOT
from headrace.layer.positions import SLOT as POSITIONS
from tests.kv.contract import members

CONTEXT = 64


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Layers of mixed windows, head counts and head sizes; some windows are as long as the context, or longer."""
    blocks = []
    for _ in range(draw(st.integers(1, 7))):
        kv_heads = draw(st.integers(1, 4))
        attention = Attention(
            heads=kv_heads * draw(st.integers(1, 3)),
            kv_heads=kv_heads,
            head_size=draw(st.sampled_from([16, 32, 64])),
            scale=1.0,
            positions=POSITIONS.make("rope"),
            theta=10_000.0,
            window=draw(st.none() | st.sampled_from([1, 4, 5, CONTEXT - 1, CONTEXT, CONTEXT + 1])),
        )
        blocks.append(Block(attention=attention, mlp=Mlp(width=8)))
    return Architecture(
        family="llama", vocab=8, width=8, context=CONTEXT, blocks=tuple(blocks), norm_eps=1e-5
    )


@pytest.mark.parametrize("name", members(SLOT))
@settings(deadline=None, derandomize=True, max_examples=60)
@given(architecture=architectures())
def test_every_head_of_every_layer_is_in_one_group(name: str, architecture: Architecture) -> None:
    groups = SLOT.make(name).groups(architecture)
    heads = [(m.layer, head) for group in groups for m in group.members for head in m.kv_heads]
    expected = [
        (layer, head)
        for layer, block in enumerate(architecture.blocks)
        for head in range(block.attention.kv_heads)
    ]
    assert sorted(heads) == expected
    for group in groups:
        layers = [member.layer for member in group.members]
        assert layers and len(set(layers)) == len(layers), f"{group.name} lists a layer twice, or none"
        for member in group.members:
            assert member.kv_heads == tuple(sorted(member.kv_heads)) != ()
            assert member.head_size == architecture.blocks[member.layer].attention.head_size
    assert len({group.name for group in groups}) == len(groups), "two groups of one name"


@pytest.mark.parametrize("name", members(SLOT))
@settings(deadline=None, derandomize=True, max_examples=60)
@given(architecture=architectures())
def test_a_group_keeps_what_its_layers_may_read(name: str, architecture: Architecture) -> None:
    """Except where a layer's window never slides: it is as long as the context."""
    for group in SLOT.make(name).groups(architecture):
        for member in group.members:
            window = architecture.blocks[member.layer].attention.window
            reach = CONTEXT if window is None else min(window, CONTEXT)
            assert group.window is None or group.window >= reach


@pytest.mark.parametrize("name", members(SLOT))
@settings(deadline=None, derandomize=True, max_examples=30)
@given(architecture=architectures())
def test_the_answer_is_the_same_each_time_and_a_cache_can_be_built_of_it(
    name: str, architecture: Architecture
) -> None:
    layout, codec = SLOT.make(name), CODECS.make("plain")
    groups = layout.groups(architecture)
    assert groups == layout.groups(architecture) == SLOT.make(name).groups(architecture)
    sizes = size_pages(groups, 4, lambda group, tokens: codec.page_bytes(group, tokens, torch.float32))
    kv = KVCache(
        architecture,
        layout=layout,
        codec=codec,
        keeper=KEEPERS.make(KEEPERS.default),
        dtype=torch.float32,
        device=torch.device("cpu"),
        page_tokens=4,
        num_bytes=4 * len(groups) * sizes.page_bytes,
    )
    assert kv.tables.groups == groups and kv.tables.sizes == sizes
