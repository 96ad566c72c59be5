"""Autoregressive flows: who may listen to whom, sweeps of the inverse, and a Gaussian in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from refimpl import runtime
from refimpl.autodiff import jacobian
from refimpl.flows import (
    MADE,
    AdditiveMap,
    AffineMap,
    Flow,
    GINMap,
    MaskedAutoregressive,
    SplineMap,
    StandardNormal,
    iaf,
    maf,
)

F64 = torch.float64


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=0)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def stir(f, by=0.5):
    f.double()
    with torch.no_grad():
        for i, p in enumerate(f.parameters()):
            p += by * randn(*p.shape, seed=i)
    return f


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_each_output_hears_exactly_the_features_before_its_own(data):
    dim, num_params = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    order, depth = data.draw(st.permutations(range(dim))), data.draw(st.integers(1, 4))
    made = stir(MADE(dim, num_params, order=order, depth=depth, width=12, activation=torch.nn.Tanh))
    hears = jacobian(made, randn(20, dim)).abs().amax(0) > 0
    place = torch.tensor(order).argsort()
    assert torch.equal(hears, (place[:, None] > place).repeat(num_params, 1))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_context_reaches_every_feature(dim):
    f, x = stir(MaskedAutoregressive(dim, AffineMap(), dim_context=2, width=12)), randn(9, dim)
    moved = jacobian(lambda c: f(x, c)[0], randn(9, 2, seed=1)).abs().amax(0)
    assert (moved > 0).all()
    with pytest.raises(ValueError, match="context"):
        f(x)


@pytest.mark.parametrize("tau", [AffineMap(), SplineMap(bins=4)])
def test_one_sweep_settles_one_feature(tau):
    """The textbook inverse: sweeps of all features from 0. Feature number k of the order is right from sweep k on."""
    order = [2, 0, 3, 1]
    f, z = stir(MaskedAutoregressive(4, tau, order=order, width=16)), randn(7, 4)
    exact, log_det = f.inverse(z)
    x = torch.zeros_like(z)
    for k in range(4):
        assert (x - exact).abs()[:, order[k]].max() > 1e-6  # not before its time
        x, log_slopes = tau.inverse(z, f.made(x))
        close(x[:, order[: k + 1]], exact[:, order[: k + 1]])
    close(log_slopes.sum(-1), log_det)


@pytest.mark.parametrize("tau", [AffineMap(), SplineMap(bins=4)])
def test_parameters_of_one_feature_are_those_of_all(tau):
    made = stir(MADE(4, tau.num_params, order=[2, 0, 3, 1], width=16, dim_context=2))
    for batch in ((7,), (), (0,)):
        x, context = randn(*batch, 4), randn(*batch, 2, seed=1)
        for i in range(4):
            close(made.of_feature(i, x, context), made(x, context)[..., i::4])


def test_the_inverse_survives_what_overflows_the_textbook_one():
    """Scales e^(2 x): a feature that still waits for the ones before it would be infinite, and 0 weight * inf is NaN."""
    f = MaskedAutoregressive(3, AffineMap(bound=1e6), depth=1).double()
    with torch.no_grad():
        f.made.net[0].weight[:3] = 2.0
    x = torch.tensor([4.0, -1.0, 0.5], dtype=F64)
    z = f(x)[0]
    back = f.inverse(z)[0]
    assert ((back - x).abs() < 1e-9 * (1 + x.abs())).all()
    naive = torch.zeros_like(z)
    for _ in range(3):
        naive = f.tau.inverse(z, f.made(naive))[0]
    assert not naive.isfinite().all()


def test_iaf_is_maf_the_other_way_round():
    forwards, backwards = stir(maf(3, 2, SplineMap(), width=16)), iaf(3, 2, SplineMap(), width=16).double()
    backwards.bijection.load_state_dict(forwards.state_dict())
    for a, b in ((forwards, backwards.inverse), (forwards.inverse, backwards)):
        for got, expected in zip(a(randn(5, 3)), b(randn(5, 3)), strict=True):
            assert torch.equal(got, expected)
    assert [f.made.order for f in forwards.bijections] == [[0, 1, 2], [2, 1, 0]]


def test_a_linear_layer_is_a_gaussian():
    """z = (I + W) x + b with W strictly triangular: x has the covariance (I + W)^-1 (I + W)^-T."""
    f = stir(MaskedAutoregressive(4, AdditiveMap(), depth=1))
    last = f.made.net[0]
    matrix = torch.eye(4, dtype=F64) + (last.weight * last.mask).detach()
    back, x = torch.linalg.inv(matrix), 2 * randn(9, 4)
    expected = MultivariateNormal(-back @ last.bias.detach(), back @ back.T).log_prob(x)
    close(Flow(f, StandardNormal([4]).double()).log_prob(x), expected)


def test_starts_as_the_identity():
    x = randn(5, 3).float()
    assert torch.equal(maf(3, 3)(x)[0], x)


def test_bad_arguments():
    with pytest.raises(ValueError, match="order"):
        MADE(3, 1, order=[0, 1, 1])
    with pytest.raises(ValueError, match="num_layers"):
        maf(2, 0)
    for make in (maf, iaf):
        with pytest.raises(TypeError, match="^order: "):
            make(2, 1, order=[1, 0])
    with pytest.raises(TypeError, match="tau: got a GINMap"):
        MaskedAutoregressive(3, GINMap())
