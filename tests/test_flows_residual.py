"""Residual flows against known determinants: bounds kept, series, roulette and its gradient; each check can fail."""

import contextlib
import copy
import math

import pytest
import torch

from refimpl import runtime
from refimpl.flows import Residual, residual, residual_flow
from refimpl.flows.residual import LipschitzLinear, LipSwish, roulette_weights, unit_probes
from refimpl.training import fit

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def stretched(dim=4, lipschitz=0.9, **settings):
    """A block in float64 whose weights are large enough for the spectral norm to bind."""
    torch.manual_seed(0)
    block = Residual(dim, width=16, lipschitz=lipschitz, generator=runtime.generator(1), **settings).double()
    for layer in block.net:
        if isinstance(layer, LipschitzLinear):
            layer.weight.data.mul_(4)
            layer.refresh()
    return block.eval()


def linear(norm=0.9, dim=4):
    """A block with g(x) = A x, its matrix and log det(I + A)."""
    a = randn(dim, dim)
    a = a * norm / torch.linalg.matrix_norm(a, 2)
    block = Residual(dim, depth=1, lipschitz=0.95, generator=runtime.generator(2)).double()
    block.net[0].weight.data.copy_(a)
    block.net[0].refresh()
    return block, a, torch.linalg.slogdet(torch.eye(dim, dtype=F64) + a).logabsdet


# Contraction


def test_lipswish_has_slopes_of_at_most_one_that_nearly_reach_it():
    x = torch.linspace(-20, 20, 40001, dtype=F64, requires_grad=True)
    for raw in (-3.0, 0.5, 3.0):
        f = LipSwish().double()
        f.raw.data.fill_(raw)
        slopes = torch.autograd.grad(f(x).sum(), x)[0]
        assert slopes.abs().max() <= 1
    assert slopes.max() > 0.999


def test_g_is_a_contraction_also_while_it_trains():
    block = stretched()
    assert block.lipschitz_bound() == pytest.approx(0.9, abs=1e-6)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.05)
    x, y = randn(200, 4), randn(200, 4, seed=1)
    block.train()
    for _ in range(60):  # towards slopes as large as they get
        loss = -(block.g(x) - block.g(y)).square().sum() - block(x)[1].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    block(x)
    ratio = (block.g(x) - block.g(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert 0.3 < ratio.max() <= block.lipschitz_bound() < 0.95
    back = block.inverse(block(x)[0])[0]
    torch.testing.assert_close(back, x, atol=1e-12, rtol=0)


def test_a_stale_norm_breaks_the_bound_and_the_inverse_says_so():
    block = stretched(2, 0.99)
    for layer in block.net:
        if isinstance(layer, LipschitzLinear):
            layer.weight.data.mul_(8)
            layer.u.copy_(torch.nn.functional.normalize(randn(len(layer.u)), dim=0))
    assert block.lipschitz_bound() > 1
    with pytest.raises(RuntimeError, match="Lipschitz bound is .*refresh"):
        block.inverse(10 * randn(200, 2))
    for layer in block.net:
        if isinstance(layer, LipschitzLinear):
            for _ in range(50):
                layer.refresh()
    assert block.lipschitz_bound() < 1
    block.inverse(10 * randn(200, 2))


def test_forward_in_training_changes_buffers_but_never_inside_torch_func():
    block = stretched().train()
    for layer in block.net:
        if isinstance(layer, LipschitzLinear):
            layer.weight.data.add_(0.3 * randn(*layer.weight.shape))
    before = block.net[0].u.clone()
    torch.func.vjp(lambda x: block(x)[0], randn(3, 4))
    assert torch.equal(block.net[0].u, before)
    block(randn(3, 4))
    assert not torch.equal(block.net[0].u, before)


# Inverse


def test_the_inverse_has_the_derivatives_of_the_implicit_function_theorem():
    block, z = stretched(dim_context=2), randn(5, 4, seed=3)
    context, weight = randn(5, 2, seed=4).requires_grad_(), block.net[0].weight

    def loss(z, context):
        x, log_det = block.inverse(z, context)
        return x.square().sum() + log_det.sum()

    z.requires_grad_()
    grads = torch.autograd.grad(loss(z, context), [z, context, weight])
    for tensor, grad in zip((z, context, weight), grads, strict=True):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[0, 1] += sign * 1e-5
                values.append(loss(z, context).item())
                tensor[0, 1] -= sign * 1e-5
        assert grad[0, 1].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-7)


def test_without_gradients_the_inverse_is_as_exact_as_with_them():
    """g(x) = -L x: the iteration's steps are L times the last, so that a small step is still far from the solution."""
    block, _, _ = linear()
    block.lipschitz = 0.98
    block.net[0].lipschitz = 0.98
    block.net[0].weight.data.copy_(-0.98 * torch.eye(4, dtype=F64))
    block.net[0].refresh()
    block.net[0].bias.data.zero_()
    block.max_iterations, z = 3000, 1 + randn(5, 4).abs()
    with torch.no_grad():
        errors = [(block.inverse(z)[0] * 0.02 - z).abs().max().item()]
        block.lipschitz = 0.01  # as if no further step were needed
        errors.append((block.inverse(z)[0] * 0.02 - z).abs().max().item())
    assert errors[0] < 0.1 * errors[1]


def test_forward_runs_g_once(monkeypatch):
    for method in ("exact", "series", "roulette"):
        block, calls = stretched(method=method), []
        original = block.g
        monkeypatch.setattr(block, "g", lambda *args, f=original, calls=calls: calls.append(1) or f(*args))
        x = randn(3, 4)
        torch.testing.assert_close(block(x)[0], x + original(x))
        assert len(calls) == 1


# Resuming


def test_a_resumed_run_is_exact_if_fit_has_the_generator_of_the_module(tmp_path):
    def train(steps, given, checkpoint=None):
        torch.manual_seed(0)
        generator = runtime.generator(1)
        block = Residual(2, width=4, method="roulette", generator=generator)
        data = torch.randn(8, 2)

        def loss(x):
            if len(seen) == steps:
                raise KeyboardInterrupt
            seen.append(1)
            z, log_det = block(x)
            return (0.5 * z.square().sum(-1) - log_det).mean()

        seen = []
        settings = dict(num_steps=6, data=data, batch_size=4, progress=False, evaluate_every=100)
        with contextlib.suppress(KeyboardInterrupt):
            fit(
                block,
                loss,
                generator=generator if given else None,
                checkpoint=checkpoint,
                checkpoint_every=1,
                **settings,
            )
        return block.net[0].weight.detach()

    for given in (True, False):
        path = tmp_path / f"{given}.pt"
        train(3, given, path)
        assert torch.equal(train(100, given, path), train(100, given)) == given


# Log-determinant


@pytest.mark.parametrize("num_terms", [1, 2, 5, 10])
def test_truncation_stays_within_its_bound_and_is_not_far_below_it(num_terms):
    block, a, exact = linear()
    # A multiple of the identity reaches the bound up to the sum of later terms.
    block.net[0].weight.data.copy_(-0.9 * torch.eye(4, dtype=F64))
    exact = torch.tensor(4 * math.log(0.1), dtype=F64)
    block.method, block.num_terms = "series", num_terms
    error = (block.log_det(randn(3, 4)) - exact).abs().max().item()
    bound = 4 * 0.9 ** (num_terms + 1) / ((num_terms + 1) * (1 - 0.9))
    assert 0.1 * bound < error <= bound


def test_series_with_exact_traces_and_many_terms_is_the_determinant():
    block, a, exact = linear(0.5)
    block.method, block.num_terms = "series", 50
    torch.testing.assert_close(block.log_det(randn(3, 4)), exact.expand(3), atol=1e-13, rtol=0)
    assert unit_probes(randn(3, 4)).shape == (4, 3, 4)


@pytest.mark.parametrize(("tail", "rate"), [("geometric", 0.5), ("geometric", 0.2), ("poisson", 2.0)])
def test_every_term_has_weight_one_on_average(tail, rate):
    generator, n = runtime.generator(5), 10_000
    draws = [roulette_weights(1, tail, rate, generator) for _ in range(n)]
    table = torch.nn.utils.rnn.pad_sequence([torch.tensor(d, dtype=F64) for d in draws], batch_first=True)[:, :5]
    assert (table[:, 0] == 1).all()
    error = (table.mean(0) - 1) / (table.std(0) / math.sqrt(n)).clamp_min(1e-12)
    assert error.abs().max() < 4
    survival = (table > 0).double().mean(0)  # without the division most terms would be short
    assert survival[4] < 0.6


@pytest.mark.parametrize("method", ["roulette", "weights forgotten", "off by one"])
def test_roulette_is_unbiased_and_a_wrong_weight_is_noticed(method, monkeypatch):
    block, a, exact = linear(0.8)
    block.method, n = "roulette", 1000
    original = residual.roulette_weights
    if method == "weights forgotten":
        monkeypatch.setattr(residual, "roulette_weights", lambda *args: [1.0] * len(original(*args)))
    elif method == "off by one":
        monkeypatch.setattr(
            residual, "roulette_weights", lambda k, *args: [1.0] * k + [2 * w for w in original(0, *args)]
        )
    with torch.no_grad():
        values = torch.stack([block.log_det(randn(50, 4)).mean() for _ in range(n)])
    z = (values.mean() - exact) / (values.std() / math.sqrt(n))
    assert abs(z) < 4 if method == "roulette" else abs(z) > 6


def test_roulette_has_an_unbiased_gradient_and_a_truncated_one_differs():
    block, a, _ = linear(0.6)
    exact = torch.linalg.inv(torch.eye(4, dtype=F64) + a).T  # of log det(I + A), in A
    weight, x, n = block.net[0].weight, randn(20, 4), 500

    def z_scores(**settings):
        for name, value in settings.items():
            setattr(block, name, value)
        draws = torch.stack([torch.autograd.grad(block.log_det(x).mean(), weight)[0] for _ in range(n)])
        return (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(n))

    assert z_scores(method="roulette").abs().max() < 4
    assert z_scores(method="roulette", tail="poisson", rate=2.0).abs().max() < 4
    assert z_scores(method="series", num_terms=2, num_probes=1).abs().max() > 10


def test_gradient_reaches_the_data_and_the_context_through_roulette():
    block = stretched(3, dim_context=2).train()
    block.method = "roulette"
    x, c = randn(5, 3).requires_grad_(), randn(5, 2).requires_grad_()
    grads = torch.autograd.grad(block(x, c)[1].sum(), [x, c])
    assert all((g != 0).all() for g in grads)


def test_more_terms_in_evaluation_mode_and_reproducible_from_the_generator(monkeypatch):
    block, asked, original = stretched(), [], residual.roulette_weights
    monkeypatch.setattr(residual, "roulette_weights", lambda k, *args: asked.append(k) or original(k, *args))
    block.method = "roulette"
    x, twin = randn(2, 4), copy.deepcopy(block)
    assert torch.equal(block.log_det(x), twin.log_det(x))
    block.train().log_det(x)
    assert asked == [20, 20, 2]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"lipschitz: got 1.0, expected a number in \(0, 1\)"):
        Residual(2, lipschitz=1.0)
    with pytest.raises(ValueError, match="method: got 'magic'"):
        Residual(2, method="magic")
    block = Residual(2)
    block.method = "magic"
    with pytest.raises(ValueError, match="method: got 'magic'"):
        block(torch.zeros(2))
    for name, value in {
        "tail": "uniform",
        "rate": 1.5,
        "num_exact": (-1, 2),
        "num_terms": 0,
        "num_probes": 0,
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: got"):
            Residual(2, **{name: value})
    with pytest.raises(ValueError, match="tail: got"):
        roulette_weights(2, "uniform")
    with pytest.raises(ValueError, match="rate: got 1.5"):
        roulette_weights(2, rate=1.5)
    with pytest.raises(ValueError, match="num_layers: got 0"):
        residual_flow(2, 0)
