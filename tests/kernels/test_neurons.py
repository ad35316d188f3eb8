"""neurons: what leaves is not read, and a fault shows."""

from __future__ import annotations

import pytest
import torch

from headrace import kernels
from headrace.kernels.neurons import neurons

LEVELS = kernels.available()


def tensors(rows: int = 3) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    draw = {"x": (rows, 40), "gate": (rows, 300), "up": (300, 40), "down": (300, 40)}
    return {name: torch.randn(shape, generator=random) for name, shape in draw.items()}


def run(given: dict[str, torch.Tensor], threshold: float) -> torch.Tensor:
    return neurons(given["x"], given["gate"].clone(), given["up"], given["down"], threshold, "silu")


@pytest.mark.parametrize("level", LEVELS[1:])
def test_weights_of_a_neuron_that_leaves_are_not_read(level: str) -> None:
    """With one row; its up may be anything. Of several rows, one may need what another left out."""
    given = tensors(rows=1)
    leaves = torch.nn.functional.silu(given["gate"][0]).abs() < 0.5
    assert 50 < leaves.sum() < 250
    with kernels.forced(level):
        before = run(given, 0.5)
        for name in ("up", "down"):
            given[name][leaves] = torch.nan
        assert torch.equal(run(given, 0.5), before)


@pytest.mark.parametrize("level", LEVELS)
def test_a_gate_that_is_no_number_shows(level: str) -> None:
    given = tensors()
    given["gate"][1, 17] = torch.nan
    with kernels.forced(level):
        found = run(given, 0.5)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "change",
    [
        {"up": torch.zeros(300, 39)},
        {"down": torch.zeros(299, 40)},
        {"gate": torch.zeros(3, 299)},
        {"x": torch.zeros(3, 41)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_fit_is_refused(level: str, change: dict[str, torch.Tensor]) -> None:
    with kernels.forced(level), pytest.raises(ValueError):
        run({**tensors(), **change}, 0.5)
