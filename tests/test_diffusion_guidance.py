"""Guided samplers against Bayes' rule: closed forms for Gaussians and mixtures, finite differences, and their costs."""

import math
import re

import jaxtyping
import pytest
import torch

from refimpl.data import NormalMixture
from refimpl.diffusion import (
    DDPM,
    EDM,
    METHODS,
    VP,
    DiffusionModel,
    FlowPath,
    Measurement,
    ddim,
    exact_log_likelihood,
    exact_model,
    guided_start,
    optimised,
    sample_posterior,
)
from refimpl.diffusion.gaussian_guidance import (
    GAUSSIAN_METHODS,
    gaussian_posterior,
    guided_moments,
    normal_kl,
)
from refimpl.diffusion.posterior_report import posterior_report

STEPWISE = ("unguided", "exact", "dps", "dps_bayes", "pigdm", "tmpd", "mpgd", "freedom", "ndtm")


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(dim=3, seed=0, covariance=None):
    """One Gaussian in float64."""
    g = source(seed)
    root = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    covariance = root @ root.T / dim + 0.1 * torch.eye(dim).double() if covariance is None else covariance
    return NormalMixture(torch.randn(1, dim, generator=g, dtype=torch.float64), covariance[None])


def mixture(dim=2, components=3, seed=0):
    g = source(seed)
    root = torch.randn(components, dim, dim, generator=g, dtype=torch.float64)
    covariances = 0.2 * root @ root.mT + 0.02 * torch.eye(dim).double()
    means = 1.5 * torch.randn(components, dim, generator=g, dtype=torch.float64)
    return NormalMixture(means, covariances, torch.rand(components, generator=g, dtype=torch.float64) + 0.2)


def seen(prior, m=1, problems=2, std=0.3, seed=1):
    """A linear measurement of draws of the prior, and the posterior."""
    g = source(seed)
    matrix = torch.randn(m, prior.dim, generator=g, dtype=torch.float64)
    y = prior.sample(problems, g) @ matrix.T + std * torch.randn(problems, m, generator=g, dtype=torch.float64)
    return Measurement(matrix, y, std), prior.condition(matrix, y, std)


def curved(measurement):
    """The same y, seen through a non-linear operator."""
    return Measurement(lambda x: torch.tanh(x @ measurement.matrix.T), measurement.y.tanh(), measurement.std)


@pytest.mark.parametrize(
    ("process", "t", "s"),
    [(DDPM(), 500.0, 400.0), (VP(), 0.6, 0.5), (EDM(), 2.0, 0.7), (FlowPath(), 0.3, 0.45)],
    ids=str,
)
def test_the_exact_likelihood_turns_the_prior_into_the_posterior(process, t, s):
    prior = mixture()
    measurement, posterior = seen(prior)
    x, noise = torch.randn(2, 5, 2, 2, generator=source(), dtype=torch.float64)
    step, plain = METHODS["exact"].step, METHODS["unguided"].step
    log_likelihood = exact_log_likelihood(prior, posterior, process)
    ours = step(exact_model(prior, process), measurement, x, t, s, noise, log_likelihood=log_likelihood)
    theirs = plain(exact_model(posterior, process), measurement, x, t, s, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_exact_log_likelihood_is_the_mean_likelihood_of_what_may_have_been():
    prior = mixture()
    measurement, posterior = seen(prior, problems=1)
    a, b = (c.item() for c in VP().coefficients(torch.tensor(0.3, dtype=torch.float64)))
    x = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    before = prior.condition(a * torch.eye(2).double(), x, b).sample(200_000, source())
    evidence = torch.logsumexp(
        torch.distributions.MultivariateNormal(
            prior.means @ measurement.matrix.T,
            measurement.matrix @ prior.covariances @ measurement.matrix.T + measurement.std**2 * torch.eye(1).double(),
        ).log_prob(measurement.y[:, None])
        + prior.log_weights,
        -1,
    )
    estimate = measurement.log_likelihood(before).logsumexp(0) - math.log(200_000) - evidence
    ours = exact_log_likelihood(prior, posterior, VP())(x, 0.3)
    torch.testing.assert_close(ours, estimate, rtol=0, atol=0.02)


def test_exact_guidance_reaches_the_floor_and_approximations_do_not():
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    ring = 1.5 * torch.stack([angles.cos(), angles.sin()], -1)
    prior = NormalMixture(torch.cat([ring, ring[:1] * 0]), 0.15**2 * torch.eye(2).double().expand(9, 2, 2))
    g, process = source(), DDPM()
    matrix = torch.tensor([[0.8, 0.6]], dtype=torch.float64)
    y = prior.sample(5, g) @ matrix.T + 0.2 * torch.randn(5, 1, generator=g, dtype=torch.float64)
    measurement, posterior = Measurement(matrix, y, 0.2), prior.condition(matrix, y, 0.2)
    model, x = exact_model(prior, process), process.initial((150, 5, 2), y, g)
    log_likelihood = exact_log_likelihood(prior, posterior, process)
    reports = {}
    settings = {"exact": {"log_likelihood": log_likelihood}, "dps": {"scale": 0.1, "eta": 0.5}, "ndtm": {"eta": 0.7}}
    for name in ("exact", "dps", "dps_bayes", "pigdm", "tmpd", "mpgd", "ndtm"):
        times = process.times(100 if name == "exact" else 40)
        out = sample_posterior(name, model, measurement, x, times, generator=source(2), **settings.get(name, {}))
        report = posterior_report(out, posterior, prior, measurement=measurement, generator=source(3))
        reports[name] = {key: value.mean().item() for key, value in report.items()}
    distance, floor = ({name: r[key] for name, r in reports.items()} for key in ("distance", "floor"))
    assert distance["exact"] < 1.3 * floor["exact"]
    assert reports["exact"]["mode_tv"] < 0.08
    for name in set(distance) - {"exact"}:
        assert 1.5 * floor[name] < distance[name] < 0.75, (name, distance)


@pytest.mark.parametrize("process", [DDPM(), EDM()], ids=str)
def test_tmpd_is_exact_for_gaussians(process):
    prior = normal()
    measurement, posterior = seen(prior, m=2)
    x = torch.randn(4, 2, 3, generator=source(), dtype=torch.float64)
    t, s = (400.0, 350.0) if isinstance(process, DDPM) else (1.5, 1.2)
    ours = METHODS["tmpd"].step(exact_model(prior, process), measurement, x, t, s, x, eta=0.5)
    theirs = METHODS["unguided"].step(exact_model(posterior, process), measurement, x, t, s, x, eta=0.5)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    late = curved(measurement)
    assert not torch.allclose(METHODS["tmpd"].step(exact_model(prior, process), late, x, t, s, x, eta=0.5), theirs)


def test_pigdm_is_exact_only_for_the_covariance_that_it_assumes():
    x = torch.randn(4, 2, 3, generator=source(), dtype=torch.float64)
    off = {}
    for name, covariance, prior_std in (
        ("I", torch.eye(3).double(), 1.0),
        ("0.49 I", 0.49 * torch.eye(3).double(), 0.7),
        ("0.49 I, taken for I", 0.49 * torch.eye(3).double(), 1.0),
        ("another", None, 1.0),
    ):
        prior = normal(covariance=covariance)
        measurement, posterior = seen(prior, m=2)
        ours = METHODS["pigdm"].step(
            exact_model(prior, VP()), measurement, x, 0.4, 0.3, x, prior_std=prior_std, eta=0.5
        )
        theirs = METHODS["unguided"].step(exact_model(posterior, VP()), measurement, x, 0.4, 0.3, x, eta=0.5)
        off[name] = (ours - theirs).abs().max().item()
    assert max(off["I"], off["0.49 I"]) < 1e-9
    assert min(off["0.49 I, taken for I"], off["another"]) > 1e-2


@pytest.mark.parametrize("name", ["dps", "dps_bayes", "pigdm", "tmpd", "mpgd", "freedom", "ndtm", "red_diff", "d_flow"])
def test_a_matrix_and_a_function_that_applies_it_agree(name):
    prior = mixture(dim=3)
    measurement, _ = seen(prior, m=2)
    function = Measurement(lambda x: x @ measurement.matrix.T, measurement.y, measurement.std, measurement.start)
    x = torch.randn(2, 2, 3, generator=source(), dtype=torch.float64)
    model, times = exact_model(prior, VP()), torch.tensor([0.9, 0.6, 0.3, 0.0])
    first, second = (sample_posterior(name, model, m, x, times, generator=source()) for m in (measurement, function))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [m for m in GAUSSIAN_METHODS if m != "ndtm"])
def test_the_recursion_of_moments_is_what_chains_do(method):
    process, chains = DDPM(), 20_000
    prior = NormalMixture(torch.tensor([[0.3]]).double(), torch.full((1, 1, 1), 0.49).double())
    measurement = Measurement(torch.eye(1).double(), torch.tensor([1.0]).double(), 0.4)
    posterior = prior.condition(measurement.matrix, measurement.y, 0.4)
    times = process.times(12)
    settings = {"exact": {"log_likelihood": exact_log_likelihood(prior, posterior, process)}}.get(method, {})
    x = process.initial((chains, 1), measurement.y, source())
    out = sample_posterior(method, exact_model(prior, process), measurement, x, times, generator=source(1), **settings)
    mean, std = guided_moments(method, process, times, y=1.0, std=0.4, prior_mean=0.3, prior_std=0.7)
    assert abs(out.mean().item() - mean) < 4 * std / chains**0.5
    assert abs(out.std().item() - std) < 4 * std / (2 * chains) ** 0.5


def test_what_the_recursion_says_of_the_methods():
    process = DDPM()

    def found(method, num_steps, std, prior_std=1.0, **more):
        return guided_moments(method, process, process.times(num_steps), y=1.0, std=std, prior_std=prior_std, **more)

    wide = gaussian_posterior(1.0, 0.3)
    assert normal_kl(*found("exact", 1000, 0.3), *wide) < 0.002
    assert normal_kl(*found("ndtm", 1000, 0.3, terminal_weight="exact"), *wide) < 0.002
    torch.testing.assert_close(found("pigdm", 50, 0.3), found("exact", 50, 0.3))  # its assumption holds here
    explicit, implicit = found("dps_bayes", 1000, 0.3), found("ndtm", 1000, 0.3)
    assert (
        abs(explicit[0] - 1) < 0.01 and abs(implicit[0] - 1) < 0.01
    )  # both forget the prior: the posterior's is 0.917
    assert 0.69 < explicit[1] / wide[1] < 0.77 and 0.71 < implicit[1] / wide[1] < 0.78
    assert found("dps_bayes", 20, 0.05, 0.5)[1] > 1e3
    assert found("ndtm", 20, 0.05, 0.5)[1] < 0.2


def test_the_gradient_of_dps_is_that_of_finite_differences():
    prior = mixture()
    measurement = curved(seen(prior)[0])
    model = exact_model(prior, VP())
    x = torch.randn(2, 2, generator=source(), dtype=torch.float64)
    step = METHODS["dps"].step
    moved = step(model, measurement, x, 0.5, 0.4, x, scale=0.0, eta=0.0) - step(
        model, measurement, x, 0.5, 0.4, x, scale=0.3, eta=0.0
    )
    slope = torch.empty_like(x)
    for j in range(2):
        shift = 1e-5 * torch.eye(2).double()[j]
        ends = [measurement.energy(model.data(x + sign * shift, 0.5)).sqrt() for sign in (1, -1)]
        slope[:, j] = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close(moved, 0.3 * slope, rtol=1e-6, atol=1e-8)
    exactly = Measurement(torch.eye(2).double(), model.data(x, 0.5), 0.1)  # a residual of 0 has no norm's gradient
    assert step(model, exactly, x, 0.5, 0.4, x).isfinite().all()


def test_dps_bayes_is_dps_with_a_weight():
    prior, process = mixture(), VP()
    measurement, _ = seen(prior)
    model = exact_model(prior, process)
    x = torch.randn(3, 2, 2, generator=source(), dtype=torch.float64)
    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(-measurement.energy(model.data(at, 0.5)).sum() / (2 * measurement.std**2), at)
    guided = DiffusionModel(lambda x, t: model.score(x, t) + g, process, "score")
    ours = METHODS["dps_bayes"].step(model, measurement, x, 0.5, 0.4, x)
    torch.testing.assert_close(ours, METHODS["unguided"].step(guided, measurement, x, 0.5, 0.4, x))


def test_mpgd_moves_the_estimate_of_the_data_only():
    prior, process = mixture(), VP()
    measurement, _ = seen(prior)
    model = exact_model(prior, process)
    x = torch.randn(3, 2, 2, generator=source(), dtype=torch.float64)
    plain, moved = (METHODS["mpgd"].step(model, measurement, x, 0.5, 0.4, x, scale=c) for c in (0.0, 0.2))
    a, _ = process.coefficients(torch.tensor(0.4, dtype=torch.float64))
    pull = 0.4 * measurement.residual(model.data(x, 0.5)) @ measurement.matrix
    torch.testing.assert_close(moved - plain, a * pull)
    limit = METHODS["mpgd"].step(model, measurement, x, 0.1, 0.0, x, scale=100.0, clamp=0.5)
    assert limit.abs().max() == 0.5


def test_freedom_is_steps_with_a_return():
    prior, process = mixture(), VP()
    measurement, _ = seen(prior)
    model = exact_model(prior, process)
    x, noise = torch.randn(2, 3, 2, 2, generator=source(), dtype=torch.float64)
    step, t, s = METHODS["freedom"].step, 0.5, 0.4
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(measurement.energy(model.data(at, t)).sum(), at)
    (a, b), (a_s, b_s) = (process.coefficients(torch.tensor(v, dtype=torch.float64)) for v in (t, s))
    once = METHODS["unguided"].step(model, measurement, x, t, s, noise) - 0.1 * a * gradient
    torch.testing.assert_close(step(model, measurement, x, t, s, noise, repeats=1), once)
    g = source(4)
    back, again = (torch.randn(3, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    returned = a / a_s * once + (b**2 - (a / a_s * b_s) ** 2).sqrt() * back
    twice = step(model, measurement, returned, t, s, again, repeats=1)
    torch.testing.assert_close(step(model, measurement, x, t, s, noise, generator=source(4)), twice)


def test_red_diff_stands_still_where_the_two_pulls_agree():
    """For a Gaussian prior: H^T (H mu - y) + weight b^2 S^-1 (mu - m) = 0."""
    prior, process, weight, t = normal(), VP(), 0.7, 0.4
    measurement, _ = seen(prior, m=2, problems=1)
    model, eye = exact_model(prior, process), torch.eye(3).double()
    a, b = process.coefficients(torch.tensor(t, dtype=torch.float64))
    pull = weight * b**2 * torch.linalg.inv(a**2 * prior.covariances[0] + b**2 * eye)
    h = measurement.matrix
    still = torch.linalg.solve(h.T @ h + pull, h.T @ measurement.y[0] + pull @ prior.means[0])
    noise = torch.randn(4, 1, 3, generator=source(), dtype=torch.float64)
    for shift, expected in ((0 * eye[0], 0 * eye[0]), (eye[1], (h.T @ h + pull) @ eye[1])):
        mu = (still + shift).expand(8, 1, 3).clone().requires_grad_()
        loss = optimised.red_diff_loss(model, measurement, mu, t, torch.cat([noise, -noise]), weight=weight)
        (gradient,) = torch.autograd.grad(loss.sum(), mu)
        torch.testing.assert_close(gradient.mean(0)[0], expected, rtol=1e-9, atol=1e-9)
    times = torch.linspace(t + 1e-4, t, 400, dtype=torch.float64)
    x = torch.zeros(300, 1, 3).double()
    out = sample_posterior("red_diff", model, measurement, x, times, weight=weight, lr=0.03, generator=source())
    torch.testing.assert_close(out.mean((0, 1)), still, rtol=0, atol=0.03)


def test_d_flow_descends_along_finite_differences():
    prior, process = mixture(), VP()
    measurement, _ = seen(prior)
    model, times = exact_model(prior, process), process.times(4)
    z = torch.randn(2, 2, generator=source(), dtype=torch.float64)

    def cost(z):
        rare = z.norm(dim=-1).square() / 2 - z.norm(dim=-1).log()  # dim - 1 = 1
        _, scale = process.coefficients(times[0])
        return measurement.energy(ddim(model, scale * z, times)) / (2 * measurement.std**2) + 3 * rare

    slope = torch.stack([(cost(z + e) - cost(z - e)) / 2e-5 for e in 1e-5 * torch.eye(2).double()], -1)
    _, scale = process.coefficients(times[0])
    settings = {"iterations": 1, "lr": 0.1, "norm_weight": 3.0}
    out = sample_posterior("d_flow", model, measurement, scale * z, times, **settings)
    expected = ddim(model, scale * (z - 0.1 * slope.sign()), times)  # Adam's first step is lr times the sign
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    path = sample_posterior("d_flow", model, measurement, scale * z, times, iterations=30, return_path=True)
    assert len(path) == 31
    assert (measurement.energy(path[-1]) < 0.2 * measurement.energy(path[0])).all()


def test_the_radius_that_d_flow_prefers_is_the_likeliest():
    """For data ~ N(0, I) the sampler is linear in z, and |z| is likeliest at sqrt(dim - 1)."""
    process = VP()
    prior = NormalMixture(torch.zeros(1, 5).double(), torch.eye(5).double()[None])
    measurement, times = Measurement(torch.eye(5).double()[:1], torch.zeros(1).double(), 1.0), process.times(3)
    z = torch.randn(3, 5, generator=source(), dtype=torch.float64)
    _, scale = process.coefficients(times[0])
    model = exact_model(prior, process)
    factor = (ddim(model, scale * z, times) / z)[0, 0]
    settings = {"iterations": 300, "lr": 0.05, "norm_weight": 1e4}
    out = sample_posterior("d_flow", model, measurement, scale * z, times, **settings) / factor
    torch.testing.assert_close(out.norm(dim=-1), torch.full((3,), 2.0).double(), rtol=0, atol=0.01)


COSTS = {
    "unguided": (3, 0, {}),
    "exact": (3, 0, {}),
    "dps": (3, 3, {}),
    "dps_bayes": (3, 3, {}),
    "pigdm": (3, 3, {}),
    "tmpd": (3, 6, {}),
    "mpgd": (3, 0, {}),
    "freedom": (12, 12, {"repeats": 4}),
    "red_diff": (3, 0, {}),
    "d_flow": (3 * 6, 3 * 5, {"iterations": 5}),
    "ndtm": (3 * 7, 3 * 5, {"inner_steps": 5}),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("learned", [False, True])
def test_what_the_methods_cost_and_leave_alone(name, learned):
    prior, process = mixture(dim=3), VP()
    measurement, posterior = seen(prior, m=2)
    model = exact_model(prior, process)
    if learned:
        layer = torch.nn.Linear(3, 3, dtype=torch.float64)
        model = DiffusionModel(lambda x, t: layer(x) * t, process, "noise")
    calls, pullbacks, settings = COSTS[name]
    if name == "exact":
        settings = {"log_likelihood": exact_log_likelihood(prior, posterior, process)}
    x = torch.randn(2, 2, 3, generator=source(), dtype=torch.float64)
    kept = x.clone()
    path = sample_posterior(
        name, model, measurement, x, process.times(3), generator=source(), return_path=True, **settings
    )
    assert (model.calls, model.pullbacks) == (calls, pullbacks)
    assert not path.requires_grad and torch.equal(x, kept) and path.shape[1:] == x.shape
    if learned:
        assert layer.weight.grad is None
    with torch.no_grad():
        again = sample_posterior(name, model, measurement, x, process.times(3), generator=source(), **settings)
    assert torch.equal(again, path[-1])


@pytest.mark.parametrize("name", [*STEPWISE, "red_diff", "d_flow"])
def test_no_chain_knows_of_another(name, monkeypatch):
    prior, process = mixture(dim=3), VP()
    measurement, posterior = seen(prior, m=2, problems=2)
    model = exact_model(prior, process)
    x = torch.randn(4, 2, 3, generator=source(), dtype=torch.float64)
    settings = {"freedom": {"repeats": 1}}.get(name, {})
    if name == "red_diff":
        monkeypatch.setattr(optimised, "draw", lambda kind, shape, like, generator: torch.full_like(like, 0.3))
    elif name != "d_flow":
        settings["eta"] = 0.0
    likelihood = {"log_likelihood": exact_log_likelihood(prior, posterior, process)} if name == "exact" else {}
    whole = sample_posterior(name, model, measurement, x, process.times(6), **settings, **likelihood)
    only = Measurement(measurement.matrix, measurement.y[1], measurement.std)
    if name == "exact":
        one = prior.condition(measurement.matrix, measurement.y[1], measurement.std)
        likelihood = {"log_likelihood": exact_log_likelihood(prior, one, process)}
    alone = sample_posterior(name, model, only, x[2, 1], process.times(6), **settings, **likelihood)
    torch.testing.assert_close(alone, whole[2, 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in STEPWISE if n not in ("dps", "freedom", "exact", "dps_bayes")])
def test_the_last_step_returns_the_estimate_and_no_noise_comes_without_eta(name):
    prior, process = mixture(dim=3), VP()
    measurement, _ = seen(prior, m=2)
    x = torch.randn(4, 2, 3, generator=source(), dtype=torch.float64)
    step, model = METHODS[name].step, exact_model(prior, process)
    first, second = (step(model, measurement, x, 0.1, 0.0, v * x, eta=1.0) for v in (1, -1))
    assert torch.equal(first, second)
    first, second = (step(model, measurement, x, 0.5, 0.4, v * x, eta=0.0) for v in (1, -1))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "name", ["unguided", "dps", "dps_bayes", "pigdm", "tmpd", "mpgd", "freedom", "d_flow", "red_diff", "ndtm"]
)
def test_a_flow_may_start_where_there_is_no_data(name):
    prior, process = mixture(dim=3), FlowPath()
    measurement, _ = seen(prior, m=2)
    x = torch.randn(4, 2, 3, generator=source(), dtype=torch.float64)
    out = sample_posterior(name, exact_model(prior, process), measurement, x, process.times(30), generator=source())
    assert out.isfinite().all() and out.abs().max() < 20


def test_a_late_start_has_the_moments_of_a_noised_guess():
    measurement, process = Measurement(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0], [3.0]]), 0.1), DDPM()
    start = guided_start(measurement, process, 300, (20_000, 2, 2), source())
    a, b = (c.item() for c in process.coefficients(torch.tensor(300.0)))
    torch.testing.assert_close(start.mean(0), a * torch.tensor([[0.5, 0.0], [1.5, 0.0]]), rtol=0, atol=0.03)
    torch.testing.assert_close(start.std(0), torch.full((2, 2), b), rtol=0.03, atol=0)


def bad(name, message, error=ValueError, **change):
    def call():
        prior = mixture()
        measurement, _ = seen(prior)
        x = torch.zeros(4, 2, 2, dtype=torch.float64)
        arguments = {"model": exact_model(prior, VP()), "measurement": measurement, "x": x, "times": VP().times(3)}
        arguments |= change
        return sample_posterior(name, **arguments)

    return pytest.param(call, message, error, id=f"{name}: {message[:30]}")


BAD = [
    bad("nearest", "name: got 'nearest', expected one of unguided, exact"),
    *(bad(name, "model: got function, expected a DiffusionModel", TypeError, model=lambda x, t: x) for name in METHODS),
    *(
        bad(name, "measurement: got Tensor, expected a Measurement", TypeError, measurement=torch.ones(1))
        for name in METHODS
    ),
    *(
        bad(name, r"x: got shape \(4, 3, 2\), expected \(\*chains, 2, dim\)", x=torch.zeros(4, 3, 2).double())
        for name in METHODS
    ),
    bad("dps", r"x: got torch.float32, expected torch.float64 like y", TypeError, x=torch.zeros(4, 2, 2)),
    bad("dps", r"times: got \[1.0\]", times=torch.ones(1)),
    bad("ndtm", r"times: got \[0.0, 1.0\], expected two or more, falling", times=torch.tensor([0.0, 1.0])),
    bad("red_diff", r"times: got \[0.0, 1.0\], expected two or more, falling", times=torch.tensor([0.0, 1.0])),
    bad("dps", "scale: got .-1.0., expected one or more finite numbers >= 0", scale=-1.0),
    bad("mpgd", "scale: got .-1.0., expected", scale=-1.0),
    bad("freedom", "repeats: got 0, expected a whole number", repeats=0),
    bad("pigdm", "prior_std: got 0.0, expected a finite number > 0", prior_std=0.0),
    bad("dps", "eta: got 2.0, expected a number in", eta=2.0),
    bad("dps", "clamp: got -1, expected a finite number > 0", clamp=-1),
    bad("classifier", "log_likelihood: got NoneType", TypeError, log_likelihood=None),
    bad("unguided", "unexpected keyword argument 'scale'", TypeError, scale=1.0),
    bad("red_diff", "weight: got .-1.", weight=-1),
    bad("red_diff", "lr: got 0, expected", lr=0),
    bad("d_flow", "iterations: got 0, expected", iterations=0),
    bad("d_flow", "norm_weight: got .nan", norm_weight=math.nan),
]


@pytest.fixture
def untyped(monkeypatch):
    """The annotations' run-time check would raise first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("call", "message", "error"), BAD)
def test_errors_name_the_argument(untyped, call, message, error):
    with pytest.raises(error, match=message):
        call()


def test_errors_of_the_helpers(untyped):
    blind = Measurement(torch.tanh, torch.ones(2), 0.1)
    with pytest.raises(ValueError, match="measurement: has no start"):
        guided_start(blind, VP(), 0.5, (3, 2))
    prior = mixture()
    problem, _ = seen(prior)
    model, x, begin = (
        exact_model(prior, VP()),
        torch.zeros(4, 2, 2).double(),
        Measurement(torch.eye(2), torch.zeros(3, 2), 0.1),
    )
    for shape in [(4, 1, 2), (2,), (4, 3, 3), ()]:
        with pytest.raises(ValueError, match=re.escape(f"shape: got {shape}, expected (*chains, *problems, dim)")):
            guided_start(begin, VP(), 0.5, shape)
    for name in ("exact", "classifier"):
        with pytest.raises(TypeError, match=f"log_likelihood: needed by '{name}'"):
            sample_posterior(name, model, problem, x, VP().times(3))
    with pytest.raises(ValueError, match="x: got shape .0, .*at least one"):
        sample_posterior("dps", model, problem, x[:0], VP().times(3))
    with pytest.raises(ValueError, match="method: got 'dps', expected one of unguided"):
        guided_moments("dps", VP(), VP().times(3), y=1.0, std=0.1)
    with pytest.raises(ValueError, match="std: got 0, expected a finite number > 0"):
        guided_moments("exact", VP(), VP().times(3), y=1.0, std=0)


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("times: got .*, expected two or more, falling", {"times": [0.0, 0.5, 1.0]}),
        ("times: got .*, expected two or more", {"times": []}),
        ("times: start at 80, before the noise at 1", {"times": EDM().times(3)}),
        ("terminal_weight: got 'byes', expected 'bayes', 'exact'", {"terminal_weight": "byes"}),
        ("terminal_weight: got .nan.", {"terminal_weight": math.nan}),
        ("scale: got .nan.", {"scale": math.nan}),
        ("gamma: got .-1.", {"gamma": -1}),
    ],
)
def test_errors_of_the_recursion(untyped, message, settings):
    with pytest.raises(ValueError, match=message):
        guided_moments("ndtm", VP(), **{"times": VP().times(3), "y": 1.0, "std": 0.3, **settings})


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("std: got -1", lambda: gaussian_posterior(1, -1)),
        ("prior_std: got 0", lambda: gaussian_posterior(1, 1, 0, 0)),
        ("y, prior_mean: got .nan", lambda: gaussian_posterior(math.nan, 1)),
        ("true_std: got 0", lambda: normal_kl(0, 1, 0, 0)),
        ("std: got -1", lambda: normal_kl(0, -1, 0, 1)),
        ("mean, true_mean: got .inf", lambda: normal_kl(math.inf, 1, 0, 1)),
    ],
)
def test_errors_of_normals(untyped, message, call):
    with pytest.raises(ValueError, match=message):
        call()
