"""A flow as a torch.distributions object: shapes, broadcasting, composition, and Pyro's inference with it; the bases."""

import functools
import importlib
import math
import pkgutil

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, distributions
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    TransformedDistribution,
)

import refimpl
from refimpl.flows import (
    AffineMap,
    Base,
    Chain,
    Diagonal,
    Flow,
    InvertibleLinear,
    Permutation,
    RadialMixture,
    Reshape,
    StandardNormal,
    StudentT,
    coupling_flow,
)
from refimpl.free_form import LatentMixture

F64 = torch.float64


def conditional_flow(dim: int = 2, dim_context: int = 3) -> Flow:
    torch.manual_seed(0)
    flow = Flow(coupling_flow(dim, AffineMap(), 2, width=16, dim_context=dim_context), StandardNormal([dim])).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return flow


def gaussian_flow(dim: int = 3) -> tuple[Flow, MultivariateNormal]:
    """A linear flow, and the normal distribution that it is."""
    torch.manual_seed(1)
    flow = Flow(Chain(InvertibleLinear(dim), Diagonal(dim)), StandardNormal([dim])).double()
    for p in flow.parameters():
        p.data += 0.3 * torch.randn_like(p)
    with torch.no_grad():
        mean, _ = flow.bijection.inverse(torch.zeros(dim, dtype=F64))
        columns = flow.bijection.inverse(torch.eye(dim, dtype=F64))[0] - mean
    return flow, MultivariateNormal(mean, columns.T @ columns)


def test_shapes_without_context():
    distribution = conditional_flow().as_distribution(torch.zeros(3, dtype=F64))
    assert (distribution.batch_shape, distribution.event_shape) == ((), (2,))
    for shape in ((), (4,), (2, 3), (0,)):
        x = distribution.sample(torch.Size(shape))
        assert x.shape == (*shape, 2) and not x.requires_grad
        assert distribution.log_prob(x).shape == shape
    assert distribution.rsample().requires_grad
    assert distribution.support.check(torch.zeros(4, 2)).shape == (4,)


def test_contexts_are_the_batch_shape():
    flow, context = conditional_flow(), torch.randn(5, 4, 3, dtype=F64)
    distribution = flow.as_distribution(context)
    assert distribution.batch_shape == (5, 4)
    x = distribution.sample([7])
    assert x.shape == (7, 5, 4, 2)
    torch.testing.assert_close(distribution.log_prob(x)[6, 2, 3], flow.log_prob(x[6, 2, 3], context[2, 3]))
    mean = distribution.sample([4000]).mean(0)
    alone = flow.as_distribution(context[2, 3]).sample([4000]).mean(0)
    assert (mean[2, 3] - alone).abs().max() < 0.1 < (mean - alone).abs().max()


def test_values_broadcast_against_contexts():
    flow, context = conditional_flow(), torch.randn(5, 3, dtype=F64)
    distribution, x = flow.as_distribution(context), torch.randn(7, 1, 2, dtype=F64)
    one = distribution.log_prob(x[0, 0])
    assert one.shape == (5,)
    table = distribution.log_prob(x)
    assert table.shape == (7, 5)
    torch.testing.assert_close(table[0], one)
    torch.testing.assert_close(table[3, 2], flow.log_prob(x[3, 0], context[2]))
    with pytest.raises(RuntimeError):
        distribution.log_prob(torch.zeros(4, 2, dtype=F64))


def test_expand():
    flow, context = conditional_flow(), torch.randn(5, 3, dtype=F64)
    for distribution, x in (
        (flow.as_distribution(context).expand([4, 5]), torch.randn(5, 2, dtype=F64)),
        (flow.as_distribution(context[0]).expand([4, 5]), torch.randn(2, dtype=F64)),
        (gaussian_flow()[0].as_distribution().expand([4, 5]), torch.randn(3, dtype=F64)),
    ):
        assert distribution.batch_shape == (4, 5)
        assert distribution.log_prob(x).shape == (4, 5)
        samples, log_prob = distribution.rsample_and_log_prob([6])
        assert samples.shape == (6, 4, 5, *distribution.event_shape) and log_prob.shape == (6, 4, 5)
        torch.testing.assert_close(distribution.log_prob(samples), log_prob)
        assert samples.flatten(0, 2).unique(dim=0).shape[0] == 120  # independent, not copies
        again = distribution.expand([2, 4, 5])
        assert again.sample().shape == (2, 4, 5, *distribution.event_shape)


def test_independent_and_transformed():
    flow, context = conditional_flow(), torch.randn(5, 3, dtype=F64)
    distribution = flow.as_distribution(context)
    joint = Independent(distribution, 1)
    x = joint.sample([6])
    assert joint.event_shape == (5, 2)
    torch.testing.assert_close(joint.log_prob(x), flow.log_prob(x, context).sum(-1))

    positive = TransformedDistribution(distribution, distributions.transforms.ExpTransform())
    y = positive.rsample([6])
    assert (y > 0).all() and y.requires_grad
    torch.testing.assert_close(positive.log_prob(y), flow.log_prob(y.log(), context) - y.log().sum(-1))


def test_mixture_of_a_flow_under_several_contexts():
    flow, context = conditional_flow(), torch.randn(3, 3, dtype=F64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    mixture = MixtureSameFamily(Categorical(weights), flow.as_distribution(context))
    x = mixture.sample([10])
    assert x.shape == (10, 2)
    parts = torch.stack([flow.log_prob(x, c) for c in context], -1)
    torch.testing.assert_close(mixture.log_prob(x), torch.logsumexp(parts + weights.log(), -1))


def test_linear_flow_is_its_normal_distribution():
    flow, normal = gaussian_flow()
    distribution, x = flow.as_distribution(), torch.randn(20, 3, dtype=F64)
    torch.testing.assert_close(distribution.log_prob(x), normal.log_prob(x))
    torch.manual_seed(2)
    n = 20000
    samples = distribution.sample([n])
    error = (samples.mean(0) - normal.mean) / (normal.covariance_matrix.diagonal() / n).sqrt()
    assert error.abs().max() < 4
    torch.testing.assert_close(samples.T.cov(), normal.covariance_matrix, rtol=0.05, atol=0.02)


def test_kl_divergence_by_samples():
    """E_q[log q - log p] against the closed form for two normals; the estimate's error is known from its variance."""
    (flow, q), (_, p) = gaussian_flow(), (None, MultivariateNormal(torch.ones(3, dtype=F64), 2 * torch.eye(3)))
    torch.manual_seed(3)
    x, log_q = flow.as_distribution().rsample_and_log_prob([20000])
    terms = (log_q - p.log_prob(x)).detach()
    exact = distributions.kl_divergence(q, p)
    assert (terms.mean() - exact).abs() < 4 * terms.std() / math.sqrt(len(terms)) < 0.1 * exact


def test_gradients_of_samples():
    """d/d theta E[|x|^2] by reparametrised samples is that of the closed form, for x = e^-s (z - t)."""
    flow = Flow(Diagonal(2), StandardNormal([2])).double()
    flow.bijection.log_scale.data = torch.tensor([0.3, -0.2], dtype=F64)
    torch.manual_seed(4)
    flow.as_distribution().rsample([200000]).square().mean(0).sum().backward()
    exact = -2 * (-2 * flow.bijection.log_scale.detach()).exp()
    torch.testing.assert_close(flow.bijection.log_scale.grad, exact, rtol=0.02, atol=0)


def test_images():
    flow = Flow(Reshape(Diagonal(8), (2, 2, 2)), StandardNormal([2, 2, 2]))
    distribution = flow.as_distribution()
    assert distribution.event_shape == (2, 2, 2)
    x = distribution.sample([3])
    assert distribution.log_prob(x).shape == (3,)
    assert distribution.expand([5]).sample([4]).shape == (4, 5, 2, 2, 2)


def test_a_flow_is_a_variational_posterior_in_pyro():
    """Stochastic variational inference with a flow as the guide finds a conjugate posterior's mean and covariance."""
    import pyro
    from pyro.contrib.zuko import ZukoToPyro
    from pyro.infer import SVI, Trace_ELBO

    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    data = torch.tensor([1.0, -0.5]) + torch.randn(6, 2)
    precision = covariance.inverse() + 6 * torch.eye(2)
    exact_covariance = precision.inverse()
    exact_mean = exact_covariance @ data.sum(0)
    flow = Flow(Chain(coupling_flow(2, AffineMap(), 2, width=8, depth=2), Diagonal(2)), StandardNormal([2]))

    def model(data: Tensor) -> None:
        mean = pyro.sample("mean", pyro.distributions.MultivariateNormal(torch.zeros(2), covariance))
        with pyro.plate("data", len(data)):
            pyro.sample("x", pyro.distributions.Normal(mean, 1.0).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("flow", flow)
        pyro.sample("mean", ZukoToPyro(flow.as_distribution()))

    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    start = sum(svi.evaluate_loss(data) for _ in range(10)) / 10
    losses = [svi.step(data) for _ in range(400)]
    samples = flow.sample([8000]).detach()
    assert (samples.mean(0) - exact_mean).abs().max() < 0.06
    torch.testing.assert_close(samples.T.cov(), exact_covariance, atol=0.03, rtol=0)
    # The bound is the evidence once the guide is the posterior.
    eye, ones = torch.eye(12), torch.ones(6, 6)
    evidence = MultivariateNormal(torch.zeros(12), eye + torch.kron(ones, covariance)).log_prob(data.flatten())
    assert abs(sum(losses[-50:]) / 50 + evidence.item()) < 0.05 < start + evidence.item()


def test_conditional_flow_is_a_likelihood_in_pyro():
    """Plates over contexts: the trace's log-density is the flow's, summed."""
    import pyro
    from pyro.contrib.zuko import ZukoToPyro

    flow, context = conditional_flow(), torch.randn(5, 3, dtype=F64)
    x = torch.randn(5, 2, dtype=F64)

    def model() -> None:
        with pyro.plate("points", 5):
            pyro.sample("x", ZukoToPyro(flow.as_distribution(context)), obs=x)

    trace = pyro.poutine.trace(model).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), flow.log_prob(x, context).sum())


# Gradients of the bases' samples


def test_students_samples_have_the_gradient_of_torch_and_of_finite_differences():
    """The means of x^2 have the expectation nu / (nu - 2) and the derivative -2 / (nu - 2)^2 in nu."""
    law, n = StudentT([5.0, math.inf, 8.0]).double(), 200_000
    x = law.sample([n], torch.Generator().manual_seed(0))
    for j, (column, nu) in enumerate([(0, 5.0), (2, 8.0)]):
        (gradient,) = torch.autograd.grad(x[:, column].square().mean(), law.log_df, retain_graph=True)
        assert gradient[1 - j] == 0
        assert gradient[j].item() == pytest.approx(-2 * nu / (nu - 2) ** 2, rel=0.1)
        torch.manual_seed(1)
        df = torch.tensor(nu, dtype=F64, requires_grad=True)
        there = torch.distributions.StudentT(df).rsample((n,)).square().mean()
        assert gradient[j].item() == pytest.approx(nu * torch.autograd.grad(there, df)[0].item(), rel=0.1)


def test_each_of_students_samples_moves_along_its_quantile():
    """With common normals and equal quantiles of the gamma variables, by scipy's inverse of their distribution."""
    nu, step = 3.0, 1e-5
    law = StudentT([nu]).double()
    x = law.sample([6], torch.Generator().manual_seed(2))
    normal = StandardNormal([1]).double().sample([6], torch.Generator().manual_seed(2))
    gamma = nu / 2 * (normal / x.detach()).square()
    level = stats.gamma.cdf(gamma.numpy(), nu / 2)
    moved = [s * nu / 2 / stats.gamma.ppf(level, s * nu / 2) for s in (math.exp(step), math.exp(-step))]
    expected = normal.numpy() * (np.sqrt(moved[0]) - np.sqrt(moved[1])) / (2 * step)
    for i in range(6):
        (gradient,) = torch.autograd.grad(x[i, 0], law.log_df, retain_graph=True)
        assert gradient.item() == pytest.approx(expected[i, 0], rel=5e-3)


def test_reverse_kl_finds_the_degrees_of_freedom():
    target, generator = torch.distributions.StudentT(torch.tensor(3.0, dtype=F64)), torch.Generator().manual_seed(3)
    flow = Flow(Diagonal(1), StudentT([12.0])).double()
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(300):
        x, log_q = flow.sample_and_log_prob([1000], generator=generator)
        loss = (log_q - target.log_prob(x[:, 0])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert flow.base.df.item() == pytest.approx(3, rel=0.15)
    assert flow.bijection.log_scale.item() == pytest.approx(0, abs=0.1)


def test_a_distribution_has_rsample_if_its_base_has():
    for made, expected in ((StudentT([3.0]), True), (StandardNormal([1]), True), (RadialMixture(1, 3), False)):
        flow = Flow(Diagonal(1), made)
        distribution = flow.as_distribution()
        assert distribution.has_rsample == made.has_rsample == expected
        assert distribution.sample([4]).shape == (4, 1)
        if expected:
            gradients = torch.autograd.grad(distribution.rsample([4]).square().sum(), list(flow.parameters()))
            assert all(g.abs().max() > 0 for g in gradients)
        else:
            for draw in (distribution.rsample, distribution.rsample_and_log_prob):
                with pytest.raises(NotImplementedError, match="RadialMixture"):
                    draw([4])
            made.logits.requires_grad_(False)
            assert distribution.has_rsample and distribution.rsample([4]).requires_grad


# Shapes and types


@pytest.mark.parametrize("shape", [(5, 1), (5, 7), (5,), ()])
def test_bases_take_only_their_own_events(shape):
    for made in (StandardNormal([2]), RadialMixture(2), StudentT([2.0, math.inf])):
        with pytest.raises(ValueError, match="^z: got shape"):
            made.log_prob(torch.zeros(shape))
    with pytest.raises(ValueError, match="^z: got shape"):
        StandardNormal([1, 2, 3]).log_prob(torch.zeros(5, 6))


def test_a_flow_takes_only_points_of_its_width_and_precision():
    flow = Flow(Diagonal(3), StandardNormal([1]))
    with pytest.raises(ValueError, match=r"^x: got shape \(5, 1\), expected \(\*batch, 3\)"):
        flow.log_prob(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="^z: got shape"):
        flow.sample([5])
    for bijection in (Diagonal(2), Permutation([1, 0])):
        with pytest.raises(TypeError, match="^x: got torch.float64, expected torch.float32"):
            Flow(bijection, StandardNormal([2])).log_prob(torch.zeros(5, 2, dtype=F64))


BASES = {
    "StandardNormal": lambda: StandardNormal([2]),
    "RadialMixture": lambda: RadialMixture(2, 3),
    "StudentT": lambda: StudentT([3.0, math.inf]),
    "LatentMixture": lambda: LatentMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[2.0, 0.0], [-1.0, 1.0]]), torch.tensor([[[1.0, 0.6], [0.6, 2.0]]] * 2)
    ),
}
# Not densities on all of R^dim: tests/test_egnn.py and tests/test_manifold_flow.py integrate them where they live.
ON_MANIFOLDS = {"MeanFreeNormal", "Uniform", "VonMisesFisherMixture", "WrappedNormalMixture"}


def base(name: str) -> Base:
    torch.manual_seed(5)
    made = BASES[name]().double()
    for p in made.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return made


def test_every_base_is_here():
    for module in pkgutil.walk_packages(refimpl.__path__, "refimpl."):
        importlib.import_module(module.name)
    found = {kind.__name__ for kind in Base.__subclasses__() if kind.__module__.startswith("refimpl.")}
    assert found == set(BASES) | ON_MANIFOLDS


@pytest.mark.parametrize("name", BASES)
def test_bases_are_normalised_and_sampled(name):
    """Over t = sinh(u), because Student's tails are long; samples by Kolmogorov and Smirnov against the marginals."""
    density = base(name)
    u = torch.linspace(-8, 8, 641, dtype=F64)
    t, weight = u.sinh(), u.cosh() * (u[1] - u[0])
    with torch.no_grad():
        table = density.log_prob(torch.cartesian_prod(t, t)).exp().view(641, 641) * weight * weight[:, None]
    assert abs(table.sum().item() - 1) < 1e-3
    samples = density.sample([4000], torch.Generator().manual_seed(6)).detach()
    for j in range(2):
        below = table.sum(1 - j).cumsum(0)

        def cdf(x, below=below):
            return np.interp(x, t.numpy(), below.numpy())

        assert stats.kstest(samples[:, j].numpy(), cdf).pvalue > 1e-4
        assert stats.kstest(1.3 * samples[:, j].numpy(), cdf).pvalue < 1e-3


@pytest.mark.parametrize("name", BASES)
def test_bases_keep_type_and_repeat_with_a_seed(name):
    density = base(name)
    for dtype in (torch.float32, F64):
        density = density.to(dtype)
        draw = functools.partial(density.sample, [3, 2])
        x = draw(torch.Generator().manual_seed(7))
        assert x.dtype == dtype and x.shape == (3, 2, 2)
        assert torch.equal(x, draw(torch.Generator().manual_seed(7)))
        assert density.log_prob(x).dtype == dtype and density.log_prob(x).shape == (3, 2)
    assert density.sample().shape == (2,) and density.sample([0]).shape == (0, 2)
    other = base(name)
    for p in other.parameters():
        torch.nn.init.zeros_(p)
    other.load_state_dict(density.state_dict())
    assert torch.equal(other.log_prob(x), density.log_prob(x))
    if list(density.parameters()):
        density.log_prob(x).sum().backward()
        assert all(p.grad.abs().max() > 0 for p in density.parameters())
