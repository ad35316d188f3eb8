"""lora beyond the contract: the formula, and what is refused."""

import pytest
import torch

from headrace import kernels
from headrace.kernels.lora import Group, lora, num_bytes, pack, pack_inputs, pack_outputs

LEVELS = kernels.available()


@pytest.fixture(params=LEVELS)
def level(request):
    with kernels.forced(request.param):
        yield request.param


def test_it_is_the_formula(level):
    """Two adapters on a stacked product: the first changes outputs 0 to 4 and 9 to 12, the second all of them."""
    random = torch.Generator().manual_seed(1)
    x, out = torch.randn(5, 30, generator=random), torch.randn(5, 12, generator=random)
    a, b, c, d = (torch.randn(*s, generator=random) for s in ((3, 30), (4, 3), (2, 30), (3, 2)))
    e, f = torch.randn(4, 30, generator=random), torch.randn(12, 4, generator=random)
    want = out.clone()
    want[[0, 3], :4] += 0.5 * x[[0, 3]] @ a.T @ b.T
    want[[0, 3], 9:] += 2.0 * x[[0, 3]] @ c.T @ d.T
    want[[4]] += x[[4]] @ e.T @ f.T
    first, second = pack([(a, b, 0.5, 0), (c, d, 2.0, 9)]), pack([(e, f, 1.0, 0)])
    got = out.clone()
    lora(got, x, [Group(torch.tensor([0, 3]), first), Group(torch.tensor([4]), second)])
    torch.testing.assert_close(got, want)
    assert torch.equal(got[[1, 2]], out[[1, 2]]), "a row without an adapter changed"
    assert num_bytes(30, [(3, 4), (2, 3)], 4) == first.down.nbytes + first.up.nbytes


def test_chosen_inputs_and_outputs_are_columns_and_rows_of_a_difference(level):
    random = torch.Generator().manual_seed(2)
    x, out = torch.randn(3, 9, generator=random), torch.randn(3, 7, generator=random)
    columns, rows = torch.randn(4, 2, generator=random), torch.randn(3, 9, generator=random)
    want = out.clone()
    want[0, 2:6] += columns @ x[0, [1, 8]]
    want[2, [0, 3, 6]] += rows @ x[2]
    inputs = pack_inputs(torch.tensor([1, 8]), columns, 2, 9)
    outputs = pack_outputs(torch.tensor([0, 3, 6]), rows)
    got = out.clone()
    lora(got, x, [Group(torch.tensor([0]), inputs), Group(torch.tensor([2]), outputs)])
    torch.testing.assert_close(got, want)
    assert num_bytes(0, [(2, 4)], 4) == inputs.up.nbytes and num_bytes(9, [(3, 0)], 4) == outputs.down.nbytes


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="the native module checks")
def test_arguments_that_do_not_fit_are_refused():
    x, out = torch.zeros(2, 5), torch.zeros(2, 7)
    weight = pack([(torch.zeros(3, 5), torch.zeros(7, 3), 1.0, 0)])
    for rows in ([2], [-1]):
        with pytest.raises(ValueError, match="of 2"):
            lora(out, x, [Group(torch.tensor(rows), weight)])
    with pytest.raises(ValueError, match="twice"):
        lora(out, x, [Group(torch.tensor([0]), weight), Group(torch.tensor([1, 0]), weight)])
    with pytest.raises(ValueError, match="of 6"):
        lora(torch.zeros(2, 6), x, [Group(torch.tensor([0]), weight)])
    with pytest.raises(ValueError, match="down has"):
        lora(out, torch.zeros(2, 60), [Group(torch.tensor([0]), weight._replace(width=60))])
    with pytest.raises(ValueError, match="up has"):
        lora(out, x, [Group(torch.tensor([0]), weight._replace(up=weight.up[1:]))])
    with pytest.raises(ValueError, match="both"):
        lora(out, x, [Group(torch.tensor([0]), weight._replace(up=weight.up.bfloat16()))])
    inputs = pack_inputs(torch.tensor([1, 4]), torch.zeros(7, 2), 0, 5)
    for wrong in ([4, 1], [1, 1], [1, 5], [-1, 2], [1]):
        with pytest.raises(ValueError, match="down"):
            lora(out, x, [Group(torch.tensor([0]), inputs._replace(down=torch.tensor(wrong)))])
    with pytest.raises(ValueError, match="both"):
        lora(out, x, [Group(torch.tensor([0]), inputs._replace(up=torch.tensor([0, 1])))])
    with pytest.raises(ValueError, match="rows"):
        lora(torch.zeros(3, 7), x, [Group(torch.tensor([0]), weight)])
