"""Inputs for the contract suite: lora."""

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.kernels.before import Before, Norm
from headrace.kernels.lora import Group, lora, pack, pack_inputs, pack_outputs
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
REFERENCE_ROWS_VARY = True
OF_LARGEST = 2e-6  # sums of many numbers of either sign

SHAPES = (  # rows, inputs, outputs, ranks of each adapter
    (0, 16, 16, (4,)),
    (1, 1, 1, (1,)),
    (1, 64, 130, (16,)),
    (3, 33, 70, (5, 64)),
    (9, 40, 257, (16, 3, 8, 1)),
    (40, 100, 65, (7, 2)),
)


def run(case: Case) -> Tensor:
    """Row t belongs to adapter owner[t]; -1 is none."""
    out, owner = case["out"].clone(), case["owner"]
    groups = [Group((owner == i).nonzero().flatten(), weight) for i, weight in enumerate(case["weights"])]
    lora(out, case["x"], groups, case["before"])
    return out


run_reference = run


def cases() -> Iterator[Case]:
    for rows, inputs, outputs, ranks in SHAPES:
        name = f"{rows}x{inputs}x{outputs}-{'-'.join(map(str, ranks))}"
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(f"{name}-{str(dtype)[6:]}", rows, inputs, outputs, ranks, dtype)
    norm = Norm(torch.linspace(0.5, 2, 40), 1e-5, 1.0)
    yield _case("norm", 6, 40, 48, (4, 8), torch.float32, norm)
    yield _case("silu", 6, 40, 48, (4, 8), torch.bfloat16, "silu")
    yield _case("gelu", 6, 37, 48, (4, 8), torch.bfloat16, "gelu_tanh")
    yield _case("stacked", 6, 40, 150, (4, 8), torch.bfloat16, cut=(50, 70))
    yield _case("float64", 6, 40, 70, (4, 8), torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        yield _chosen(f"chosen-{str(dtype)[6:]}", dtype)
    apart = _case("rows-apart", 6, 96, 70, (4, 8), torch.float32)
    apart.arguments["x"] = torch.randn(6, 200)[:, 50:146]
    yield apart


def _chosen(name: str, dtype: torch.dtype) -> Case:
    """Ranks that are inputs, ranks that are outputs, and both beside ordinary ones."""
    case = _case(name, 9, 40, 70, (4, 3, 5), dtype)
    random = torch.Generator().manual_seed(7)
    inputs_R, outputs_R = torch.tensor([0, 3, 4, 17, 38, 39]), torch.tensor([1, 2, 64, 69])
    up_OR = torch.randn(50, len(inputs_R), generator=random).to(dtype)
    down_RI = torch.randn(len(outputs_R), 40, generator=random).to(dtype)
    case["weights"][1:] = [pack_inputs(inputs_R, up_OR, 20, 40), pack_outputs(outputs_R, down_RI)]
    return case


def _case(
    name: str,
    rows: int,
    inputs: int,
    outputs: int,
    ranks: tuple[int, ...],
    dtype: torch.dtype,
    before: Before = None,
    cut: tuple[int, ...] = (),
) -> Case:
    """cut: where the outputs fall into parts, of which the adapters have all but the second."""
    random = torch.Generator().manual_seed(rows + inputs + outputs)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(wide)

    edges = [0, *cut, outputs]
    spans = [span for i, span in enumerate(zip(edges, edges[1:], strict=False)) if i != 1]
    weights = [
        pack(
            [
                (draw(rank, inputs).to(dtype), draw(stop - first, rank).to(dtype), 0.5 + i, first)
                for i, (first, stop) in enumerate(spans)
            ]
        )
        for rank in ranks
    ]
    gate = isinstance(before, str)
    arguments = {
        "out": draw(rows, outputs),
        "x": draw(rows, inputs * (2 if gate else 1)),
        "owner": torch.randint(-1, len(ranks), (rows,), generator=random),
        "weights": weights,
        "before": before,
    }
    by_row = (
        () if dtype == torch.float64 else ("out", "x", "owner")
    )  # the reference runs, and promises nothing
    return Case(name, arguments, by_row=by_row)
