"""`diagnose` finds what is wrong with pairs whose faults are known exactly; integrals against closed forms."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import MultivariateNormal

from refimpl.flows import AffineMap, coupling_flow
from refimpl.free_form import FreeFormFlow, diagnose, grid_integral, importance_integral
from refimpl.free_form.equivariant import MeanFreeNormal
from refimpl.nets import residual_mlp
from refimpl.nets.egnn import egnn


def source(seed=0):
    return torch.Generator().manual_seed(seed)


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x, context=None):
        return self.fn(x) if context is None else self.fn(x, context)


def normal(n=2000, dim=2, seed=0):
    return torch.randn(n, dim, generator=source(seed))


def test_inverse_pair_is_trusted_and_its_numbers_are_exact():
    flow = coupling_flow(2, AffineMap(), 2, width=8)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=source()))
    pair = FreeFormFlow(Fn(lambda x: flow(x)[0]), Fn(lambda z: flow.inverse(z)[0]), 2)
    x = pair.sample([2000], generator=source()).detach()
    found = diagnose(pair, x)
    z, log_det = flow(x)
    nll = (0.5 * z.square().sum(1) + math.log(2 * math.pi) - log_det).mean().item()
    assert found.nll_encoder == pytest.approx(nll, abs=1e-4) == pytest.approx(found.nll_decoder, abs=1e-4)
    assert found.integral == pytest.approx(1, abs=0.01) and found.integral_error == 0
    assert found.reconstruction < 1e-9 and found.lost < 1e-9 and found.jacobian_error < 1e-4
    assert found.trustworthy and found.verdict.startswith("Consistent") and not found.signs
    assert "Consistent" in str(found) and f"{found.nll_encoder:.3f}" in str(found)


def test_known_numbers_of_a_wrong_pair():
    """f = 2x, g = z on N(0, I): every number has a closed form."""
    pair = FreeFormFlow(Fn(lambda x: 2 * x), Fn(lambda z: z * 1), 2)
    x = normal(200_000)
    found = diagnose(pair, x)
    latent = 4 + math.log(2 * math.pi)  # E ||2x||^2 / 2 and the constant
    assert found.nll_encoder == pytest.approx(latent - 2 * math.log(2), abs=0.03)
    assert found.nll_decoder == pytest.approx(latent, abs=0.03)
    assert found.nll_decoder - found.nll_encoder == pytest.approx(2 * math.log(2), abs=1e-4)
    assert found.reconstruction == pytest.approx(2, abs=0.03) and found.lost == pytest.approx(1, abs=0.01)
    assert found.jacobian_error == pytest.approx(math.sqrt(2), abs=1e-5)
    assert found.integral == pytest.approx(1, abs=1e-3)  # f is one-to-one, whatever g is
    assert not found.trustworthy and found.verdict.startswith("Spurious")
    assert any("apart" in s for s in found.signs) and any("variance" in s for s in found.signs)


def test_fold_is_counted():
    """f(x) = (|x_1|, x_2) sends two points to a latent with z_1 > 0 and none to the others; (cosh) smooth: the same."""
    folded = FreeFormFlow(Fn(lambda x: torch.stack([2 * x[:, 0].square(), x[:, 1]], 1)), Fn(lambda z: z * 1), 2)
    found = diagnose(folded, normal(), steps=400)
    assert found.integral == pytest.approx(1, abs=0.02)  # two preimages of half of the latents: a fold that hides
    thrice = FreeFormFlow(Fn(lambda x: torch.stack([x[:, 0] ** 3 - 3 * x[:, 0], x[:, 1]], 1)), Fn(lambda z: z * 1), 2)
    found = diagnose(thrice, normal(), steps=400)
    inside = math.erf(2 / math.sqrt(2))  # |z_1| < 2 has three preimages, others one
    assert found.integral == pytest.approx(1 + 2 * inside, abs=0.01)
    assert any("folds" in s for s in found.signs) and "beta" in found.verdict


def test_importance_sampling_finds_the_same_mass():
    thrice = FreeFormFlow(Fn(lambda x: torch.cat([x[:, :1] ** 3 - 3 * x[:, :1], x[:, 1:]], 1)), Fn(lambda z: z * 1), 3)
    found = diagnose(thrice, normal(dim=3), generator=source(), steps=400)
    wanted = 1 + 2 * math.erf(2 / math.sqrt(2))
    assert abs(found.integral - wanted) < 4 * found.integral_error < 0.6


@given(st.integers(1, 6), st.floats(0.8, 3.0), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_importance_integral_of_a_gaussian_is_one(dim, spread, seed):
    factor = torch.randn(dim, dim + 2, generator=source(seed), dtype=torch.float64)
    law = MultivariateNormal(torch.ones(dim).double(), factor @ factor.T)
    x = law.mean + torch.randn(500, dim, generator=source(seed), dtype=torch.float64) @ law.scale_tril.T
    mass, error = importance_integral(law.log_prob, x, 4000, spread=spread, generator=source(seed))
    assert abs(mass - 1) < 5 * error and error < 0.2
    twice, _ = importance_integral(
        lambda x: law.log_prob(x) + math.log(2), x, 4000, spread=spread, generator=source(seed)
    )
    torch.testing.assert_close(twice, 2 * mass)


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_fold_with_equal_layers_is_found_in_any_dimension(dim):
    """Both modes of x_1 cover the whole normal; g returns the right one, and both sides gain the same 0.64 nats."""
    x = normal(dim=dim).double()
    x[:, 0] = (torch.rand(2000, generator=source(1)) < 0.5).double() * 2 - 1 + 0.2 * x[:, 0]

    def f(x):
        return torch.cat([5 * (x[..., :1] - (20 * x[..., :1]).tanh()), x[..., 1:]], -1)

    def g(z):
        return torch.cat([z[..., :1] / 5 + 1, z[..., 1:]], -1)

    found = diagnose(FreeFormFlow(Fn(f), Fn(g), dim), x, integrate=False)
    true = (dim - 1) * 0.5 * math.log(2 * math.pi * math.e) + 0.5 * math.log(2 * math.pi * math.e * 0.04) + math.log(2)
    assert found.nll_decoder - true == pytest.approx(-0.64, abs=0.2) and found.jacobian_error < 1e-6
    assert abs(found.nll_encoder - found.nll_decoder) < 1e-3  # tanh 20 x is not quite 1 next to the modes' edges
    assert found.lost == pytest.approx(2 / 1.04, abs=0.15)
    assert [s for s in found.signs if "along some direction" in s] == found.signs != []
    assert not found.trustworthy


def test_loss_along_the_worst_direction_whatever_the_units():
    """g leaves out a feature of tiny variance: all of it is lost, however the data are scaled or turned."""
    turn = torch.linalg.qr(normal(6, 6))[0]
    x = normal(dim=6) * torch.tensor([10.0, 3.0, 1.0, 1.0, 0.3, 0.05]) @ turn
    keep = turn.T @ torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.4])) @ turn
    found = diagnose(FreeFormFlow(Fn(lambda x: x * 1), Fn(lambda z: z @ keep), 6), x, integrate=False)
    assert found.lost == pytest.approx(0.36, abs=0.02) and found.reconstruction < 0.002
    flat = torch.cat([x, 2 * x[:, :1]], 1)  # no variance in one direction, which does not count
    pair = FreeFormFlow(Fn(lambda x: x * 1), Fn(lambda z: 0.9 * z), 7)
    assert diagnose(pair, flat, integrate=False).lost == pytest.approx(0.01, abs=1e-3)


def test_grid_integral_of_a_polynomial_and_its_order():
    low, high = torch.tensor([-1.0, 0.0]).double(), torch.tensor([2.0, 1.0]).double()
    errors = []
    for steps in (20, 40):
        found = grid_integral(lambda x: (x[:, 0] ** 2 * x[:, 1]).log(), low, high, steps)
        errors.append((found - 1.5).item())  # int x^2 over [-1, 2] is 3, int y is 1/2
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_relu_is_found_out_and_a_smooth_network_is_not():
    for activation, curved in ((nn.ReLU, False), (nn.SiLU, True), (nn.Tanh, True)):
        torch.manual_seed(0)
        pair = FreeFormFlow(
            residual_mlp(2, width=8, depth=3, activation=activation), residual_mlp(2, width=8, depth=3), 2
        )
        found = diagnose(pair, normal(50), integrate=False)
        assert found.curved == curved
        assert ("smooth activation" in found.verdict) == (not curved) and (curved or not found.trustworthy)
        assert math.isnan(found.integral) and "not asked for" in str(found)


def test_equivariant_pair_counts_as_curved_although_it_keeps_the_centre():
    torch.manual_seed(0)
    net = [egnn(3, 2, width=6, blocks=1, divisor=1) for _ in range(2)]
    base = MeanFreeNormal(3, 2)
    assert diagnose(FreeFormFlow(*net, base), base.sample([20], source()), integrate=False).curved


def test_context_and_not_finite():
    shift = FreeFormFlow(Fn(lambda x, c: x - c), Fn(lambda z, c: z + c), 2)
    c = normal(seed=1)
    found = diagnose(shift, normal() + c, c)
    assert found.nll_encoder == pytest.approx(found.nll_decoder, abs=1e-5) and math.isnan(found.integral)
    assert found.nll_encoder == pytest.approx(1 + math.log(2 * math.pi), abs=0.1) and found.jacobian_error == 0
    flat = FreeFormFlow(Fn(lambda x: x[:, :1].expand(-1, 2) * 1), Fn(lambda z: z * 1), 2)
    broken = diagnose(flat, normal(50))
    assert "not finite" in broken.verdict and not broken.trustworthy


LAW = FreeFormFlow(nn.Linear(2, 2), nn.Linear(2, 2), 2)
ZERO, ONE = torch.zeros(2), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: diagnose(nn.Linear(2, 2), normal(9)), TypeError, ["flow", "Linear", "FreeFormFlow"]),
        (lambda: diagnose(LAW, torch.zeros(9, 3)), ValueError, ["x:", "(9, 3)", "2"]),
        (lambda: diagnose(LAW, torch.full((9, 2), math.nan)), ValueError, ["x:", "finite"]),
        (lambda: diagnose(LAW, torch.zeros(1, 2)), ValueError, ["x:", "1 points"]),
        (lambda: diagnose(LAW, torch.zeros(0, 2)), ValueError, ["x:", "0 points"]),
        (lambda: diagnose(LAW, torch.ones(9, 2), integrate=False), ValueError, ["x:", "the same"]),
        (lambda: diagnose(LAW, normal(9).double()), TypeError, ["x:", "float64", "float32"]),
        (lambda: diagnose(LAW, normal(9), torch.zeros(4, 3)), ValueError, ["context", "(4, 3)", "9"]),
        (lambda: grid_integral(lambda x: x, ZERO, ONE, 3), ValueError, ["log_density", "(9, 2)", "9 points"]),
        (lambda: grid_integral(lambda x: x[:, :1], ZERO, ONE, 3), ValueError, ["log_density", "(9, 1)"]),
        (lambda: importance_integral(lambda x: 3, normal(9)), ValueError, ["log_density", "int"]),
        (lambda: importance_integral(torch.sum, normal(9), 1), ValueError, ["num_draws", "1", "2"]),
        (lambda: diagnose(LAW, normal(9), steps=0), ValueError, ["steps", "0"]),
        (lambda: grid_integral(torch.sum, ONE, ZERO), ValueError, ["high", "more than low"]),
        (lambda: grid_integral(torch.sum, torch.zeros(3), ONE), ValueError, ["low", "(3,)"]),
        (lambda: grid_integral(torch.sum, ZERO, ONE, 0), ValueError, ["steps"]),
        (lambda: importance_integral(torch.sum, torch.zeros(9, 2)), ValueError, ["x:", "singular"]),
        (lambda: importance_integral(torch.sum, normal(2)), ValueError, ["x:", "2 points"]),
        (lambda: importance_integral(torch.sum, normal(9), 0), ValueError, ["num_draws", "0"]),
        (lambda: importance_integral(torch.sum, normal(9), spread=0), ValueError, ["spread", "0"]),
    ],
)
def test_bad_input(call, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(error) as caught:
        call()
    assert [w for w in words if w not in str(caught.value)] == []
