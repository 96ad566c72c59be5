"""Small networks against hand-made passes, kernels and fixed points; a stack against its networks one by one."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.kernel_approximation import RBFSampler
from torch import nn

from refimpl import runtime
from refimpl.nets import FourierFeatures, Sine, Stack, mlp, siren

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=runtime.generator(seed))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("batch", [(), (4,), (2, 0), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_alternating_layers_with_a_linear_output(batch, dtype, bias):
    net = mlp(3, 2, width=5, depth=3, activation=nn.Tanh, bias=bias).to(dtype)
    assert [type(m) for m in net] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    x = normal(*batch, 3, dtype=dtype)
    a, b, c = net[::2]
    expected = c(torch.tanh(b(torch.tanh(a(x)))))
    assert net(x).dtype == dtype and torch.equal(net(x), expected)
    assert all((layer.bias is not None) == bias for layer in (a, b, c))
    assert len(mlp(3, 2, width=5, depth=1)) == 1


def test_scaling_a_bias_free_relu_network_scales_its_output_by_the_power_of_its_depth():
    net = mlp(3, 2, width=5, depth=4, bias=False).double()
    x, before = normal(6, 3), net(normal(6, 3)).detach()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.7)
    torch.testing.assert_close(net(x), 1.7**4 * before)


@pytest.mark.parametrize("sigma", [0.3, 2])
def test_fourier_features_approach_their_gaussian_kernel_as_scikit_learns_do(sigma):
    x, m = normal(12, 2) / (2 * sigma), 20_000
    mapped = FourierFeatures(2, m, sigma=sigma, generator=runtime.generator(0)).double()(x)
    exact = torch.exp(-2 * math.pi**2 * sigma**2 * torch.cdist(x, x).square())
    sampler = RBFSampler(gamma=2 * math.pi**2 * sigma**2, n_components=m, random_state=0)
    theirs = torch.from_numpy(sampler.fit_transform(x.numpy()))
    noise = 6 / math.sqrt(m)
    torch.testing.assert_close(mapped @ mapped.T / m, exact, atol=noise, rtol=0)
    torch.testing.assert_close(mapped @ mapped.T / m, theirs @ theirs.T, atol=2 * noise, rtol=0)


def test_fourier_features_are_frozen_kept_and_drawn_from_their_generator():
    one, same, other = (FourierFeatures(2, 8, sigma=1, generator=runtime.generator(s)) for s in (0, 0, 1))
    assert torch.equal(one.matrix, same.matrix) and not torch.equal(one.matrix, other.matrix)
    assert list(one.parameters()) == [] and list(one.state_dict()) == ["matrix"]
    assert one(torch.zeros(2, 3, 2)).shape == (2, 3, 16)


@pytest.mark.parametrize("biases", [True, False])
def test_siren_keeps_the_spread_of_its_inputs_at_the_fixed_point(biases):
    """With z ~ N(0, s) and a phase b ~ U(-a, a), E sin^2(z + b) = (1 - exp(-2 s) sin(2 a) / (2 a)) / 2."""
    a = 30 / math.sqrt(512)
    phases = math.sin(2 * a) / (2 * a) if biases else 1.0
    s = brentq(lambda s: s - 1 + phases * math.exp(-2 * s), 0.1, 2)
    assert biases or math.sqrt(s) == pytest.approx(0.893, abs=1e-3)
    net = siren(1, 1, width=512, depth=7, generator=runtime.generator(0))
    h, spreads = 2 * torch.rand(1000, 1, generator=runtime.generator(1)) - 1, []
    with torch.no_grad():
        for layer in net[:-1:2]:
            layer.bias.mul_(biases)
            spreads.append((30 * h @ layer.weight.T).std().item())  # what enters the sine, without its bias
            h = torch.sin(30 * layer(h))
    assert spreads[3:] == pytest.approx([math.sqrt(s)] * 3, rel=0.05)


def test_siren_draws_within_its_limits_and_from_its_generator():
    net, same = (siren(4, 1, width=50, depth=3, omega=20, generator=runtime.generator(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))
    for layer, limit in zip(net[::2], (1 / 4, math.sqrt(6 / 50) / 20, math.sqrt(6 / 50) / 20), strict=True):
        assert 0.9 * limit < layer.weight.abs().max() <= limit
    x = normal(3, 4, dtype=torch.float32)
    torch.testing.assert_close(net(x), net[4](torch.sin(20 * net[2](torch.sin(20 * net[0](x))))))


MAKERS = {
    "mlp": lambda seed: mlp(2, 3, width=4, depth=3),
    "bias-free tanh": lambda seed: mlp(2, 1, width=4, depth=2, activation=nn.Tanh, bias=False),
    "features": lambda seed: nn.Sequential(
        FourierFeatures(2, 3, sigma=1, generator=runtime.generator(seed)), *mlp(6, 1, width=4, depth=2)
    ),
    "siren": lambda seed: siren(2, 1, width=4, depth=3, generator=runtime.generator(seed)),
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(MAKERS)),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), max_size=2),
    st.sampled_from([torch.float32, F64]),
    st.integers(0, 100),
)
def test_a_stack_equals_its_networks_in_values_and_gradients(kind, size, batch, dtype, seed):
    networks = [MAKERS[kind](seed + i).to(dtype) for i in range(size)]
    stack = Stack(networks)
    x = normal(size, *batch, 2, seed=seed, dtype=dtype)
    weights = normal(size, *batch, networks[0](x[0]).shape[-1], seed=seed + 1, dtype=dtype)
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-12}
    together, alone = stack(x), torch.stack([net(xi) for net, xi in zip(networks, x, strict=True)])
    torch.testing.assert_close(together, alone, **close)
    (together * weights).sum().backward()
    (alone * weights).sum().backward()
    for name, p in networks[0].named_parameters():
        gradients = torch.stack([net.get_parameter(name).grad for net in networks])
        assert p.dtype == dtype
        torch.testing.assert_close(stack.state()[name].grad, gradients, **close)


def test_a_stack_is_independent_of_what_it_was_made_of():
    net = siren(1, 1, width=3, depth=2, generator=runtime.generator(0))
    stack, x = Stack([net, net]), torch.ones(2, 1)
    before = stack(x).detach()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    assert torch.equal(stack(x), before)
    (stack(x)[0].sum()).backward()  # only the first of the two copies
    assert stack.state()["0.weight"].grad[0].any() and not stack.state()["0.weight"].grad[1].any()
    assert net[0].weight.grad is None


def test_networks_come_back_out_of_a_stack_also_after_saving(tmp_path):
    networks = [MAKERS["features"](i) for i in range(3)]
    torch.save(Stack(networks).state_dict(), tmp_path / "stack.pt")
    stack = Stack([MAKERS["features"](9) for _ in range(3)])
    stack.load_state_dict(torch.load(tmp_path / "stack.pt", weights_only=True))
    x = normal(5, 2, dtype=torch.float32)
    assert torch.equal(stack.network(2, MAKERS["features"](7))(x), networks[2](x))
    clone = copy.deepcopy(stack).double()
    torch.testing.assert_close(clone(x.double().expand(3, -1, -1))[1], networks[1].double()(x.double()))


def test_evaluation_mode_reaches_the_networks():
    networks = [nn.Sequential(nn.Linear(2, 50), nn.Dropout(0.5)) for _ in range(2)]
    stack, x = Stack(networks).eval(), normal(2, 3, 2, dtype=torch.float32)
    torch.testing.assert_close(stack(x), torch.stack([net.eval()(xi) for net, xi in zip(networks, x, strict=True)]))


@pytest.mark.parametrize(
    "other", [mlp(1, 1, width=3, depth=2, activation=nn.Tanh), mlp(1, 1, width=3, depth=2).double()]
)
def test_networks_that_differ_only_in_activation_or_type_do_not_stack(other):
    with pytest.raises(ValueError, match="networks"):
        Stack([mlp(1, 1, width=3, depth=2), other])


def test_sines_of_different_frequency_do_not_stack():
    with pytest.raises(ValueError, match="networks"):
        Stack([Sine(1.0), Sine(2.0)])
