"""The residual MLP against its formula; context; bad input."""

import jaxtyping
import pytest
import torch
from torch import nn

from refimpl.nets import mlp, residual_mlp


def test_it_is_the_sum_of_its_blocks_and_the_identity():
    net = residual_mlp(3, width=5, depth=2, blocks=2, dim_context=2)
    x, c = torch.randn(4, 3), torch.randn(4, 2)
    y = x
    for block in net.blocks:
        first, _, last = block
        y = y + last(nn.functional.silu(first(torch.cat([y, c], 1))))
    torch.testing.assert_close(net(x, c), y)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert torch.equal(net(x, c), x)


def test_without_context_it_is_x_plus_an_mlp():
    torch.manual_seed(0)
    net = residual_mlp(2, width=4, depth=3, activation=nn.Tanh)
    torch.manual_seed(0)
    plain = mlp(2, 2, width=4, depth=3, activation=nn.Tanh)
    x = torch.randn(7, 5, 2)
    torch.testing.assert_close(net(x), x + plain(x))


def test_context_is_spread_over_the_batch():
    net = residual_mlp(2, width=4, depth=2, dim_context=3)
    x, c = torch.randn(6, 4, 2), torch.randn(4, 3)
    spread = net(x, c)
    torch.testing.assert_close(spread, torch.stack([net(one, c) for one in x]))
    torch.testing.assert_close(net(x, c[0]), net(x, c[0].expand(6, 4, 3)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: residual_mlp(0, width=4, depth=2), ValueError, ["dim", "0"]),
        (lambda: residual_mlp(2, width=4, depth=2, blocks=0), ValueError, ["blocks", "0"]),
        (lambda: residual_mlp(2, width=4, depth=2, dim_context=-1), ValueError, ["dim_context", "-1"]),
        (lambda: residual_mlp(2, width=4, depth=2, activation=nn.SiLU()), TypeError, ["activation"]),
        (
            lambda: residual_mlp(2, width=4, depth=2)(torch.zeros(3, 2), torch.zeros(1)),
            ValueError,
            ["context", "1", "0"],
        ),
        (
            lambda: residual_mlp(2, width=4, depth=2, dim_context=3)(torch.zeros(3, 2)),
            ValueError,
            ["context", "0", "3"],
        ),
        (
            lambda: residual_mlp(2, width=4, depth=2, dim_context=3)(torch.zeros(3, 2), torch.zeros(3, 2)),
            ValueError,
            ["context", "2", "3"],
        ),
    ],
)
def test_bad_input(call, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error) as caught:
        call()
    assert [w for w in words if w not in str(caught.value)] == []
