"""One contract for every implementation of every operation, against its reference.

An operation `headrace/kernels/<name>/` that has more than its reference brings `tests/kernels/cases/<name>.py`:

    cases() -> Case ...            inputs: no rows, one row, odd widths, every dtype the operation takes
    run(case), run_reference(case) call the operation, or its reference
    SAME_BITS_ON_EVERY_LEVEL       whether all native levels agree bit for bit
    REFERENCE_ROWS_VARY (optional) whether PyTorch may round a row otherwise when other rows are beside it
    OF_LARGEST (optional)          error allowed beside a relative one, as a share of the largest element
"""

import functools
import importlib
from pathlib import Path

import pytest
import torch

from headrace import kernels
from tests.kernels.case import Case

LEVELS = kernels.available()
FOLDER = Path(kernels.__file__).parent
FAST = [
    name
    for name in kernels.operations()
    if any((FOLDER / name / file).exists() for file in ("cpu.cpp", "triton.py"))
]


@functools.cache
def _cases(operation):
    return importlib.import_module(f"tests.kernels.cases.{operation}")


def _bits(x: torch.Tensor) -> torch.Tensor:
    """Compared as integers: NaN equals NaN, and +0 differs from -0."""
    return x.reshape(-1).contiguous().view(torch.uint8)


@functools.cache
def _all_cases():
    return [(operation, case) for operation in FAST for case in _cases(operation).cases()]


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        found = [
            (o, case) for o, case in _all_cases() if case.by_row or "rows" not in metafunc.function.__name__
        ]
        metafunc.parametrize(
            ("operation", "case"), [pytest.param(o, c, id=f"{o}-{c.name}") for o, c in found]
        )


@pytest.mark.parametrize("operation", kernels.operations())
def test_an_operation_has_a_reference(operation):
    assert (FOLDER / operation / "reference.py").exists()


def test_every_level_equals_the_reference(operation: str, case: Case):
    """Up to rounding; where the operation promises it, native levels agree bit for bit. Inputs stay as they are."""
    suite = _cases(operation)
    tensors = [value for value in case.arguments.values() if isinstance(value, torch.Tensor)]
    before = [_bits(tensor.clone()) for tensor in tensors]
    with kernels.forced(kernels.REFERENCE):
        want = suite.run_reference(case)
    first = None
    for level in LEVELS:
        with kernels.forced(level):
            got = suite.run(case)
        unchanged = (torch.equal(_bits(tensor), old) for tensor, old in zip(tensors, before, strict=True))
        assert all(unchanged), f"{level} changed its inputs"
        _expect_close(got, want, getattr(suite, "OF_LARGEST", 0.0), level)
        if level != kernels.REFERENCE and suite.SAME_BITS_ON_EVERY_LEVEL:
            first = got if first is None else first
            assert torch.equal(_bits(got), _bits(first)), f"{level} differs from {LEVELS[1]}"


def _expect_close(got: torch.Tensor, want: torch.Tensor, share: float, level: str) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype, level
    # Relative to the element: float32 sums in another order, and one unit in the last place of a rounded result.
    rtol = {
        torch.float64: 1e-12,
        torch.float32: 2e-6,
        torch.bfloat16: 2**-7,
        torch.float16: 2**-10,
        torch.int64: 0,
    }[want.dtype]
    atol = share * want.abs().max().item() if share and want.numel() else 0.0
    torch.testing.assert_close(
        got, want, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{level}: {text}"
    )


def test_rows_have_the_same_bits_whatever_is_beside_them(operation: str, case: Case):
    suite = _cases(operation)
    # with matrix products of PyTorch's, the reference promises nothing
    for level in LEVELS[1:] if getattr(suite, "REFERENCE_ROWS_VARY", False) else LEVELS:
        with kernels.forced(level):
            whole = suite.run(case)
            count = whole.shape[0]
            for start, stop in ((0, 1), (count // 2, count // 2 + 1), (1, count), (count - 3, count)):
                start, stop = max(start, 0), min(stop, count)
                part = suite.run(case.rows(start, stop))
                same = torch.equal(_bits(part), _bits(whole[start:stop]))
                assert same, f"{level}: rows {start}:{stop} of {count}"


def test_threads_do_not_change_bits(operation: str, case: Case):
    first = None
    try:
        for count in (1, 2, 5):
            kernels.set_threads(count)
            got = _bits(_cases(operation).run(case))
            first = got if first is None else first
            assert torch.equal(got, first), f"{count} threads"
    finally:
        kernels.set_threads(0)
