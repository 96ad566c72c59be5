"""The network of a point and a time: what it sees, its start, its batches; bad input."""

import math

import jaxtyping
import pytest
import torch
from torch import nn

from refimpl.nets import timed_mlp
from refimpl.nets.residual import ResidualMLP


def perturbed(**settings):
    torch.manual_seed(0)
    net = timed_mlp(2, width=16, blocks=2, **settings)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def test_it_is_zero_at_first_yet_learns_from_the_first_step():
    net = timed_mlp(3, width=8, blocks=2, dim_context=2)
    x, t, c = torch.randn(5, 3), torch.rand(5, 1), torch.randn(5, 2)
    assert torch.equal(net(x, t, c), torch.zeros(5, 3))
    net(x, t, c).sum().backward()
    assert net.last[-1].weight.grad.abs().max() > 0
    with torch.no_grad():
        net.last[-1].weight.normal_()
    net.zero_grad()
    net(x, t, c).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_every_block_sees_time_waves_and_context_as_the_docstring_says():
    net, seen = perturbed(dim_context=1, frequencies=3), []
    assert isinstance(net.blocks, ResidualMLP)
    net.blocks.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    net(torch.zeros(1, 2), torch.tensor([[0.25]]), torch.tensor([[7.0]]))
    angles = [math.pi * k * 0.25 for k in (1, 2, 3)]
    wanted = [0.25, *map(math.cos, angles), *map(math.sin, angles), 7.0]
    torch.testing.assert_close(seen[0][0], torch.tensor(wanted))


def test_no_two_times_look_alike_also_where_the_waves_repeat():
    net, x = perturbed(), torch.ones(1, 2)
    assert (net(x, torch.tensor([[-1.4]])) - net(x, torch.tensor([[0.6]]))).abs().max() > 1e-3


def test_the_time_scale_stretches_the_clock():
    slow, net = perturbed(time_scale=1000.0), perturbed()
    x, t = torch.randn(6, 2), torch.rand(6, 1)
    torch.testing.assert_close(slow(x, 1000 * t), net(x, t))


def test_points_are_independent_and_time_and_context_are_spread():
    net = perturbed(dim_context=3)
    x, t, c = torch.randn(4, 5, 2), torch.rand(4, 5, 1), torch.randn(3)
    out = net(x, t, c)
    torch.testing.assert_close(out[2, 3], net(x[2, 3], t[2, 3], c))
    torch.testing.assert_close(net(x, torch.tensor([0.5]), c), net(x, torch.full((4, 5, 1), 0.5), c.expand(4, 5, 3)))


def test_double_and_vmap():
    net = perturbed().double()
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.rand(4, 1, dtype=torch.float64)
    assert net(x, t).dtype == torch.float64
    torch.testing.assert_close(torch.vmap(net)(x, t), net(x, t))
    jacobian = torch.func.jacrev(lambda x: net(x, t[0]))(x[0])
    assert jacobian.shape == (2, 2) and jacobian.abs().max() > 0


def test_it_learns_a_function_of_point_and_time():
    torch.manual_seed(0)
    net = timed_mlp(1, width=32, blocks=2)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(300):
        x, t = torch.randn(128, 1), torch.rand(128, 1)
        loss = (net(x, t) - x * torch.cos(6 * t)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.03  # 0.5 for the best function of x alone


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: timed_mlp(0, width=4, blocks=2), ValueError, ["dim", "0"]),
        (lambda: timed_mlp(2, width=4.0, blocks=2), ValueError, ["width", "4.0"]),
        (lambda: timed_mlp(2, width=4, blocks=0), ValueError, ["blocks", "0"]),
        (lambda: timed_mlp(2, width=4, blocks=1, frequencies=0), ValueError, ["frequencies", "0"]),
        (lambda: timed_mlp(2, width=4, blocks=1, dim_context=-1), ValueError, ["dim_context", "-1"]),
        (lambda: timed_mlp(2, width=4, blocks=1, time_scale=0), ValueError, ["time_scale", "0"]),
        (lambda: timed_mlp(2, width=4, blocks=1)(torch.zeros(3, 2), torch.zeros(3)), ValueError, ["t:", "(3,)"]),
        (
            lambda: timed_mlp(2, width=4, blocks=1)(torch.zeros(3, 2), torch.zeros(1), torch.zeros(3, 1)),
            ValueError,
            ["context", "1", "0"],
        ),
        (
            lambda: timed_mlp(2, width=4, blocks=1, dim_context=2)(torch.zeros(3, 2), torch.zeros(1)),
            ValueError,
            ["context", "0", "2"],
        ),
    ],
)
def test_bad_input_is_named(call, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error) as caught:
        call()
    assert [w for w in words if w not in str(caught.value)] == []


def test_parameters_are_those_of_its_three_parts():
    net = timed_mlp(2, width=8, blocks=3, frequencies=4)
    block = (8 + 9) * 8 + 8 + 8 * 8 + 8
    assert sum(p.numel() for p in net.parameters()) == (2 * 8 + 8) + 3 * block + (8 * 2 + 2)
    assert isinstance(net.last[0], nn.SiLU)
