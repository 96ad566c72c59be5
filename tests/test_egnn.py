"""The E(n) network: its symmetries, its Jacobian, its derivatives where particles meet; the mean-free base density."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from refimpl import autodiff
from refimpl.free_form.equivariant import MeanFreeNormal
from refimpl.nets import egnn

F64 = torch.float64


def network(n=4, dim=2, seed=0, **settings):
    """Far from the identity: with the initial weights of the last layers every symmetry would nearly hold anyway."""
    torch.manual_seed(seed)
    net = egnn(n, dim, **dict(width=7, blocks=2, divisor=1) | settings).double()
    for block in net.blocks:
        torch.nn.init.normal_(block.pull[-1].weight)
    return net


def orthogonal(dim, generator, mirrored):
    q, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=F64, generator=generator))
    if (torch.det(q) < 0) != mirrored:
        q[:, 0] *= -1
    return q


def mean_free_basis(n, dim):
    """Orthonormal, (n * dim, (n - 1) * dim)."""
    helmert = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=F64), torch.eye(n, dtype=F64)[:, 1:]], 1))[0][
        :, 1:
    ].contiguous()
    return torch.kron(helmert, torch.eye(dim, dtype=F64))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 999), st.integers(2, 5), st.integers(1, 3), st.booleans())
def test_it_commutes_with_moving_turning_mirroring_and_renaming(seed, n, dim, mirrored):
    net, g = network(n, dim, seed), torch.Generator().manual_seed(seed)
    x = torch.randn(3, n, dim, dtype=F64, generator=g)
    q, shift, order = orthogonal(dim, g, mirrored), torch.randn(dim, generator=g), torch.randperm(n, generator=g)

    def move(x):
        return x[:, order] @ q + shift

    moved, plain = net(move(x).flatten(1)).unflatten(1, (n, dim)), net(x.flatten(1)).unflatten(1, (n, dim))
    torch.testing.assert_close(moved, move(plain), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(plain.mean(1), x.mean(1), atol=1e-13, rtol=0)
    assert (plain - x).abs().max() > 1e-3  # it does something


@pytest.mark.parametrize(("n", "dim"), [(4, 2), (3, 3)])
def test_the_full_determinant_is_that_of_mean_free_configurations(n, dim):
    net, basis = network(n, dim), mean_free_basis(n, dim)
    x = torch.randn(5, (n - 1) * dim, dtype=F64)
    torch.testing.assert_close(basis.T @ basis, torch.eye((n - 1) * dim, dtype=F64))
    within = autodiff.log_det_jacobian(lambda y: net(y @ basis.T) @ basis, x)
    torch.testing.assert_close(autodiff.log_det_jacobian(net, x @ basis.T), within, atol=1e-12, rtol=1e-12)
    assert within.abs().min() > 1e-3


def test_every_particle_hears_of_every_other():
    jacobian = autodiff.jacobian(network(), torch.randn(8, dtype=F64)).unflatten(0, (4, 2)).unflatten(2, (4, 2))
    assert (jacobian.abs().amax((1, 3)) > 1e-4).all()


def test_it_starts_near_the_identity():
    torch.manual_seed(0)
    x = torch.randn(100, 8)
    assert (egnn(4, 2, width=16, blocks=3)(x) - x).abs().max() < 1e-3


@pytest.mark.parametrize("place", ["apart", "two meet", "all meet", "far apart"])
def test_two_derivatives_are_finite_and_right_everywhere(place):
    net, x = network(), torch.randn(2, 8, dtype=F64)
    if place == "two meet":
        x[:, 2:4] = x[:, :2]
    elif place == "all meet":
        x = x[:, :2].repeat(1, 4)
    elif place == "far apart":
        x = 1e3 * x
    x.requires_grad_()
    if place != "far apart":
        torch.autograd.gradcheck(net, x)
        torch.autograd.gradgradcheck(lambda x: net(x)[:, :3], x)
    (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    gradients = torch.autograd.grad(slope.square().sum(), [x, *net.parameters()], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3)])
def test_any_batch_and_precision(batch):
    net = network().float()
    x = torch.randn(*batch, 8)
    assert net(x).shape == x.shape and net(x).dtype == x.dtype
    one_by_one = [net(row) for row in x.reshape(-1, 8)]
    if one_by_one:
        torch.testing.assert_close(net(x).reshape(-1, 8), torch.stack(one_by_one))


def test_it_has_no_state_besides_its_parameters():
    net = network()
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


def test_one_particle_stays_where_it_is():
    x = torch.randn(3, 2)
    assert torch.equal(egnn(1, 2, width=4, blocks=1)(x), x)


def test_the_base_is_a_normal_density_on_its_subspace():
    base, basis = MeanFreeNormal(5, 3).double(), mean_free_basis(5, 3)
    y = torch.randn(7, 12, dtype=F64)
    oracle = MultivariateNormal(torch.zeros(12, dtype=F64), torch.eye(12, dtype=F64)).log_prob(y)
    torch.testing.assert_close(base.log_prob(y @ basis.T), oracle)
    torch.testing.assert_close(base.log_prob(y @ basis.T + 1e-7), oracle)  # rounding may move the centre of mass


@pytest.mark.parametrize(("n", "dim", "constant"), [(4, 2, 5.514), (13, 3, 33.081), (55, 3, 148.868)])
def test_the_constant_that_published_numbers_leave_out(n, dim, constant):
    assert -MeanFreeNormal(n, dim).log_prob(torch.zeros(n * dim)).item() == pytest.approx(constant, abs=1e-3)


def test_samples_of_the_base_have_its_covariance_and_no_mean():
    base, g = MeanFreeNormal(4, 2), torch.Generator().manual_seed(0)
    z = base.sample([20000], g)
    assert z.unflatten(1, (4, 2)).mean(1).abs().max() < 1e-5
    projection = torch.eye(8) - torch.kron(torch.full((4, 4), 0.25), torch.eye(2))
    torch.testing.assert_close(z.T.cov(), projection, atol=0.03, rtol=0)
    again = base.sample([2, 10000], torch.Generator().manual_seed(0))
    assert torch.equal(again.flatten(0, 1), z)
    entropy = 3 * math.log(2 * math.pi * math.e)
    assert -base.log_prob(z).mean().item() == pytest.approx(entropy, abs=4 * math.sqrt(3 / 20000))


CALLS = [
    ("num_particles", lambda: egnn(0, 2, width=4, blocks=1)),
    ("dim", lambda: egnn(4, 2.0, width=4, blocks=1)),
    ("width", lambda: egnn(4, 2, width=0, blocks=1)),
    ("blocks", lambda: egnn(4, 2, width=4, blocks=True)),
    ("rounds", lambda: egnn(4, 2, width=4, blocks=1, rounds=-1)),
    ("divisor", lambda: egnn(4, 2, width=4, blocks=1, divisor=0)),
    ("x", lambda: egnn(4, 2, width=4, blocks=1)(torch.zeros(5, 9))),
    ("x", lambda: egnn(4, 2, width=4, blocks=1)(torch.zeros(5, 4, 2))),
    ("num_particles", lambda: MeanFreeNormal(1, 2)),
    ("dim", lambda: MeanFreeNormal(4, 0)),
    ("z", lambda: MeanFreeNormal(4, 2).log_prob(torch.zeros(3, 6))),
    ("z", lambda: MeanFreeNormal(4, 2).log_prob(torch.full((3, 8), 0.01))),
    ("shape", lambda: MeanFreeNormal(4, 2).sample([-1])),
]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_bad_input_is_named(name, call, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: got"):
        call()
