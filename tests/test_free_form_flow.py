"""The surrogate of free-form flows against exact gradients, finite differences and closed forms; the density; bad input."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import MultivariateNormal

from refimpl.autodiff import jacobian, log_det_jacobian, probe_vectors
from refimpl.flows import AffineMap, Flow, StandardNormal, StudentT, coupling_flow
from refimpl.free_form import FreeFormFlow, fff_loss, volume_change_surrogate
from refimpl.nets import mlp, residual_mlp
from refimpl.nets.egnn import egnn

F64 = torch.float64


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def stirred(module, seed=0, scale=0.3):
    """The module in double precision with weights away from any special start."""
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=source(seed), dtype=F64))
    return module


def inverse_at(f, x):
    """Decoder that inverts f to first order at the points x."""
    with torch.no_grad():
        z, inverse = f(x), torch.linalg.inv(jacobian(f, x))
    return lambda z1: x + (inverse @ (z1 - z).unsqueeze(-1)).squeeze(-1)


def gradient(scalar, module):
    parts = torch.autograd.grad(scalar, list(module.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(parts, module.parameters(), strict=True)
        ]
    )


NETWORKS = {
    "linear": (lambda: stirred(nn.Linear(4, 4)), 4),
    "residual MLP": (lambda: stirred(residual_mlp(4, width=12, depth=3, blocks=2), scale=0.1), 4),
    "MLP without skip": (lambda: stirred(mlp(3, 3, width=12, depth=3, activation=nn.Softplus)), 3),
    "tanh": (lambda: stirred(residual_mlp(5, width=8, depth=2, activation=nn.Tanh)), 5),
    "E(n) network": (lambda: stirred(egnn(4, 2, width=6, blocks=2, divisor=1), scale=0.1), 8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_with_all_probes_is_that_of_the_log_determinant(name):
    make, dim = NETWORKS[name]
    net, x = make(), torch.randn(6, dim, generator=source(), dtype=F64)
    exact = gradient(log_det_jacobian(net, x).mean(), net)
    s = volume_change_surrogate(net, inverse_at(net, x), x, num_probes=dim, generator=source()).surrogate
    assert (gradient(s.mean(), net) - exact).norm() < 1e-9 * exact.norm()


@pytest.mark.parametrize("seed", range(3))
def test_coupling_flow_with_its_own_inverse(seed):
    flow = stirred(coupling_flow(3, AffineMap(), 3, width=8), seed, 0.2)
    x = torch.randn(5, 3, generator=source(seed), dtype=F64)
    change = volume_change_surrogate(lambda x: flow(x)[0], lambda z: flow.inverse(z)[0], x, num_probes=3)
    torch.testing.assert_close(change.x1, x)
    torch.testing.assert_close(change.surrogate, torch.full((5,), 3.0, dtype=F64))
    exact = gradient(flow(x)[1].mean(), flow)  # the flow's own log-determinant, not by autograd of a Jacobian
    # Through the inverse the decoder shares the encoder's parameters: the pushed vector must be cut off all the same.
    assert (gradient(change.surrogate.mean(), flow) - exact).norm() < 1e-9 * exact.norm()


def test_gradient_by_finite_differences_of_the_triangular_map():
    """z1 = x1 e^a, z2 = x2 e^b + c sin x1 has log-determinant a + b."""
    theta = torch.tensor([0.3, -0.5, 0.7], dtype=F64, requires_grad=True)

    def f(x):
        a, b, c = theta
        return torch.stack([x[:, 0] * a.exp(), x[:, 1] * b.exp() + c * x[:, 0].sin()], 1)

    def g(z):
        a, b, c = theta.detach()
        x1 = z[:, 0] * (-a).exp()
        return torch.stack([x1, (z[:, 1] - c * x1.sin()) * (-b).exp()], 1)

    x = torch.randn(9, 2, generator=source(), dtype=F64)
    s = volume_change_surrogate(f, g, x, num_probes=2, generator=source()).surrogate
    torch.testing.assert_close(s, torch.full((9,), 2.0, dtype=F64))
    torch.testing.assert_close(
        torch.autograd.grad(s.mean(), theta)[0], torch.tensor([1.0, 1.0, 0.0], dtype=F64), atol=1e-12, rtol=0
    )


def test_one_probe_is_unbiased_with_the_known_variance():
    net, h = stirred(residual_mlp(4, width=8, depth=2)), stirred(residual_mlp(4, width=8, depth=2), 1)
    x = torch.randn(1, 4, generator=source(), dtype=F64)
    M = jacobian(h, x)[0] @ torch.linalg.inv(jacobian(net, x)[0])
    S = (M + M.T) / 2
    n = 40_000
    t = torch.zeros(n, 1, dtype=F64, requires_grad=True)
    copies = x.expand(n, 4)
    s = volume_change_surrogate(lambda x: net(x) + t * h(x), inverse_at(net, copies), copies, generator=source(5))
    draws = torch.autograd.grad(s.surrogate.sum(), t)[0].squeeze()
    assert abs(draws.mean() - M.trace()) < 4 * draws.std() / math.sqrt(n)
    wanted = 2 * 4 / 6 * (S.square().sum() - S.trace() ** 2 / 4)
    assert abs(draws.var() / wanted - 1) < 0.05


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_any_batch_shape_and_several_probes_agree_with_one_by_one(dim, batch, seed):
    f, g = stirred(residual_mlp(dim, width=6, depth=2), seed), stirred(residual_mlp(dim, width=6, depth=2), seed + 1)
    x = torch.randn(batch, 2, dim, generator=source(seed), dtype=F64)
    v = probe_vectors(x, dim, "orthogonal", source(seed))
    whole = volume_change_surrogate(f, g, x, probes=v)
    parts = [volume_change_surrogate(f, g, x, probes=one[None]).surrogate for one in v]
    torch.testing.assert_close(whole.surrogate, torch.stack(parts).mean(0))
    flat = volume_change_surrogate(f, g, x.view(-1, dim), probes=v.view(dim, -1, dim))
    torch.testing.assert_close(whole.surrogate.flatten(), flat.surrogate)
    torch.testing.assert_close(whole.z, f(x))
    J, G = jacobian(f, x), jacobian(g, f(x))
    by_hand = torch.einsum("k...i,...ij,...jl,k...l->k...", v, J, G, v).mean(0)
    torch.testing.assert_close(whole.surrogate, by_hand)


def test_the_likelihood_gives_the_decoder_no_gradient():
    f, g = residual_mlp(3, width=8, depth=2), residual_mlp(3, width=8, depth=2)
    x = torch.randn(5, 3, generator=source())
    s = volume_change_surrogate(f, g, x).surrogate
    assert all(p is None for p in torch.autograd.grad(s.sum(), list(g.parameters()), allow_unused=True))


def test_probes_from_a_function_of_the_latents():
    f, g = residual_mlp(3, width=8, depth=2), residual_mlp(3, width=8, depth=2)
    x, seen = torch.randn(5, 3, generator=source()), []

    def make(z):
        seen.append(z.requires_grad)
        return torch.ones(2, 5, 3)

    s = volume_change_surrogate(f, g, x, probes=make).surrogate
    torch.testing.assert_close(s, volume_change_surrogate(f, g, x, probes=torch.ones(1, 5, 3)).surrogate)
    assert seen == [False]


def test_fewer_latents_than_features():
    """f(x) = A x, g(z) = A^+ z: the gradient is that of 1/2 log det(A A^T)."""
    A = torch.randn(2, 5, generator=source(), dtype=F64, requires_grad=True)
    back = torch.linalg.pinv(A.detach())
    x = torch.randn(4, 5, generator=source(), dtype=F64)
    s = volume_change_surrogate(lambda x: x @ A.T, lambda z: z @ back.T, x, num_probes=2).surrogate
    exact = torch.autograd.grad(0.5 * torch.logdet(A @ A.T), A)[0]
    torch.testing.assert_close(torch.autograd.grad(s.mean(), A)[0], exact)


def test_input_is_left_alone_and_values_need_no_gradients_around():
    f, g = residual_mlp(2, width=4, depth=2), residual_mlp(2, width=4, depth=2)
    x, v = torch.randn(3, 2, generator=source()), torch.ones(1, 3, 2)
    with torch.no_grad():
        s = volume_change_surrogate(f, g, x, probes=v).surrogate
    torch.testing.assert_close(s, volume_change_surrogate(f, g, x, probes=v).surrogate)
    assert not x.requires_grad and x.grad is None


def test_loss_is_its_parts():
    f, g = stirred(residual_mlp(3, width=8, depth=2)), stirred(residual_mlp(3, width=8, depth=2), 1)
    x = torch.randn(7, 3, generator=source(), dtype=F64)
    v = probe_vectors(x, 1, "sphere", source())
    for base, log_prob in ((None, StandardNormal([3]).double().log_prob), (StudentT([3.0] * 3).double(), None)):
        log_prob = log_prob or base.log_prob
        loss, parts = fff_loss(f, g, x, beta=7, base=base, probes=v)
        s = volume_change_surrogate(f, g, x, probes=v)
        rec = (x - s.x1).square().sum(1)
        torch.testing.assert_close(loss, (7 * rec - log_prob(s.z) - s.surrogate).mean())
        torch.testing.assert_close(parts["latent"], -log_prob(s.z).mean())
        torch.testing.assert_close(parts["reconstruction"], rec.mean())


def test_linear_pair_learns_a_gaussian_exactly():
    """At the optimum NLL = entropy, g f = I and f Sigma f^T = I."""
    root = torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=F64)
    sigma = root @ root.T
    pair = FreeFormFlow(
        nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 2, bias=False).double(), StandardNormal([2]).double()
    )
    with torch.no_grad():
        pair.encoder.weight.copy_(torch.eye(2))
        pair.decoder.weight.copy_(torch.eye(2))
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64) @ root.T  # covariance sigma
    optimizer = torch.optim.SGD(pair.parameters(), lr=0.04)
    for _ in range(1500):
        optimizer.zero_grad()
        pair.loss(corners, beta=3.0, num_probes=2, generator=source())[0].backward()
        optimizer.step()
    A, B = pair.encoder.weight.detach(), pair.decoder.weight.detach()
    torch.testing.assert_close(B @ A, torch.eye(2, dtype=F64), atol=1e-5, rtol=0)
    torch.testing.assert_close(A @ sigma @ A.T, torch.eye(2, dtype=F64), atol=1e-5, rtol=0)
    truth = MultivariateNormal(torch.zeros(2, dtype=F64), sigma)
    for side in ("encoder", "decoder"):
        torch.testing.assert_close(pair.log_prob(corners, side=side), truth.log_prob(corners), atol=1e-4, rtol=0)


class Side(nn.Module):
    """One direction of a bijection as a module."""

    def __init__(self, bijection, inverse):
        super().__init__()
        self.bijection, self.inverse = bijection, inverse

    def forward(self, x, context=None):
        return (self.bijection.inverse if self.inverse else self.bijection)(x, context)[0]


@pytest.fixture
def both():
    """A conditional coupling flow, as a flow and as a pair."""
    bijection = stirred(coupling_flow(3, AffineMap(), 3, width=8, dim_context=2), scale=0.2)
    base = StandardNormal([3]).double()
    return Flow(bijection, base), FreeFormFlow(Side(bijection, False), Side(bijection, True), base)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_density_is_that_of_the_flow_whose_directions_the_pair_is(both, side):
    flow, pair = both
    x, c = (torch.randn(5, n, generator=source(n), dtype=F64) for n in (3, 2))
    torch.testing.assert_close(pair.log_prob(x, c, side=side), flow.log_prob(x, c))
    torch.testing.assert_close(pair.log_prob(x, c[0], side=side), flow.log_prob(x, c[0].expand(5, 2)))


def test_samples_and_their_density(both):
    flow, pair = both
    c = torch.randn(4, 2, generator=source(), dtype=F64)
    x, log_prob = pair.sample_and_log_prob([6], c, generator=source(1))
    assert x.shape == (6, 4, 3) and log_prob.shape == (6, 4)
    torch.testing.assert_close(x, pair.sample([6], c, generator=source(1)))
    torch.testing.assert_close(x, flow.sample([6], c, generator=source(1)))
    torch.testing.assert_close(log_prob, flow.log_prob(x, c.expand(6, 4, 2)))


def test_as_distribution(both):
    pair = both[1]
    c = torch.randn(4, 2, generator=source(), dtype=F64)
    p = pair.as_distribution(c)
    assert p.batch_shape == (4,) and p.event_shape == (3,)
    x = p.sample([2])
    assert x.shape == (2, 4, 3) and not x.requires_grad
    torch.testing.assert_close(p.log_prob(x), pair.log_prob(x, c.expand(2, 4, 2)))


def test_gradients_of_the_exact_density_reach_both_networks():
    pair = FreeFormFlow(residual_mlp(2, width=4, depth=2), residual_mlp(2, width=4, depth=2), 2)
    pair.log_prob(torch.randn(3, 2, generator=source())).sum().backward()
    assert all(p.grad is not None for p in pair.parameters() if p.ndim == 2)


x32 = torch.zeros(5, 2)
NET = nn.Linear(2, 2)
PAIR, NAN = FreeFormFlow(NET, NET, 2), torch.full((1, 5, 2), math.nan)
GIVEN = FreeFormFlow(*(residual_mlp(2, width=4, depth=2, dim_context=3) for _ in range(2)), 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: volume_change_surrogate(NET, NET, [[0.0]]), TypeError, ["x:", "list", "floating-point"]),
        (lambda: volume_change_surrogate(NET, NET, torch.zeros(2, 2, dtype=torch.long)), TypeError, ["x:", "int64"]),
        (lambda: volume_change_surrogate(NET, NET, torch.tensor(1.0)), ValueError, ["x:", "()", "dim"]),
        (lambda: volume_change_surrogate(lambda x: x[:1] @ NET.weight, NET, x32), ValueError, ["encode", "(1, 2)", "5"]),
        (lambda: volume_change_surrogate(NET, nn.Linear(2, 3), x32), ValueError, ["decode", "(5, 3)", "2"]),
        (lambda: volume_change_surrogate(lambda x: 7, NET, x32), ValueError, ["encode", "int"]),
        (lambda: volume_change_surrogate(torch.zeros_like, NET, x32), ValueError, ["encode", "depend"]),
        (lambda: volume_change_surrogate(NET, NET, x32, num_probes=3), ValueError, ["num_probes", "3", "2"]),
        (lambda: volume_change_surrogate(NET, NET, x32, num_probes=0), ValueError, ["num_probes", "0"]),
        (lambda: volume_change_surrogate(NET, NET, x32, probes=torch.zeros(5, 2)), ValueError, ["probes", "(5, 2)"]),
        (lambda: volume_change_surrogate(NET, NET, x32, probes=torch.zeros(0, 5, 2)), ValueError, ["probes", "(0, 5, 2)"]),
        (lambda: volume_change_surrogate(NET, NET, x32, probes=torch.zeros(1, 5, 2).double()), ValueError, ["float64"]),
        (lambda: volume_change_surrogate(NET, NET, x32, probes=lambda z: None), ValueError, ["probes", "NoneType"]),
        (lambda: volume_change_surrogate(NET, NET, NAN[0]), ValueError, ["x:", "finite"]),
        (lambda: volume_change_surrogate(NET, NET, x32[:0]), ValueError, ["x:", "(0, 2)", "one point"]),
        (lambda: volume_change_surrogate(NET, NET, x32[:, :0]), ValueError, ["x:", "(5, 0)"]),
        (lambda: volume_change_surrogate(NET, NET, x32, num_probes=1.5), ValueError, ["num_probes", "1.5", "whole"]),
        (lambda: volume_change_surrogate(NET, NET, x32, probes=NAN), ValueError, ["probes", "finite"]),
        (lambda: fff_loss(NET, NET, x32, beta=1, base=3), TypeError, ["base", "int", "Base"]),
        (lambda: FreeFormFlow(NET, NET, True), TypeError, ["base", "True"]),
        (lambda: PAIR.loss(torch.zeros(5, 3), beta=1), ValueError, ["x:", "(5, 3)", "2"]),
        (lambda: PAIR.loss(x32.double(), beta=1), TypeError, ["x:", "float64", "float32"]),
        (lambda: PAIR.loss(NAN[0], beta=1), ValueError, ["x:", "finite"]),
        (lambda: PAIR.log_prob([[0.0, 0.0]]), TypeError, ["x:", "list"]),
        (lambda: PAIR.log_prob(x32.long()), TypeError, ["x:", "int64"]),
        (lambda: PAIR.log_prob(x32.double()), TypeError, ["x:", "float64", "float32"]),
        (lambda: GIVEN.log_prob(x32, [0.0] * 3), TypeError, ["context", "list"]),
        (lambda: GIVEN.log_prob(x32, torch.zeros(4, 3)), ValueError, ["context", "(4, 3)", "5"]),
        (lambda: GIVEN.loss(x32, torch.zeros(4, 3), beta=1), ValueError, ["context", "(4, 3)", "5"]),
        (lambda: GIVEN.sample([2], [0.0] * 3), TypeError, ["context", "list"]),
        (lambda: fff_loss(NET, NET, x32, beta=0.0), ValueError, ["beta", "0.0", "> 0"]),
        (lambda: fff_loss(NET, NET, x32, beta=-1), ValueError, ["beta", "-1"]),
        (lambda: fff_loss(NET, NET, x32, beta=math.nan), ValueError, ["beta", "nan"]),
        (lambda: FreeFormFlow(torch.exp, NET, 2), TypeError, ["encoder", "module"]),
        (lambda: FreeFormFlow(NET, "g", 2), TypeError, ["decoder", "str"]),
        (lambda: FreeFormFlow(NET, NET, "normal"), TypeError, ["base", "normal"]),
        (lambda: FreeFormFlow(NET, NET, StandardNormal([2, 2])), TypeError, ["base"]),
        (lambda: FreeFormFlow(NET, NET, 2).log_prob(x32, side="both"), ValueError, ["side", "both", "encoder"]),
        (lambda: FreeFormFlow(NET, NET, 2).log_prob(torch.zeros(5, 3)), ValueError, ["x:", "(5, 3)", "2"]),
        (lambda: FreeFormFlow(NET, NET, 2).sample(3), (TypeError, ValueError), ["shape", "3"]),
    ],
)  # fmt: skip
def test_bad_input(call, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(error) as caught:
        call()
    assert [w for w in words if w not in str(caught.value)] == []
