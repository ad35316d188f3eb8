"""rms_norm beyond the contract: wrong arguments, and agreement with the reference model code."""

import pytest
import torch

from headrace import kernels
from headrace.kernels.rms_norm import rms_norm


@pytest.fixture(params=kernels.available())
def level(request):
    with kernels.forced(request.param):
        yield request.param


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(2, 8), torch.ones(7)),
        (torch.ones(2, 8), torch.ones(1)),
        (torch.ones(2, 8), torch.ones(1, 8)),
        (torch.ones(2, 8), torch.ones(8, dtype=torch.bfloat16)),
        (torch.ones(2, 0), torch.ones(0)),
        (torch.tensor(1.0), torch.ones(1)),
    ],
    ids=["narrow-weight", "would-broadcast", "two-axes", "other-dtype", "no-width", "no-axis"],
)
def test_arguments_that_do_not_fit_are_refused(level, x, weight):
    with pytest.raises(ValueError):
        rms_norm(x, weight)


def test_a_parameter_that_requires_grad_is_accepted(level):
    x = torch.randn(3, 20)
    weight = torch.nn.Parameter(torch.randn(20))
    with torch.inference_mode():
        assert torch.equal(rms_norm(x, weight), rms_norm(x, weight.detach()))


def test_nothing_is_written_outside_the_result():
    native = kernels.native("rms_norm")
    if native is None:
        pytest.skip("no native module")
    for width in range(1, 40):
        for dtype in (torch.float32, torch.bfloat16):
            memory = torch.full((3 * width + 64,), 7.0, dtype=dtype)
            out = memory[32 : 32 + 3 * width].view(3, width)
            native(torch.randn(3, width).to(dtype), torch.ones(width, dtype=dtype), out, 1e-5, 0.0)
            assert bool((memory[:32] == 7).all() and (memory[32 + 3 * width :] == 7).all())


class _PlainDLPack:
    """A tensor of a library that offers `__dlpack__` only, not the table that PyTorch 2.10 brought."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **arguments):
        return self.tensor.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_arrive_by_plain_dlpack_too(dtype):
    native = kernels.native("rms_norm")
    if native is None:
        pytest.skip("no native module")
    x, weight = torch.randn(3, 4, 21).to(dtype)[1:], torch.randn(21).to(dtype)
    out = torch.empty_like(x)
    native(*map(_PlainDLPack, (x, weight, out)), 1e-5, 0.0)
    assert torch.equal(out, rms_norm(x, weight, 1e-5))
    with pytest.raises(ValueError, match="weight is a int"):
        native(x, 3, out, 1e-5, 0.0)
    with pytest.raises(ValueError, match="contiguous"):
        native(x[..., ::2], weight[:11], torch.empty(2, 4, 11, dtype=dtype), 1e-5, 0.0)


def test_equals_the_model_code_of_transformers(level):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    gemma = pytest.importorskip("transformers.models.gemma.modeling_gemma")
    x, weight = torch.randn(7, 96), torch.randn(96)
    for module, offset in ((llama.LlamaRMSNorm(96, eps=1e-5), 0.0), (gemma.GemmaRMSNorm(96, eps=1e-5), 1.0)):
        module.weight.data.copy_(weight)
        with torch.no_grad():
            torch.testing.assert_close(rms_norm(x, weight, 1e-5, weight_offset=offset), module(x))
