"""A plain Llama for training: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings, no biases.

Parameter names are those of the Hugging Face `LlamaForCausalLM`, so export is a dtype change and nothing else.
Shape suffixes: B rows, T tokens, D width, F MLP width, N query heads, G key/value heads, H head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; every one is a count of elements."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    mlp: int
    vocab: int = 4096
    context: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


TINY = Shape(width=256, layers=8, heads=8, kv_heads=4, head=32, mlp=576)
TINY_DRAFT = Shape(width=128, layers=3, heads=4, kv_heads=2, head=32, mlp=384)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        x = x_BTD.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (x * self.weight).to(x_BTD.dtype)


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin, [context, head], angles repeated over the two halves (the Hugging Face convention)."""
    inv_freq = shape.rope_theta ** (-torch.arange(0, shape.head, 2).double() / shape.head)
    angle = torch.outer(torch.arange(shape.context).double(), inv_freq)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BNTH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Rotate pairs (i, i + H/2) of every head by the angle of its position."""
    low, high = x_BNTH.chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return (x_BNTH * cos_TH + turned * sin_TH).to(x_BNTH.dtype)


def causal_attention(q_BNTH: Tensor, k_BGTH: Tensor, v_BGTH: Tensor, chunk: int = 128) -> Tensor:
    """softmax(q k / sqrt(H)) v over the past, query chunk by query chunk; returns out_BNTH.

    Plain batched matmuls, because on CPUs with bf16 matrix units they run several times faster (backward
    included) than the fused attention of PyTorch. The exponential needs no running maximum, since scores are
    clamped to +-60, far beyond what training reaches; the sum divides the output, not the weights. So each score
    is touched once. Query heads that share a key/value head are stacked, so keys and values are never repeated.
    """
    B, N, T, H = q_BNTH.shape
    G = k_BGTH.shape[1]
    R = N // G
    q = (q_BNTH * H**-0.5).view(B, G, R, T, H)
    k, v = k_BGTH.reshape(B * G, T, H), v_BGTH.reshape(B * G, T, H)
    outs = []
    for start in range(0, T, chunk):
        stop = min(start + chunk, T)
        C = stop - start
        rows = q[:, :, :, start:stop].reshape(B * G, R * C, H)
        scores = torch.bmm(rows, k[:, :stop].transpose(1, 2)).view(B * G, R, C, stop)
        past = torch.ones(C, stop, dtype=torch.bool, device=q.device).tril(start)
        weights = torch.where(past, scores.float().clamp(-60, 60).exp(), 0.0)
        total = weights.sum(-1, keepdim=True)
        mixed = torch.bmm(weights.to(v.dtype).view(B * G, R * C, stop), v[:, :stop])
        outs.append((mixed.view(B * G, R, C, H) / total).to(v.dtype).view(B, G, R, C, H))
    return torch.cat(outs, dim=3).view(B, N, T, H)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head, shape.width, bias=False)

    def project(self, x_BTD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: q_BNTH, k_BGTH, v_BGTH."""
        B, T, _ = x_BTD.shape
        s = self.shape
        q = self.q_proj(x_BTD).view(B, T, s.heads, s.head).transpose(1, 2)
        k = self.k_proj(x_BTD).view(B, T, s.kv_heads, s.head).transpose(1, 2)
        v = self.v_proj(x_BTD).view(B, T, s.kv_heads, s.head).transpose(1, 2)
        return rotate(q, cos_TH, sin_TH), rotate(k, cos_TH, sin_TH), v

    def forward(self, x_BTD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        out_BNTH = causal_attention(*self.project(x_BTD, cos_TH, sin_TH))
        return self.o_proj(out_BNTH.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.width, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_eps)

    def forward(self, x_BTD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TH, sin_TH)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Backbone(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.norm_eps)


class Llama(nn.Module):
    """ids_BT -> logits_BTV. The head is the embedding table (tied)."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        cos, sin = rotary_tables(shape)
        self.register_buffer("cos_TH", cos, persistent=False)
        self.register_buffer("sin_TH", sin, persistent=False)
        self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Normal(0, 0.02), residual outputs scaled by 1/sqrt(2 layers) as in GPT-2."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            std = 0.02
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= (2 * self.shape.layers) ** 0.5
            nn.init.normal_(parameter, std=std, generator=generator)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        T = ids_BT.shape[1]
        x_BTD = self.model.embed_tokens(ids_BT)
        if torch.is_autocast_enabled("cpu"):
            x_BTD = x_BTD.bfloat16()
        cos_TH, sin_TH = self.cos_TH[:T].to(x_BTD.dtype), self.sin_TH[:T].to(x_BTD.dtype)
        for layer in self.model.layers:
            x_BTD = layer(x_BTD, cos_TH, sin_TH)
        return self.model.norm(x_BTD)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return F.linear(self.hidden(ids_BT), self.model.embed_tokens.weight)
