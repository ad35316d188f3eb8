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


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        found = [(operation, case) for operation in FAST for case in _cases(operation).cases()]
        if "rows" in metafunc.function.__name__:
            found = [(operation, case) for operation, case in found if case.by_row]
        metafunc.parametrize(
            ("operation", "case"), [pytest.param(o, c, id=f"{o}-{c.name}") for o, c in found]
        )
    if "level" in metafunc.fixturenames:
        metafunc.parametrize("level", LEVELS)


@pytest.mark.parametrize("operation", kernels.operations())
def test_an_operation_has_a_reference(operation):
    assert (FOLDER / operation / "reference.py").exists()


def test_equals_the_reference(operation: str, case: Case, level: str):
    with kernels.forced(kernels.REFERENCE):
        want = _cases(operation).run_reference(case)
    with kernels.forced(level):
        got = _cases(operation).run(case)
    assert got.shape == want.shape and got.dtype == want.dtype
    # Relative to the element: float32 sums in another order, and one unit in the last place of a rounded result.
    rtol = {
        torch.float64: 1e-12,
        torch.float32: 2e-6,
        torch.bfloat16: 2**-7,
        torch.float16: 2**-10,
        torch.int64: 0,
    }[want.dtype]
    share = getattr(_cases(operation), "OF_LARGEST", 0.0)
    atol = share * want.abs().max().item() if share and want.numel() else 0.0
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


def test_rows_have_the_same_bits_whatever_is_beside_them(operation: str, case: Case, level: str):
    if level == kernels.REFERENCE and getattr(_cases(operation), "REFERENCE_ROWS_VARY", False):
        pytest.skip("its matrix products are PyTorch's")
    with kernels.forced(level):
        whole = _cases(operation).run(case)
        count = whole.shape[0]
        for start, stop in ((0, 1), (count // 2, count // 2 + 1), (1, count), (count - 3, count)):
            start, stop = max(start, 0), min(stop, count)
            part = _cases(operation).run(case.rows(start, stop))
            assert torch.equal(_bits(part), _bits(whole[start:stop])), f"rows {start}:{stop} of {count}"


def test_threads_do_not_change_bits(operation: str, case: Case):
    try:
        results = []
        for count in (1, 2, 5):
            kernels.set_threads(count)
            results.append(_bits(_cases(operation).run(case)))
    finally:
        kernels.set_threads(0)
    assert all(torch.equal(result, results[0]) for result in results)


def test_native_levels_agree_bit_for_bit(operation: str, case: Case):
    if not _cases(operation).SAME_BITS_ON_EVERY_LEVEL:
        pytest.skip("this operation does not promise it")
    results = {}
    for level in LEVELS[1:]:
        with kernels.forced(level):
            results[level] = _bits(_cases(operation).run(case))
    for level, result in results.items():
        assert torch.equal(result, results[LEVELS[1]]), f"{level} differs from {LEVELS[1]}"


def test_inputs_are_not_changed(operation: str, case: Case, level: str):
    tensors = [value for value in case.arguments.values() if isinstance(value, torch.Tensor)]
    before = [_bits(tensor.clone()) for tensor in tensors]
    with kernels.forced(level):
        _cases(operation).run(case)
    assert all(torch.equal(_bits(tensor), old) for tensor, old in zip(tensors, before, strict=True))
