"""The decoder: embed, blocks, norm, head. Knows no family, no phase and no KV layout."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from headrace.architecture import Architecture, Attention, Block, Mlp
from headrace.forward.subset import rows_within, subset
from headrace.forward.thinning import Keys, thinned
from headrace.layer.attention import KeysValues, SelfAttention, Turn
from headrace.layer.embedding import Embedding, Head
from headrace.layer.linear import Linear
from headrace.layer.mlp import GatedMlp, NeuronMlp, Room
from headrace.layer.moe import MixtureMlp
from headrace.layer.norm import RmsNorm
from headrace.layer.positions import LivePositions
from headrace.types import Batch
from headrace.weight.assemble import Weights
from headrace.weight.store import Store


class DecoderBlock:
    """x += attention(norm(x)); x += mlp(norm(x)); each branch normed again where the model has post-norms."""

    __slots__ = (
        "attention",
        "attention_norm",
        "attention_post_norm",
        "halves",
        "mlp",
        "mlp_norm",
        "mlp_post_norm",
        "reach",
        "rotary",
        "store",
    )

    def __init__(
        self,
        *,
        attention: SelfAttention,
        mlp: GatedMlp | MixtureMlp | NeuronMlp,
        attention_norm: RmsNorm,
        mlp_norm: RmsNorm,
        attention_post_norm: RmsNorm | None,
        mlp_post_norm: RmsNorm | None,
        rotary: int,
        store: Store,
        halves: tuple[int, int],
        reach: int | None = None,
    ) -> None:
        self.attention, self.mlp = attention, mlp
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm
        self.attention_post_norm, self.mlp_post_norm = attention_post_norm, mlp_post_norm
        self.rotary = rotary
        """Which of the decoder's rotary tables its positions use."""
        self.store, self.halves = store, halves
        """Where the matrices lie; attention's name there, and the MLP's."""
        self.reach = reach
        """Rows that are further beyond their prompt leave it out; None: none does."""

    def __call__(self, x_TD: Tensor, turn: Turn, batch: Batch, kv: KeysValues) -> Tensor:
        """[T, D] -> [T, D]; the result may lie in x_TD."""
        self.store.need(self.halves[0])
        if self.attention_post_norm is None:
            x_TD = self.attention(x_TD, turn, batch, kv, self.attention_norm.spec, x_TD)
        else:
            branch_TD = self.attention(x_TD, turn, batch, kv, self.attention_norm.spec)
            x_TD = x_TD + self.attention_post_norm(branch_TD)
        self.store.need(self.halves[1])
        if self.mlp_post_norm is None:
            return self.mlp(x_TD, self.mlp_norm.spec, x_TD, batch.mix)
        return x_TD + self.mlp_post_norm(self.mlp(x_TD, self.mlp_norm.spec, mix=batch.mix))


class Decoder:
    """A decoder-only model in float64, float32, bfloat16 or float16: whatever its weights are."""

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        """Takes the weights as they are; nothing is copied. Computes rotary tables up to architecture.context."""
        self.architecture = architecture
        self.dtype, self.device = weights.dtype, weights.device
        self.weight_bytes = weights.num_bytes
        self.tier, self._store = weights.tier, weights.store
        table = weights.matrices["embed.weight"]
        self.embed = Embedding(table, weights.dtype, architecture.embedding_scale)
        self.rotaries: list[LivePositions] = []
        builder = _Builder(architecture, weights)
        tables: dict[tuple[object, float, int], int] = {}
        self.blocks: list[DecoderBlock] = []
        for layer, block in enumerate(architecture.blocks):
            spec = block.attention
            key = (spec.positions, spec.theta, spec.head_size)
            if key not in tables:
                tables[key] = len(self.rotaries)
                self.rotaries.append(self._start(spec))
            self.blocks.append(builder.block(layer, block, tables[key]))
        self.floors = tuple(i for i, block in enumerate(architecture.blocks) if block.thinning is not None)
        """Layers before which tokens of the prompt leave."""
        self.norm = builder.norm("norm")
        self.head = Head(table if architecture.tied_head else weights.matrices["head.weight"])

    def forward(self, batch: Batch, kv: KeysValues) -> Tensor:
        """Runs the batch's rows and stores their keys and values. Returns hidden states, normed: [T, D]."""
        return self.norm(self._below(self.blocks, batch, kv))

    def peek(self, layer: int, batch: Batch, kv: KeysValues) -> tuple[Tensor, Tensor]:
        """Runs the batch's rows through the layers below one, and stores their keys and values of these. Returns that
        layer's queries and keys: [T, N, H], [T, G, H]."""
        x_TD, block = self._below(self.blocks[:layer], batch, kv), self.blocks[layer]
        turn = self.rotaries[block.rotary].at(batch.positions_T)
        block.store.need(block.halves[0])
        q_TNH, k_TGH, _ = block.attention.project(x_TD, turn, batch, block.attention_norm.spec)
        return q_TNH, k_TGH

    def _below(self, blocks: list[DecoderBlock], batch: Batch, kv: KeysValues) -> Tensor:
        """Embedded, and through these blocks: [T, D]."""
        x_TD = self.embed(batch.ids_T)
        if batch.present:
            x_TD = thinned(self, x_TD, batch, cast(Keys, kv))
        else:
            x_TD = self._through(blocks, x_TD, batch, kv)
        self._store.need(None)  # so that the next pass's first blocks are fetched while the head computes
        return x_TD

    def _through(self, blocks: list[DecoderBlock], x_TD: Tensor, batch: Batch, kv: KeysValues) -> Tensor:
        turns = [rotary.at(batch.positions_T) for rotary in self.rotaries]
        for block in blocks:
            if block.reach is None:
                x_TD = block(x_TD, turns[block.rotary], batch, kv)
            else:
                x_TD = self._some(block, x_TD, turns[block.rotary], batch, kv)
        return x_TD

    def _some(self, block: DecoderBlock, x_TD: Tensor, turn: Turn, batch: Batch, kv: KeysValues) -> Tensor:
        """A block that some rows may leave out: these stay as they are."""
        assert block.reach is not None
        rows_K = rows_within(batch, block.reach)
        if len(rows_K) == len(x_TD):
            return block(x_TD, turn, batch, kv)
        if len(rows_K) > 0:
            part = subset(batch, rows_K)
            turn = self.rotaries[block.rotary].at(part.positions_T)
            x_TD[rows_K] = block(x_TD[rows_K], turn, part, kv)
        return x_TD

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Rows of hidden states to logits: [R, D] -> [R, V], in the weights' dtype."""
        return self.head(hidden_RD)

    def _start(self, spec: Attention) -> LivePositions:
        live: LivePositions = spec.positions.start(
            spec.head_size, spec.theta, self.architecture.context, self.device, self.dtype
        )
        return live


def make_block(architecture: Architecture, layer: int, weights: Weights) -> DecoderBlock:
    """One block alone, from weights under the names of the whole decoder; it calls the KV store's layer `layer`."""
    return _Builder(architecture, weights).block(layer, architecture.blocks[layer], 0)


class _Builder:
    """Wraps named tensors in layers."""

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        self._architecture = architecture
        self._weights = weights
        self._room = Room()

    def block(self, layer: int, block: Block, rotary: int) -> DecoderBlock:
        at = f"blocks.{layer}"
        return DecoderBlock(
            attention=self._attention(f"{at}.attention", layer, block.attention),
            mlp=self._mlp(f"{at}.mlp", block.mlp),
            attention_norm=self.norm(f"{at}.attention_norm"),
            mlp_norm=self.norm(f"{at}.mlp_norm"),
            attention_post_norm=self.norm(f"{at}.attention_post_norm") if block.post_norms else None,
            mlp_post_norm=self.norm(f"{at}.mlp_post_norm") if block.post_norms else None,
            rotary=rotary,
            store=self._weights.store,
            halves=(2 * layer, 2 * layer + 1),
            reach=block.reach,
        )

    def norm(self, at: str) -> RmsNorm:
        return RmsNorm(
            self._weights.tensors[f"{at}.weight"], self._architecture.norm_eps, self._architecture.norm_offset
        )

    def _attention(self, at: str, layer: int, spec: Attention) -> SelfAttention:
        return SelfAttention(
            layer,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_size=spec.head_size,
            qkv=self._linear(f"{at}.qkv"),
            out=self._linear(f"{at}.out"),
            q_norm=self.norm(f"{at}.q_norm") if spec.qk_norm else None,
            k_norm=self.norm(f"{at}.k_norm") if spec.qk_norm else None,
        )

    def _mlp(self, at: str, spec: Mlp) -> GatedMlp | MixtureMlp | NeuronMlp:
        if not spec.experts:
            return self._gated(at, spec) if spec.threshold is None else self._single(at, spec, spec.threshold)
        return MixtureMlp(
            router=self._linear(f"{at}.router"),
            experts=[self._gated(f"{at}.experts.{e}", spec) for e in range(spec.experts)],
            active=spec.active,
            renormalise=spec.renormalise,
        )

    def _gated(self, at: str, spec: Mlp) -> GatedMlp:
        return GatedMlp(
            spec.activation,
            gate_up=self._linear(f"{at}.gate_up"),
            down=self._linear(f"{at}.down"),
            width=spec.width,
            room=self._room,
        )

    def _single(self, at: str, spec: Mlp, threshold: float) -> NeuronMlp:
        up_FD, down_FD = (self._weights.tensors[f"{at}.{part}.weight"] for part in ("up", "down"))
        gate = self._linear(f"{at}.gate")
        return NeuronMlp(spec.activation, threshold, gate=gate, up_FD=up_FD, down_FD=down_FD, room=self._room)

    def _linear(self, at: str) -> Linear:
        return Linear(self._weights.matrices[f"{at}.weight"], self._weights.tensors.get(f"{at}.bias"), at)
