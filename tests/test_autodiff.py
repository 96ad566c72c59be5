"""Derivatives against finite differences, closed forms and torch.func; estimators against their variance formulas."""

import doctest
import math

import pytest
import torch
from torch import nn

from refimpl import autodiff
from refimpl.autodiff import (
    hessian_vector_product,
    jacobian,
    jvp,
    log_det_jacobian,
    probe_vectors,
    trace_estimate,
    trace_jacobian,
    vjp,
)

KINDS = ["rademacher", "gaussian", "sphere", "orthogonal"]
BATCHES = [(), (4,), (2, 3), (0,)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(dim, dim_out, seed=0):
    """A smooth map in float64 whose Jacobian is neither symmetric nor diagonal."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(dim, 7), nn.Tanh(), nn.Linear(7, dim_out)).double()


def points(batch, dim, seed=1):
    return torch.randn(*batch, dim, generator=generator(seed), dtype=torch.float64)


def difference_quotients(f, x, h=1e-6):
    """Jacobian by central differences, one input feature at a time."""
    columns = []
    for e in torch.eye(x.shape[-1], dtype=x.dtype):
        columns.append((f(x + h * e) - f(x - h * e)) / (2 * h))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("dim", "dim_out"), [(3, 3), (2, 5), (5, 2), (1, 1)])
def test_jacobian_equals_finite_differences(batch, dim, dim_out, mode):
    f, x = network(dim, dim_out), points(batch, dim)
    got = jacobian(f, x, mode=mode)
    assert got.shape == (*batch, dim_out, dim) and got.dtype == torch.float64
    torch.testing.assert_close(got, difference_quotients(f, x), atol=1e-8, rtol=1e-6)


def test_jacobian_equals_torch_func_sample_by_sample():
    f, x = network(3, 4), points((6,), 3)
    torch.testing.assert_close(jacobian(f, x), torch.vmap(torch.func.jacrev(f))(x))


@pytest.mark.parametrize("batch", BATCHES)
def test_products_equal_the_jacobian_times_the_vector(batch):
    f, x = network(3, 5), points(batch, 3)
    v, w = points(batch, 3, seed=2), points(batch, 5, seed=3)
    full = jacobian(f, x)
    for (value, product), expected in (
        (jvp(f, x, v), (full @ v.unsqueeze(-1)).squeeze(-1)),
        (vjp(f, x, w), (w.unsqueeze(-2) @ full).squeeze(-2)),
    ):
        torch.testing.assert_close(value, f(x))
        torch.testing.assert_close(product, expected)


@pytest.mark.parametrize("batch", BATCHES)
def test_linear_map_has_constant_jacobian_log_det_and_trace(batch):
    a = points((4,), 4, seed=5)
    f, x = lambda x: x @ a.T + 1, points(batch, 4)
    torch.testing.assert_close(jacobian(f, x), a.expand(*batch, 4, 4))
    torch.testing.assert_close(log_det_jacobian(f, x), a.det().abs().log().expand(batch))
    torch.testing.assert_close(trace_jacobian(f, x), a.trace().expand(batch))


def test_log_det_ignores_orientation_and_is_minus_infinity_where_singular():
    x = torch.ones(2, 2)
    torch.testing.assert_close(log_det_jacobian(lambda x: x.flip(-1) * 3, x), torch.full((2,), 2 * math.log(3.0)))
    assert (log_det_jacobian(lambda x: x.sum(-1, keepdim=True).expand_as(x), x) == -math.inf).all()


def test_log_det_of_a_composition_adds_up():
    f, g, x = network(3, 3, seed=1), network(3, 3, seed=2), points((5,), 3)
    total = log_det_jacobian(lambda x: g(f(x)), x)
    torch.testing.assert_close(total, log_det_jacobian(f, x) + log_det_jacobian(g, f(x)))


def test_map_may_close_over_tensors_of_the_batch():
    context, x = points((6,), 1, seed=3), points((6,), 2)
    got = trace_jacobian(lambda x: context * x**2, x)
    torch.testing.assert_close(got, (2 * context * x).sum(-1))
    torch.testing.assert_close(jacobian(lambda x: context * x, x, mode="forward"), context[..., None] * torch.eye(2))


def test_dropout_is_the_same_in_every_column_of_a_jacobian():
    torch.manual_seed(0)
    f, x = nn.Dropout(0.5), torch.ones(200, 4)
    for mode in ("reverse", "forward"):
        full = jacobian(lambda x: f(x.sum(-1, keepdim=True)), x, mode=mode)
        assert set(full.unique().tolist()) == {0.0, 2.0}
        assert (full == full[..., :1]).all()


@pytest.mark.parametrize(
    "quantity",
    [
        lambda f, x: jacobian(f, x),
        lambda f, x: jacobian(f, x, mode="forward"),
        lambda f, x: jvp(f, x, torch.ones_like(x))[1],
        lambda f, x: vjp(f, x, torch.ones_like(x))[1],
        lambda f, x: log_det_jacobian(f, x),
        lambda f, x: trace_jacobian(f, x),
        lambda f, x: trace_estimate(f, x, 2, "gaussian", generator(0)),
    ],
)
def test_every_quantity_is_differentiable_in_points_and_parameters(quantity):
    f, x = network(2, 2), points((3,), 2).requires_grad_()
    weight = f[0].weight
    for target in (x, weight):
        (gradient,) = torch.autograd.grad(quantity(f, x).sum(), target)
        numeric = torch.empty_like(target)
        with torch.no_grad():
            for i in range(target.numel()):
                entry, h = target.view(-1), 1e-6
                entry[i] += h
                up = quantity(f, x).sum()
                entry[i] -= 2 * h
                numeric.view(-1)[i] = (up - quantity(f, x).sum()) / (2 * h)
                entry[i] += h
        torch.testing.assert_close(gradient, numeric, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_probes_have_identity_covariance(kind):
    dim, n = 3, 40_000
    v = probe_vectors(torch.zeros(n, dim, dtype=torch.float64), 2, kind, generator())
    assert v.shape == (2, n, dim) and v.dtype == torch.float64
    for probe in v:
        covariance = probe.T @ probe / n
        # The fourth moment of an entry is at most 3 (normal), hence this standard error of an entry.
        assert (covariance - torch.eye(dim)).abs().max() < 5 * math.sqrt(2 / n)
        assert probe.mean(0).abs().max() < 5 / math.sqrt(n)


def test_probes_lie_where_their_kind_says():
    like = torch.zeros(50, 4)
    assert set(probe_vectors(like, 3, "rademacher", generator()).unique().tolist()) == {-1.0, 1.0}
    for kind in ("sphere", "orthogonal"):
        v = probe_vectors(like, 3, kind, generator())
        torch.testing.assert_close(v.norm(dim=-1), torch.full((3, 50), 2.0))
    gram = torch.einsum("kbd,lbd->bkl", v, v)
    torch.testing.assert_close(gram, 4 * torch.eye(3).expand(50, 3, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_probes_depend_on_the_generator_alone(kind):
    like = torch.zeros(5, 3)
    first = probe_vectors(like, 2, kind, generator(1))
    torch.manual_seed(7)
    assert torch.equal(first, probe_vectors(like, 2, kind, generator(1)))
    assert not torch.equal(first, probe_vectors(like, 2, kind, generator(2)))


def variance(a, kind, k):
    """Variance of the mean of v^T A v over k probes, from the docstring of trace_estimate."""
    s, dim = (a + a.T) / 2, len(a)
    if kind == "rademacher":
        return 2 / k * (s.square().sum() - s.diagonal().square().sum())
    if kind == "gaussian":
        return 2 / k * s.square().sum()
    sphere = 2 / k * dim / (dim + 2) * (s.square().sum() - s.trace() ** 2 / dim)
    return sphere if kind == "sphere" else sphere * (dim - k) / (dim - 1)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_trace_estimate_is_unbiased_with_the_variance_of_its_formula(kind, k):
    a, n = points((5,), 5, seed=9) + torch.eye(5), 100_000
    draws = trace_estimate(lambda x: x @ a.T, torch.zeros(n, 5, dtype=torch.float64), k, kind, generator(k))
    expected = variance(a, kind, k)
    assert abs(draws.mean() - a.trace()) < 5 * (expected / n).sqrt()
    # Kurtosis of these draws is below 20, so the relative standard error of the variance is below 1.5 %.
    assert abs(draws.var() / expected - 1) < 0.05


def test_trace_estimate_is_exact_where_its_variance_vanishes():
    x = points((3,), 4)
    d = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(trace_estimate(lambda x: d * x, x), d.sum().expand(3))
    torch.testing.assert_close(trace_estimate(lambda x: 5 * x, x, kind="sphere"), torch.full_like(x[:, 0], 20))
    f = network(4, 4)
    torch.testing.assert_close(trace_estimate(f, x, 4, "orthogonal"), trace_jacobian(f, x))


def test_trace_estimate_takes_given_probes():
    f, x = network(3, 3), points((4,), 3)
    v = probe_vectors(x, 2, "gaussian", generator())
    full = jacobian(f, x)
    torch.testing.assert_close(trace_estimate(f, x, probes=v), torch.einsum("kbi,bij,kbj->kb", v, full, v).mean(0))
    with pytest.raises(ValueError, match="probes"):
        trace_estimate(f, x, probes=v[0])


def test_hessian_vector_product_equals_the_hessian_times_the_vector():
    def loss(x):
        return (x.sin() * x.flip(0) ** 2).sum()

    x, v = points((), 5), points((), 5, seed=2)
    torch.testing.assert_close(hessian_vector_product(loss, x, v), torch.func.hessian(loss)(x) @ v)

    net = network(2, 1)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    direction = {name: torch.ones_like(p) for name, p in parameters.items()}
    data = points((6,), 2)

    def of_parameters(parameters):
        return torch.func.functional_call(net, parameters, (data,)).square().mean()

    got = hessian_vector_product(of_parameters, parameters, direction)
    h = 1e-5
    up, down = (
        torch.func.grad(of_parameters)({n: p + sign * h * direction[n] for n, p in parameters.items()})
        for sign in (1, -1)
    )
    assert got.keys() == parameters.keys()
    for name in got:
        torch.testing.assert_close(got[name], (up[name] - down[name]) / (2 * h), atol=1e-8, rtol=1e-6)


def test_dtype_follows_the_input():
    for dtype in (torch.float32, torch.float64):
        x = torch.rand(2, 3, dtype=dtype)
        results = (jacobian(torch.sin, x), log_det_jacobian(torch.sin, x), trace_estimate(torch.sin, x))
        assert all(result.dtype == dtype for result in results)


X = torch.zeros(2, 3)


# With run-time shape checking on, the checker may object first: its error is a TypeError that names the argument too.
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: jacobian(torch.sin, torch.zeros(2, 3, dtype=torch.long))),
        ("x", lambda: trace_jacobian(torch.sin, torch.tensor(1.0))),
        ("x", lambda: log_det_jacobian(torch.sin, torch.zeros(2, 0))),
        ("x", lambda: jvp(torch.sin, [1.0, 2.0], X)),
        ("mode", lambda: jacobian(torch.sin, X, mode="backward")),
        ("v", lambda: jvp(torch.sin, X, X[0])),
        ("v", lambda: jvp(torch.sin, X, X.double())),
        ("v", lambda: vjp(nn.Linear(3, 2), X, X)),
        ("f", lambda: jacobian(lambda x: x.sum(), X)),
        ("f", lambda: jacobian(lambda x: x.sum(0), X, mode="forward")),
        ("f", lambda: jvp(lambda x: x.sum(0), X, X)),
        ("f", lambda: log_det_jacobian(nn.Linear(3, 2), X)),
        ("f", lambda: trace_estimate(nn.Linear(3, 2), X)),
        ("kind", lambda: probe_vectors(X, kind="uniform")),
        ("num_probes", lambda: probe_vectors(X, 0)),
        ("num_probes", lambda: trace_estimate(torch.sin, X, 4, "orthogonal")),
        ("like", lambda: probe_vectors(X.long())),
        ("v", lambda: hessian_vector_product(torch.sum, X, X[0])),
        ("v", lambda: hessian_vector_product(lambda x: x["a"].sum(), {"a": X}, {"b": X})),
        ("loss", lambda: hessian_vector_product(torch.sin, X, X)),
    ],
)
def test_bad_input_is_named(name, call):
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        call()


def test_doctests():
    torch.manual_seed(0)
    assert doctest.testmod(autodiff).failed == 0
