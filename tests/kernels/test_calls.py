"""Native calls that are written down: what they do when they are made again, and what they still check then."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from headrace import kernels
from headrace.kernels import int_linear
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.rope import rotate
from headrace.kernels.route import gather

LEVELS = kernels.available()[1:]
pytestmark = pytest.mark.skipif(not LEVELS, reason="no native module")


@pytest.fixture(autouse=True, params=LEVELS)
def level(request):
    with kernels.forced(request.param):
        yield request.param


def test_they_are_made_when_they_are_written_down_and_whenever_wanted():
    x, weight, calls = torch.randn(2, 8), torch.ones(8), []
    native = kernels.native("rms_norm")
    with kernels.written_down(calls):
        out = rms_norm(x, weight)
    assert kernels.native("rms_norm") is native, "calls are still written down"
    assert torch.equal(out, rms_norm(x, weight)) and len(calls) == 1
    x.copy_(torch.randn(2, 8))
    calls[0]()
    assert torch.equal(out, rms_norm(x, weight))


def test_joined_they_are_made_in_order_whether_bound_or_not():
    calls = []
    x, rows, weight = torch.randn(5, 8), torch.tensor([3, 1]), torch.randn(8)
    with kernels.written_down(calls):
        once = rms_norm(x, weight)
        twice = rms_norm(once, weight)
        gathered = gather(twice, rows)  # has no binding, and goes the slow way
        last = rms_norm(gathered, weight)
    joined = kernels.joined(calls)
    assert [hasattr(call, "time") for call in joined] == [True, False, True]
    assert [len(joined[0]), len(joined[2])] == [2, 1]
    x.copy_(torch.randn(5, 8))
    expected = rms_norm(gather(rms_norm(rms_norm(x, weight), weight), rows), weight)
    for tensor in (once, twice, gathered, last):
        tensor.fill_(torch.nan)
    for call in joined:
        call()
    assert torch.equal(last, expected)


def test_values_in_memory_are_checked_each_time():
    calls, at = [], torch.tensor([0, 1])
    x, table = torch.randn(2, 1, 4), torch.randn(3, 2)
    weight = int_linear.round_and_pack(torch.randn(8, 32), group=32, bits=4, asymmetric=False)
    with kernels.written_down(calls):
        rotate(x, table, table, at)
        int_linear.outputs(weight, at)
    for place, wrong in ((0, "position 3 of 3"), (1, "output 8 of 8")):
        at.copy_(torch.tensor([0, 3 if place == 0 else 8]))
        with pytest.raises(ValueError, match=wrong):
            calls[place]()
    before = x.clone()
    with pytest.raises(ValueError, match="position 8"):
        kernels.joined(calls)[0]()
    assert torch.equal(x, before), "a call that was refused was made"


def test_wrong_arguments_are_written_down_nowhere():
    calls = []
    with kernels.written_down(calls), pytest.raises(ValueError, match="weight has 7"):
        rms_norm(torch.randn(2, 8), torch.randn(7))
    assert calls == []


def test_they_hold_what_they_use_and_nothing_longer():
    calls, x = [], torch.randn(2, 8)
    with kernels.written_down(calls):
        out = rms_norm(x, torch.ones(8))
    expected, alive = out.clone(), weakref.ref(x)
    joined = kernels.joined(calls)
    del x, calls
    gc.collect()
    assert alive() is not None
    out.zero_()
    joined[0]()
    assert torch.equal(out, expected)
    del joined
    gc.collect()
    assert alive() is None


def test_time_plays_them_too():
    calls, x, still = [], torch.randn(2, 8), torch.tensor([0, 0])
    with kernels.written_down(calls):
        out = rms_norm(rms_norm(x, torch.ones(8)), torch.ones(8))
        rotate(x.view(2, 1, 8), torch.ones(1, 4), torch.zeros(1, 4), still)
    (joined,) = kernels.joined(calls)
    expected = out.clone()
    out.zero_()
    spent = joined.time()
    assert {name: count for name, (count, _) in spent.items()} == {"rms_norm": 2, "rope": 1}
    assert all(seconds > 0 for _, seconds in spent.values())
    assert torch.equal(out, expected)
