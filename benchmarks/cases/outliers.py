"""Are a few exact weights worth their bits? `spqr` beside other formats and recipes at about the same stored bits.

    python benchmarks/cases/outliers.py [--pairs RECIPE@FORMAT ...] [--model tiny] [--n 200] [--samples 32] [--seed 0]
                                        [--threads N] [--out FILE]

Target  KL to the model itself, and bits per byte, of `gptq` with `spqr` below those of `gptq` without it (SpQR)

Bits are of all stored bytes of the blocks' matrices: codes, scales, outliers, their places. Differences to the first
pair are paired by piece of text, with their interval of 95 % from resampled pieces. The second table needs no model:
the squared error of a product, 4,096 rows of 512 inputs, whose weights or inputs have tails as large models' do.
"""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import sys
import tempfile
from pathlib import Path

import torch
from recipes import Text, interval, quantise
from result import show
from torch import Tensor

from headrace import LLM, kernels
from headrace.weight.assemble import make, places
from headrace.weight.codes import Coded, store_nearest
from headrace.weight.hessian import compensate, error

PAIRS = (
    "gptq@int3:group=32",
    "rtn@int3:group=32",
    "awq@int3:group=32",
    "gptq@spqr:base=int3:group=64,outliers=0.004",
    "gptq@spqr:base=int3_dual,outliers=0.002",
    "rtn@spqr:base=int3_dual,outliers=0.002",
    "gptq@int3_dual",
)
FORMATS = (
    "int3:group=32",
    "spqr:base=int3,outliers=0.01",
    "spqr:base=int3_dual,outliers=0.004",
)
"""Of the second table."""


def bits(llm: LLM, spec: str) -> float:
    """Stored bits per weight of the blocks."""
    shapes = [
        s for n, s in places(llm.engine.decoder.architecture)[1].items() if len(s) == 2 and n[:6] == "blocks"
    ]
    return stored(spec, *shapes)


def stored(spec: str, *shapes: tuple[int, ...]) -> float:
    """Bits per weight of matrices."""
    size = sum(make(spec).num_bytes(shape[0], shape[1], torch.float32) for shape in shapes)
    return 8 * size / sum(math.prod(shape) for shape in shapes)


def models(given: argparse.Namespace) -> list[str]:
    """Rows of the first table."""
    text, rows, base = Text(given.model, given.n, given.threads), [], None
    for pair in given.pairs:
        recipe, _, weights = pair.partition("@")
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room) / "model"
            quantise(folder, given, weights, recipe, given.seed)
            with LLM(str(folder), threads=given.threads) as llm:
                pieces, size = text.read(llm), bits(llm, weights)
        base = base or pieces
        both = list(zip(pieces, base, strict=True))
        cells = (
            f"`{recipe}`",
            f"`{weights}`",
            f"{size:.3f}",
            f"{sum(p.bits for p in pieces) / sum(p.bytes for p in pieces):.5f}",
            "" if pieces == base else interval([(p.bits - b.bits, p.bytes) for p, b in both]),
            f"{sum(p.kl for p in pieces) / sum(p.tokens for p in pieces):.5f}",
            "" if pieces == base else interval([(p.kl - b.kl, p.tokens) for p, b in both]),
        )
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def problems() -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> weights [O, I] and the inputs' second moments [I, I]."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    weight_OI, x_TI = normal(256, 512), normal(4096, 512) @ normal(512, 512) / 512**0.5
    tailed_OI = weight_OI.clone()
    tailed_OI[normal(256, 512) > 2.6] *= 6  # one in two hundred
    active_TI = x_TI.clone()
    active_TI[:, ::170] *= 30  # four inputs
    found = {
        "normal weights and inputs": (weight_OI, x_TI),
        "one weight in 200 six times as large": (tailed_OI, x_TI),
        "4 inputs of 512 thirty times as active": (weight_OI, active_TI),
        "both": (tailed_OI, active_TI),
    }
    return {name: (w, x.T @ x) for name, (w, x) in found.items()}


def products() -> list[str]:
    """Rows of the second table: relative errors of a product, in per cent."""
    rows = []
    for name, (weight_OI, products_II) in problems().items():
        cells, whole = [name], error(weight_OI, products_II)
        for spec in FORMATS:
            form = make(spec)
            assert isinstance(form, Coded)
            for codes in (store_nearest(form, weight_OI), compensate(weight_OI, products_II, form)):
                off_OI = form.values(codes, weight_OI.shape[1]) - weight_OI
                cells.append(f"{100 * error(off_OI, products_II) / whole:.3f}")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    """Prints the tables; --out keeps them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--n", type=int, default=200, help="pieces of text, 256 tokens each")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    names = [f"`{spec}` ({stored(spec, (256, 512)):.2f} bits)" for spec in FORMATS]
    lines = [
        f"# Outliers kept apart in `{given.model}`\n",
        f"{datetime.date.today()}, kernels {kernels.isa()}, embedding and head in `int8`, activations in 8 bits; KL in "
        f"nats per token against the model itself, over at most {given.n} pieces of held-out text; calibration on "
        f"{given.samples} texts of 512 tokens. Differences are to the first row.  ",
        f"`python benchmarks/cases/outliers.py {shlex.join(sys.argv[1:])}`\n",
        "| recipe | weights | bits per weight | bits/byte | against the first | KL | against the first |",
        "|---|---|---|---|---|---|---|",
        *models(given),
        "\n## Products of weights and inputs with tails: squared error, % of the product\n",
        "| | " + " | ".join(f"{name}, {recipe}" for name in names for recipe in ("rtn", "gptq")) + " |",
        "|---" * (1 + 2 * len(FORMATS)) + "|",
        *products(),
    ]
    show("\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
