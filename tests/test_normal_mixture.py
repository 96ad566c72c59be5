"""Mixtures of Gaussians: density, score, denoiser and posterior against autograd, scipy, scikit-learn and each other."""

import math
import re

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as EM
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from refimpl import autodiff
from refimpl.data import NormalMixture

F64 = torch.float64


def random_mixture(seed, components=3, dim=3, batch=()):
    g = torch.Generator().manual_seed(seed)
    roots = torch.randn(components, dim, dim, dtype=F64, generator=g)
    covariances = roots @ roots.mT / dim + 0.05 * torch.eye(dim, dtype=F64)
    means = 1.5 * torch.randn(*batch, components, dim, dtype=F64, generator=g)
    return NormalMixture(means, covariances, torch.rand(*batch, components, dtype=F64, generator=g) + 0.2)


def noised(p, a=1.0, b=0.0):
    """The law of a x_0 + b n by torch."""
    covariances = a**2 * p.covariances + b**2 * torch.eye(p.dim, dtype=F64)
    return MixtureSameFamily(Categorical(p.weights), MultivariateNormal(a * p.means, covariances))


shapes = st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.sampled_from([(), (2,), (3, 2)]))
levels = st.tuples(st.floats(0.05, 1.5), st.floats(0.05, 3.0))
many = settings(max_examples=25, deadline=None, derandomize=True)


@many
@given(shapes, levels)
def test_density_and_score(shape, level):
    p, (a, b) = random_mixture(*shape), level
    x = torch.randn(5, *shape[3], p.dim, dtype=F64).mul(2).requires_grad_()
    log = p.log_prob(x, a, b)
    torch.testing.assert_close(log, noised(p, a, b).log_prob(x), rtol=1e-10, atol=1e-10)
    (score,) = torch.autograd.grad(log.sum(), x)
    torch.testing.assert_close(p.score(x, a, b), score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.log_prob(x), noised(p).log_prob(x), rtol=1e-10, atol=1e-10)
    share = p.responsibilities(x, a, b)
    parts = noised(p, a, b).component_distribution.log_prob(x.unsqueeze(-2)) + p.log_weights
    torch.testing.assert_close(share, parts.softmax(-1))


@many
@given(shapes, levels)
def test_tweedie_gives_mean_and_covariance(shape, level):
    """E[x_0 | x] = (x + b^2 score) / a, Cov[x_0 | x] = b^2 / a times the Jacobian of that."""
    p, (a, b) = random_mixture(*shape), level
    x = torch.randn(5, *shape[3], p.dim, dtype=F64) * 2
    mean, covariance = p.denoise(x, a, b), p.denoising_covariance(x, a, b)
    torch.testing.assert_close(mean, (x + b**2 * p.score(x, a, b)) / a, rtol=1e-8, atol=1e-8)
    slope = autodiff.jacobian(lambda x: p.denoise(x, a, b), x)
    torch.testing.assert_close(covariance, b**2 / a * slope, rtol=1e-8, atol=1e-8)
    assert (torch.linalg.eigvalsh(covariance) > -1e-10).all()


def test_the_denoiser_is_the_mean_of_the_posterior_by_brute_force():
    p, a, b = random_mixture(1, dim=1), 0.6, 0.5
    grid, x = torch.linspace(-12, 12, 20_001, dtype=F64), torch.tensor([0.7], dtype=F64)
    log = p.log_prob(grid[:, None]) - 0.5 * ((x - a * grid) / b).square()
    share = log.softmax(0)
    mean = (share * grid).sum()
    torch.testing.assert_close(p.denoise(x, a, b)[0], mean)
    torch.testing.assert_close(p.denoising_covariance(x, a, b)[0, 0], (share * (grid - mean) ** 2).sum())


def test_denoising_at_both_ends():
    p = random_mixture(2)
    x = torch.randn(6, 3, dtype=F64)
    torch.testing.assert_close(p.denoise(x, 0.8, 0.0), x / 0.8)
    torch.testing.assert_close(p.denoising_covariance(x, 0.8, 0.0), torch.zeros(6, 3, 3, dtype=F64))
    mean, covariance = p.moments()
    torch.testing.assert_close(p.denoise(x, 0.0, 1.0), mean.expand(6, 3))
    torch.testing.assert_close(p.denoising_covariance(x, 0.0, 1.0), covariance.expand(6, 3, 3))


def test_a_level_for_each_point():
    p, x = random_mixture(3), torch.randn(4, 3, dtype=F64)
    a, b = torch.rand(2, 4, 1, dtype=F64).add(0.1).unbind()
    for name in ("log_prob", "score", "denoise", "denoising_covariance", "responsibilities"):
        together, method = getattr(p, name)(x, a, b), getattr(p, name)
        for i in range(4):
            torch.testing.assert_close(together[i], method(x[i], a[i].item(), b[i].item()))


@many
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 3), st.sampled_from([(), (2,)]))
def test_conditioning_is_bayes_rule(seed, components, m, batch):
    """log p(x | y) + log p(y) = log p(x) + log p(y | x)."""
    p, g = random_mixture(seed, components), torch.Generator().manual_seed(seed)
    matrix, y = torch.randn(m, 3, dtype=F64, generator=g), torch.randn(*batch, m, dtype=F64, generator=g)
    posterior, std = p.condition(matrix, y, 0.4), 0.4
    evidence = NormalMixture(
        p.means @ matrix.T, matrix @ p.covariances @ matrix.T + std**2 * torch.eye(m, dtype=F64), p.weights
    )
    x = torch.randn(5, *batch, 3, dtype=F64, generator=g)
    likelihood = torch.distributions.Normal(x @ matrix.T, std).log_prob(y).sum(-1)
    torch.testing.assert_close(posterior.log_prob(x) + evidence.log_prob(y), p.log_prob(x) + likelihood)


def test_guidance_is_exact():
    """grad log p(y | x_t) from posterior and prior is that of the likelihood under each component's own posterior."""
    p, g = random_mixture(5), torch.Generator().manual_seed(5)
    matrix, y = torch.randn(2, 3, dtype=F64, generator=g), torch.randn(2, dtype=F64, generator=g)
    std, a, b = 0.3, 0.7, 0.6
    x = torch.randn(6, 3, dtype=F64, generator=g).requires_grad_()
    s = a**2 * p.covariances + b**2 * torch.eye(3, dtype=F64)
    gain = a * p.covariances @ torch.linalg.inv(s)
    means = p.means + torch.einsum("kij,nkj->nki", gain, x.unsqueeze(-2) - a * p.means)
    left = p.covariances - a * gain @ p.covariances
    seen = matrix @ left @ matrix.T + std**2 * torch.eye(2, dtype=F64)
    log = MultivariateNormal(means @ matrix.T, seen).log_prob(y) + p.responsibilities(x, a, b).log()
    (wanted,) = torch.autograd.grad(log.logsumexp(-1).sum(), x)
    found = p.condition(matrix, y, std).score(x, a, b) - p.score(x, a, b)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_scipy_agrees():
    p, x = random_mixture(6, components=2), np.array([[0.3, -0.2, 1.0], [2.0, 0.0, 0.0]])
    wanted = sum(
        w.item() * multivariate_normal(m.numpy(), c.numpy()).pdf(x)
        for w, m, c in zip(p.weights, p.means, p.covariances, strict=True)
    )
    np.testing.assert_allclose(p.log_prob(torch.from_numpy(x)).exp().numpy(), wanted, rtol=1e-10)


def test_fit_is_scikit_learns():
    p = NormalMixture(torch.tensor([[-3.0, 0.0], [3.0, 1.0]]), torch.eye(2).expand(2, 2, 2), torch.tensor([0.3, 0.7]))
    x = p.sample(2000, torch.Generator().manual_seed(0))
    fitted, em = NormalMixture.fit(x, 2), EM(2, reg_covar=0.01, random_state=0).fit(x.double().numpy())
    assert fitted.means.dtype == torch.float32
    np.testing.assert_allclose(fitted.log_prob(x).numpy(), em.score_samples(x.double().numpy()), atol=1e-4)
    order = fitted.means[:, 0].argsort()
    torch.testing.assert_close(fitted.means[order], p.means, rtol=0, atol=0.15)
    torch.testing.assert_close(fitted.weights[order], p.weights, rtol=0, atol=0.05)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_samples_have_the_moments_and_the_shares(batch):
    p, n = random_mixture(7, batch=batch), 40_000
    x = p.sample(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, *batch, 3)
    mean, covariance = p.moments()
    se = covariance.diagonal(dim1=-2, dim2=-1).div(n).sqrt()
    assert ((x.mean(0) - mean).abs() < 4.5 * se).all()
    off = x - x.mean(0)
    products = off.unsqueeze(-1) * off.unsqueeze(-2)
    assert ((products.mean(0) - covariance).abs() < 4.5 * products.std(0) / math.sqrt(n)).all()
    share = p.responsibilities(x).mean(0)
    assert ((share - p.weights).abs() < 4.5 * (p.weights * (1 - p.weights) / n).sqrt()).all()


def test_samples_repeat_with_the_seed():
    p = random_mixture(8)
    first, again = (p.sample((2, 5), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2, 5, 3)


def test_joined_and_converted():
    p, q = random_mixture(9), random_mixture(10, components=2)
    both, x = NormalMixture.joined([p, q], [1.0, 3.0]), torch.randn(5, 3, dtype=F64)
    torch.testing.assert_close(both.log_prob(x).exp(), 0.25 * p.log_prob(x).exp() + 0.75 * q.log_prob(x).exp())
    torch.testing.assert_close(
        NormalMixture.joined([p, q]).log_prob(x).exp(), 0.5 * p.log_prob(x).exp() + 0.5 * q.log_prob(x).exp()
    )
    single = p.to(torch.zeros(()))
    assert single.means.dtype == torch.float32 and single.double().weights.dtype == F64
    torch.testing.assert_close(single.double().log_prob(x), p.log_prob(x), rtol=1e-5, atol=1e-5)


def test_far_away_points_and_tiny_weights_stay_finite():
    p = NormalMixture(torch.tensor([[-50.0], [50.0]]), torch.full((2, 1, 1), 1e-4), torch.tensor([1e-30, 1.0]))
    x = torch.tensor([[-50.0], [0.0], [1e3]])
    for values in (p.log_prob(x), p.score(x), p.denoise(x, 1.0, 0.1)):
        assert values.isfinite().all()
    posterior = p.condition(torch.eye(1), torch.tensor([50.0]), 0.01)
    assert posterior.log_prob(torch.tensor([50.0])).isfinite()


m, c, nan = torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3), torch.full((2, 3), math.nan)
p = NormalMixture(m, c)
ROWS = [
    ("means", lambda: NormalMixture([[0.0]], c)),
    ("means", lambda: NormalMixture(nan, c)),
    ("means", lambda: NormalMixture(torch.zeros(3), c)),
    ("covariances", lambda: NormalMixture(m, torch.eye(3))),
    ("covariances", lambda: NormalMixture(m, c.double())),
    ("covariances", lambda: NormalMixture(m, torch.ones(3, 3).triu().expand(2, 3, 3))),
    ("covariances", lambda: NormalMixture(m, -c)),
    ("weights", lambda: NormalMixture(m, c, torch.ones(3))),
    ("weights", lambda: NormalMixture(m, c, torch.tensor([0.0, 1.0]))),
    ("x", lambda: p.log_prob(torch.zeros(2))),
    ("x", lambda: p.score([0.0, 0.0, 0.0])),
    ("matrix", lambda: p.condition(torch.eye(2), torch.zeros(2), 1.0)),
    ("y", lambda: p.condition(torch.eye(3), torch.zeros(2), 1.0)),
    ("std", lambda: p.condition(torch.eye(3), torch.zeros(3), 0.0)),
    ("x", lambda: NormalMixture.fit(torch.zeros(3), 1)),
    ("components", lambda: NormalMixture.fit(torch.zeros(9, 3), 0)),
    ("regularisation", lambda: NormalMixture.fit(torch.zeros(9, 3), 1, regularisation=0)),
]


@pytest.mark.parametrize(("name", "call"), ROWS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ROWS)])
def test_malformed_calls_name_the_argument(monkeypatch, name, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert re.match(rf"{name}\b.*: ", str(caught.value)), str(caught.value)
