"""Samplers: Gaussian data, for which every sampler is an affine map; orders; other libraries; marginals; the contract."""

import itertools
import math
import re
import warnings

import jaxtyping
import pytest
import torch
from scipy import stats

from refimpl.data import NormalMixture
from refimpl.diffusion import (
    DDPM,
    EDM,
    VE,
    VP,
    DiffusionModel,
    FlowPath,
    TrigonometricPath,
    ancestral,
    convert,
    ddim,
    ddim_step,
    euler,
    exact_model,
    heun,
    integrate,
)

F64 = torch.float64
CONTINUOUS = [VP(), VE(), EDM(), FlowPath(), TrigonometricPath()]
PROCESSES = [*CONTINUOUS, DDPM()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
each_continuous = pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: type(p).__name__)
VARIANCES, MEAN = torch.tensor([0.02, 0.3, 2.0], dtype=F64), torch.tensor([0.5, -1.0, 2.0], dtype=F64)
TURN = torch.linalg.qr(torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(3))).Q
NORMAL = NormalMixture((TURN @ MEAN)[None], (TURN * VARIANCES @ TURN.T)[None])
MIXTURE = NormalMixture(
    torch.tensor([[-1.5, 0.0], [1.0, 0.5], [0.5, -1.5]], dtype=F64),
    torch.tensor([[[0.1, 0.05], [0.05, 0.1]], [[0.05, 0.0], [0.0, 0.2]], [[0.1, -0.08], [-0.08, 0.2]]], dtype=F64),
    torch.tensor([0.5, 0.3, 0.2], dtype=F64),
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# What each sampler does to N(m, lambda), in one dimension: x_s = factor x_t + shift + N(0, variance).


def of_state(process, t):
    """a, b, variance of the state."""
    a, b = process.coefficients(t)
    return a, b, a**2 * VARIANCES + b**2


def ddim_affine(process, t, s, eta=0.0):
    (a_t, b_t, v_t), (a_s, b_s, _) = of_state(process, t), of_state(process, s)
    std = eta * b_s * (1 - (a_t * b_s / a_s / b_t) ** 2).sqrt()
    factor = (a_s * a_t * VARIANCES + (b_s**2 - std**2).sqrt() * b_t) / v_t
    return factor, (a_s - factor * a_t) * MEAN, std**2


def ancestral_affine(process, t, s, large=False):
    """From the posterior as DDPM writes it, a mean of x_0 and x_t."""
    (a_t, b_t, v_t), (a_s, b_s, _) = of_state(process, t), of_state(process, s)
    beta = b_t**2 - (a_t / a_s * b_s) ** 2
    gain = a_t * VARIANCES / v_t  # of the estimate of x_0
    of_data, of_state_ = a_s * beta / b_t**2, a_t / a_s * b_s**2 / b_t**2
    variance = beta * (b_s > 0) if large else beta * b_s**2 / b_t**2
    return of_data * gain + of_state_, of_data * (1 - gain * a_t) * MEAN, variance


def euler_affine(process, t, s, stochasticity=0.0):
    if s == process.data_time:
        return ddim_affine(process, t, s)
    (a, b, v), (da, db), h = of_state(process, t), process.rates(t), s - t
    slope = (a * da * VARIANCES + b * db) / v
    spread = 0.0 if a == 0 else stochasticity**2 * process.diffusion_squared(t) * h.abs()
    factor = 1 + h * slope - spread / 2 / v
    return factor, h * da * MEAN - (factor - 1) * a * MEAN, torch.as_tensor(spread, dtype=F64)


def heun_affine(process, t, s, gamma=0.0, excess=1.0):
    (a_t, _, _), (a_s, _, _) = of_state(process, t), of_state(process, s)
    sigma, sigma_s = process.sigma(t), process.sigma(s)
    raised = process.sigma(process.time_of((1 + gamma) * sigma)) if gamma else sigma
    h, first = sigma_s - raised, raised / (VARIANCES + raised**2)
    factor = 1 + h * first
    if s != process.data_time:
        factor = 1 + h / 2 * (first + sigma_s / (VARIANCES + sigma_s**2) * factor)
    return factor * a_s / a_t, (1 - factor) * a_s * MEAN, (a_s * factor * excess) ** 2 * (raised**2 - sigma**2)


def propagate(affine, process, times, **settings):
    """The whole way: factor, shift and variance of the final state, in the eigenbasis of the covariance."""
    factor, shift, variance = torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    for t, s in itertools.pairwise(times):
        f, o, v = affine(process, t, s, **settings)
        factor, shift, variance = f * factor, f * shift + o, f**2 * variance + v
    return factor, shift, variance


DETERMINISTIC = [(ddim, ddim_affine), (euler, euler_affine), (heun, heun_affine)]
RANDOM = [
    (ddim, ddim_affine, {"eta": 0.5}, {"eta": 0.5}),
    (ddim, ddim_affine, {"eta": 1.0}, {"eta": 1.0}),
    (ancestral, ancestral_affine, {}, {}),
    (ancestral, ancestral_affine, {"variance": "large"}, {"large": True}),
    (euler, euler_affine, {"stochasticity": 0.5}, {"stochasticity": 0.5}),
    (euler, euler_affine, {"stochasticity": 1.5}, {"stochasticity": 1.5}),
    (heun, heun_affine, {"churn": 3.0, "churn_noise": 1.1}, {"gamma": 0.25, "excess": 1.1}),
    (heun, heun_affine, {"churn": 1e3}, {"gamma": math.sqrt(2) - 1}),
]


def applies(sampler, process, settings):
    no_rates = isinstance(process, DDPM) and (sampler is euler or settings.get("churn"))
    return not no_rates and not (sampler is heun and process.data_time == 1)  # a = 0 where a flow starts


def pairs_that_apply(runs):
    """Each sampler's row with each process that it is for."""
    rows = [(p, *run) for run in runs for p in PROCESSES if applies(run[0], p, run[2] if len(run) > 2 else {})]
    return [pytest.param(*row, id=f"{i}-{type(row[0]).__name__}-{row[1].__name__}") for i, row in enumerate(rows)]


@pytest.mark.parametrize(("process", "sampler", "affine"), pairs_that_apply(DETERMINISTIC))
def test_for_gaussian_data_samplers_are_affine(process, sampler, affine):
    times = process.times(12)
    x = process.initial((6, 3), MEAN, seeded())
    factor, shift, _ = propagate(affine, process, times)
    found = sampler(exact_model(NORMAL, process), x, times)
    torch.testing.assert_close(found @ TURN, x @ TURN * factor + shift, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("process", "sampler", "affine", "settings", "of_affine"), pairs_that_apply(RANDOM))
def test_random_samplers_have_the_moments_of_the_recursion(process, sampler, affine, settings, of_affine):
    times, n = process.times(12), 20_000
    x, g = process.initial((n, 3), MEAN, seeded(1)), seeded(2)
    factor, shift, variance = propagate(affine, process, times, **of_affine)
    _, b, _ = of_state(process, times[0])
    found = sampler(exact_model(NORMAL, process), x, times, generator=g, **settings) @ TURN
    variance = variance + (factor * b) ** 2
    assert ((found.mean(0) - shift).abs() < 4.5 * (variance / n).sqrt()).all()
    assert ((found.var(0) / variance - 1).abs() < 4.5 * math.sqrt(2 / n)).all()
    correlations = torch.corrcoef(found.T)[[0, 0, 1], [1, 2, 2]]
    assert (correlations.abs() < 4.5 / math.sqrt(n)).all()


@each_continuous
def test_the_ode_keeps_each_point_at_its_quantile(process):
    """For Gaussian data (x_t - a m) / std_t is constant along the probability-flow ODE."""
    times = torch.linspace(process.noise_time, process.data_time, 12, dtype=F64)[:-2]
    x = process.initial((6, 3), MEAN, seeded())
    found = integrate(exact_model(NORMAL, process), x, times, tolerance=1e-9)
    (a, _, v), (a_s, _, v_s) = of_state(process, times[0]), of_state(process, times[-1])
    wanted = a_s * MEAN + (x @ TURN - a * MEAN) * (v_s / v).sqrt()
    torch.testing.assert_close(found @ TURN, wanted, rtol=1e-6, atol=1e-6)


def slopes(run, sizes, reference):
    errors = [torch.linalg.vector_norm(run(n) - reference, dim=-1).mean().item() for n in sizes]
    return [math.log(errors[i] / errors[i + 1]) / math.log(sizes[i + 1] / sizes[i]) for i in (0, 1)], errors


def test_orders_on_edms_grid():
    model, grid = exact_model(MIXTURE, EDM()), EDM().times
    x = EDM().initial((200, 2), MEAN, seeded())
    reference = heun(model, x, grid(600))
    first, of_euler = slopes(lambda n: ddim(model, x, grid(n)), [36, 72, 144], reference)
    second, of_heun = slopes(lambda n: heun(model, x, grid(n)), [36, 72, 144], reference)
    assert all(0.9 < slope < 1.2 for slope in first), (first, of_euler)
    assert all(1.8 < slope < 2.5 for slope in second), (second, of_heun)
    assert of_heun[0] < of_euler[1] / 2  # at about 72 evaluations


@pytest.mark.parametrize("process", [FlowPath(), TrigonometricPath()])
def test_orders_on_flows(process):
    model, x = exact_model(MIXTURE, process), process.initial((60, 2), MEAN, seeded())
    reference = integrate(model, x, torch.linspace(0, 1, 3001, dtype=F64)[[0, -2, -1]], tolerance=1e-9)
    first, _ = slopes(lambda n: euler(model, x, process.times(n)), [160, 320, 640], reference)
    second, _ = slopes(lambda n: integrate(model, x, process.times(n), method="heun2"), [40, 80, 160], reference)
    assert all(0.9 < slope < 1.1 for slope in first), first
    assert all(1.7 < slope < 2.5 for slope in second), second


@pytest.mark.parametrize("process", [VP(), DDPM(), VE()])
def test_ddim_is_eulers_method_in_x_over_a(process):
    """The same mixture on another clock: Euler's steps of EDM's ODE through the same levels give x / a."""
    times = process.times(20)
    levels, x = process.sigma(times), process.initial((50, 2), MEAN, seeded())
    a, a_last = process.coefficients(times[0])[0], process.coefficients(times[-1])[0]
    wanted = euler(exact_model(MIXTURE, EDM()), x / a, levels)
    torch.testing.assert_close(ddim(exact_model(MIXTURE, process), x, times) / a_last, wanted, rtol=1e-9, atol=1e-9)
    wanted = heun(exact_model(MIXTURE, EDM()), x / a, levels)
    if levels[-1] == 0:
        torch.testing.assert_close(heun(exact_model(MIXTURE, process), x, times), wanted, rtol=1e-9, atol=1e-9)


@each
def test_with_eta_1_ddim_is_ancestral_sampling(process):
    model, x = exact_model(MIXTURE, process), process.initial((50, 2), MEAN, seeded())
    runs = (f(model, x, process.times(9), generator=seeded(1), **k) for f, k in ((ddim, {"eta": 1.0}), (ancestral, {})))
    assert torch.equal(*runs)


LINE = NormalMixture(
    torch.tensor([[-1.0], [1.5]], dtype=F64),
    torch.tensor([[[0.1]], [[0.4]]], dtype=F64),
    torch.tensor([0.7, 0.3], dtype=F64),
)


@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("process", [VP(), FlowPath()], ids=["VP", "FlowPath"])
def test_every_sde_of_the_family_has_the_same_marginals(process, stochasticity):
    """Along the way too: the states at half the time and the last are as of the mixture (Kolmogorov-Smirnov)."""
    n, steps = 3000, 300
    path = euler(
        exact_model(LINE, process),
        process.initial((n, 1), MEAN, seeded()),
        process.times(steps),
        stochasticity=stochasticity,
        generator=seeded(1),
        return_path=True,
    )
    for i in (steps // 2, steps):
        a, b = process.coefficients(process.times(steps)[i])

        def cdf(x, a=a, b=b):
            std = (a**2 * LINE.covariances[:, 0, 0] + b**2).sqrt()
            return (
                (LINE.weights * torch.special.ndtr((torch.as_tensor(x)[:, None] - a * LINE.means[:, 0]) / std))
                .sum(-1)
                .numpy()
            )

        assert stats.kstest(path[i, :, 0].numpy(), cdf).pvalue > 1e-3, (i, stochasticity)


def exact_on_chain():
    process = DDPM()
    return process, exact_model(MIXTURE, process), torch.randn(40, 2, dtype=F64, generator=seeded())


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clamp", [None, 0.8])
def test_ddim_is_that_of_diffusers(eta, clamp):
    from diffusers import DDIMScheduler

    process, model, x = exact_on_chain()
    library = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=clamp is not None,
        clip_sample_range=clamp or 1.0,
        set_alpha_to_one=True,
    )
    library.set_timesteps(50)
    for t in (1000, 520, 20):
        eps, g = model.noise(x, t), seeded(t)
        noise = torch.randn(x.shape, dtype=F64, generator=g)
        wanted = library.step(eps, t - 1, x, eta=eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
        found = ddim(model, x, [t, t - 20], eta=eta, clamp=clamp, generator=seeded(t))
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
        if clamp is None:
            found = ddim_step(*model.data_and_noise(x, t), process, t, t - 20, eta, noise)
            torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_sampling_is_that_of_diffusers(variance):
    from diffusers import DDPMScheduler

    _, model, x = exact_on_chain()
    library = DDPMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        variance_type=f"fixed_{variance}",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    library.set_timesteps(50)
    for t in (
        (1000, 520, 20) if variance == "small" else (1000, 520, 40)
    ):  # it adds noise in a last step over many levels
        wanted = library.step(model.noise(x, t), t - 1, x, generator=seeded(t)).prev_sample
        found = ancestral(model, x, [t, t - 20], variance=variance, generator=seeded(t))
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers with numpy 2
def test_heun_is_that_of_diffusers():
    from diffusers import HeunDiscreteScheduler

    model, levels = exact_model(MIXTURE, EDM()), EDM(0.02, 20.0).times(9)
    library = HeunDiscreteScheduler(use_karras_sigmas=True)
    library.set_timesteps(9)
    library.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    x = wanted = 20 * torch.randn(40, 2, dtype=F64, generator=seeded())
    for t, sigma in zip(library.timesteps, library.sigmas[:-1], strict=True):
        wanted = library.step(model.noise(wanted, sigma), t, wanted).prev_sample
    torch.testing.assert_close(heun(model, x, levels), wanted, rtol=1e-9, atol=1e-9)


def test_euler_is_that_of_flow_matching():
    from flow_matching.solver import ODESolver

    model, x = exact_model(MIXTURE, FlowPath()), torch.randn(40, 2, dtype=F64, generator=seeded())
    solver = ODESolver(lambda x, t: model.velocity(x, t))
    times = FlowPath().times(20)
    wanted = solver.sample(x, step_size=None, method="euler", time_grid=times)
    torch.testing.assert_close(euler(model, x, times), wanted, rtol=1e-9, atol=1e-9)
    wanted = solver.sample(x, step_size=None, method="midpoint", time_grid=times[:-1])
    torch.testing.assert_close(integrate(model, x, times[:-1], method="midpoint"), wanted, rtol=1e-9, atol=1e-9)


def test_churn_as_edms_algorithm_2():
    model, n, g = exact_model(MIXTURE, EDM()), 18, seeded(4)
    settings = dict(churn=4.0, churn_range=(0.05, 20.0), churn_noise=1.007)
    levels = EDM().times(n)
    x = start = 80 * torch.randn(30, 2, dtype=F64, generator=seeded())
    for t, s in itertools.pairwise(levels):
        gamma = 4.0 / n if 0.05 <= t <= 20.0 else 0.0
        raised = t + gamma * t
        if gamma:
            x = x + (raised**2 - t**2).sqrt() * 1.007 * torch.randn(x.shape, dtype=F64, generator=g)
        slope = (x - model.data(x, raised)) / raised
        ahead = x + (s - raised) * slope
        x = ahead if s == 0 else x + (s - raised) * (slope + (ahead - model.data(ahead, s)) / s) / 2
    torch.testing.assert_close(heun(model, start, levels, generator=seeded(4), **settings), x, rtol=1e-9, atol=1e-9)


def test_without_churn_and_eta_nothing_is_random():
    model, x, g = exact_model(MIXTURE, EDM()), 80 * torch.randn(5, 2, dtype=F64, generator=seeded()), seeded(1)
    before, still = g.get_state(), heun(model, x, EDM().times(6))
    assert torch.equal(heun(model, x, EDM().times(6), churn=5.0, churn_range=(1e3, 1e4), generator=g), still)
    for sampler, settings in ((heun, {"churn": 0.0}), (ddim, {"eta": 0.0}), (euler, {"stochasticity": 0.0})):
        assert torch.equal(
            sampler(model, x, EDM().times(6), generator=g, **settings), sampler(model, x, EDM().times(6))
        )
    assert torch.equal(g.get_state(), before)


ALL = [
    (ddim, {}, 1),
    (ddim, {"eta": 1.0}, 1),
    (ddim, {"clamp": 10.0}, 1),
    (ancestral, {}, 1),
    (euler, {}, 1),
    (euler, {"stochasticity": 1.0}, 1),
    (heun, {}, 2),
    (heun, {"churn": 4.0}, 2),
    (integrate, {"method": "euler"}, 1),
    (integrate, {"method": "heun2"}, 2),
    (integrate, {}, None),
]


@pytest.mark.parametrize(("sampler", "settings", "per_step"), ALL)
@each_continuous
def test_the_contract(process, sampler, settings, per_step):
    """Calls counted, never at the data's end; context passed; path, dtype and shape kept; no warnings."""
    asked = []

    def network(x, t, context):
        asked.append(t.unique().item())
        return context.expand_as(x)

    if not applies(sampler, process, settings):
        process = VP()
    model, times = DiffusionModel(network, process, "data"), process.times(7)
    context = torch.tensor([[0.3], [-0.7]])
    x = process.initial((4, 2, 3), context, seeded())
    settings = settings | ({} if sampler is integrate else {"generator": seeded(1)})
    path = sampler(model, x, times, context=context, return_path=True, **settings)
    assert path.shape == (8, 4, 2, 3) and path.dtype == torch.float32 and torch.equal(path[0], x)
    if per_step:
        assert model.calls == per_step * 7 - (per_step - 1)
    assert process.data_time not in asked and len(asked) == model.calls
    if sampler is not integrate:
        settings["generator"] = seeded(1)
    last = sampler(model, x, times.float().tolist(), context=context, **settings)
    torch.testing.assert_close(last, path[-1], rtol=1e-3, atol=1e-3)
    a, b = process.coefficients(times[-1])
    if b == 0:  # where no noise is left, every sampler ends at the estimate of the data
        torch.testing.assert_close(path[-1], context.expand_as(x), rtol=1e-5, atol=1e-5)


def test_truncated_times_end_where_they_say():
    model = exact_model(NORMAL, EDM())
    x, levels = 80 * torch.randn(6, 3, dtype=F64, generator=seeded()), EDM().times(40)[:-1]
    heun(model, x, levels)
    assert model.calls == 2 * 39
    found = integrate(model, x, levels[[0, -1]], tolerance=1e-8)
    _, _, v = of_state(EDM(), levels[-1])
    wanted = MEAN + (x @ TURN - MEAN) * (v / (VARIANCES + 80.0**2)).sqrt()
    torch.testing.assert_close(found @ TURN, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sampler", "settings", "_"), ALL)
def test_gradients_are_recorded_if_x_wants_them(sampler, settings, _):
    layer = torch.nn.Linear(2, 2).double()
    model = DiffusionModel(lambda x, t: layer(x), EDM(5e-2, 2.0), "data")
    x, times = torch.randn(3, 2, dtype=F64), EDM(5e-2, 2.0).times(4)
    settings = settings | ({} if sampler is integrate else {"generator": seeded(1)})
    assert not sampler(model, x, times, **settings).requires_grad
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(sampler(model, x, times, **settings).sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    with torch.no_grad():
        assert not sampler(model, x, times, **settings).requires_grad


def test_gradients_of_the_gaussian_map():
    model, x = exact_model(NORMAL, VP()), torch.randn(3, dtype=F64, generator=seeded()).requires_grad_()
    slope = torch.autograd.functional.jacobian(lambda x: ddim(model, x, VP().times(5)), x)
    torch.testing.assert_close(TURN.T @ slope @ TURN, propagate(ddim_affine, VP(), VP().times(5))[0].diag())


def test_clamping_recomputes_the_noise():
    model, x = exact_model(MIXTURE, VP()), torch.randn(20, 2, dtype=F64, generator=seeded())
    data = model.data(x, 0.6).clamp(-0.5, 0.5)
    eps = convert(data, x, 0.6, VP(), source="data", target="noise")
    torch.testing.assert_close(VP().add_noise(data, eps, 0.6), x)
    torch.testing.assert_close(ddim(model, x, [0.6, 0.4], clamp=0.5), VP().add_noise(data, eps, 0.4))
    assert ddim(model, x, VP().times(10), clamp=0.5).abs().max() <= 0.5


def test_ddim_step_takes_a_time_for_each_sample():
    x0, eps, noise = torch.randn(3, 4, 2, dtype=torch.float32).unbind()
    t, s = torch.tensor([[0.9], [0.5], [0.4], [0.2]]), torch.tensor([[0.5], [0.4], [0.1], [0.0]])
    together = ddim_step(x0, eps, VP(), t, s, 0.5, noise)
    assert together.dtype == torch.float32
    for i in range(4):
        single = ddim_step(x0[i], eps[i], VP(), t[i].item(), s[i].item(), 0.5, noise[i])
        torch.testing.assert_close(together[i], single)


def test_true_data_and_noise_give_the_marginal_for_every_eta():
    x0, eps, noise = torch.randn(3, 40_000, 1, dtype=F64, generator=seeded()).unbind()
    for eta, process in itertools.product((0.0, 0.5, 1.0), (VP(), VE(), FlowPath())):
        t, s = (process.time_of(v) for v in (2.0, 0.7))
        a, b = process.coefficients(s)
        left = ddim_step(x0, eps, process, t, s, eta, noise) - a * x0
        assert left.std() == pytest.approx(b.item(), rel=0.02)
        assert (left * x0).mean().abs() < 0.02 * b


def test_torchdiffeq_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, F64):
            p = NormalMixture(MIXTURE.means.to(dtype), MIXTURE.covariances.to(dtype))
            x = FlowPath().initial((5, 2), p.means, seeded())
            for method in ("dopri5", "dopri8", "bosh3", "euler", "midpoint", "heun2", "rk4"):
                assert integrate(exact_model(p, FlowPath()), x, FlowPath().times(8), method=method).dtype == dtype


model, x, times = exact_model(MIXTURE, VP()), torch.zeros(4, 2, dtype=F64), VP().times(4)
flow = exact_model(MIXTURE, FlowPath())
ROWS = [
    *[
        (name, lambda f=f, a=arguments: f(*a))
        for f in (ddim, ancestral, euler, heun, integrate)
        for name, arguments in (
            ("model", (lambda x, t: x, x, times)),
            ("times", (model, x, times.flip(0))),
            ("times", (model, x, [0.5])),
            ("times", (model, x, [0.5, 0.5, 0.1])),
            ("times", (model, x, [0.5, math.nan])),
            ("times", (model, x, [0.5, 0.2, -0.1])),
            ("times", (flow, x, [0.9, 0.5, 0.1])),
            ("x", (model, x.long(), times)),
            ("x", (model, x + math.nan, times)),
            ("x", (model, [0.0, 0.0], times)),
            ("x", (model, x[:, :1], times)),
            ("x", (model, x.float(), times)),
        )
    ],
    ("eta", lambda: ddim(model, x, times, eta=1.5)),
    ("eta", lambda: ddim(model, x, times, eta="1")),
    ("eta", lambda: ddim_step(x, x, VP(), 0.5, 0.2, -0.1)),
    ("noise", lambda: ddim_step(x, x, VP(), 0.5, 0.2, 1.0)),
    ("clamp", lambda: ddim(model, x, times, clamp=0.0)),
    ("clamp", lambda: ancestral(model, x, times, clamp="1")),
    ("variance", lambda: ancestral(model, x, times, variance="learned")),
    ("stochasticity", lambda: euler(model, x, times, stochasticity=-1.0)),
    ("stochasticity", lambda: euler(model, x, times, stochasticity=math.nan)),
    ("process", lambda: euler(exact_model(MIXTURE, DDPM()), x, DDPM().times(4))),
    ("churn", lambda: heun(model, x, times, churn=-1.0)),
    ("churn_range", lambda: heun(model, x, times, churn=1.0, churn_range=(2.0, 1.0))),
    ("churn_range", lambda: heun(model, x, times, churn=1.0, churn_range=3.0)),
    ("churn_noise", lambda: heun(model, x, times, churn=1.0, churn_noise=0.0)),
    ("times", lambda: heun(flow, x, FlowPath().times(4))),
    ("process", lambda: heun(exact_model(MIXTURE, DDPM()), x, DDPM().times(4), churn=1.0)),
    ("times", lambda: euler(model, x, EDM().times(5))),
    ("times", lambda: ddim(flow, x, [-0.5, 0.5, 1.0])),
    ("eps", lambda: ddim_step(x, x[:1], VP(), 0.5, 0.2)),
    ("noise", lambda: ddim_step(x, x, VP(), 0.5, 0.2, 1.0, x[0])),
    ("method", lambda: integrate(model, x, times, method="rk45")),
    ("tolerance", lambda: integrate(model, x, times, tolerance=0.0)),
    ("times", lambda: integrate(model, x, [1.0, 0.0])),
]


@pytest.mark.parametrize("sampler", [ddim, ancestral, euler, heun, integrate])
def test_times_may_be_a_list_of_whole_numbers_too(sampler):
    oracle, start = exact_model(MIXTURE, EDM()), torch.ones(3, 2, dtype=F64)
    generator = {} if sampler is integrate else {"generator": torch.Generator().manual_seed(0)}
    one = sampler(oracle, start, [80, 2, 0.5, 0], **generator)
    generator = {} if sampler is integrate else {"generator": torch.Generator().manual_seed(0)}
    assert torch.equal(one, sampler(oracle, start, torch.tensor([80, 2, 0.5, 0], dtype=F64), **generator))


def test_the_noise_level_as_clock_may_start_at_any():
    assert ddim(exact_model(MIXTURE, EDM()), torch.ones(3, 2, dtype=F64), [200.0, 1.0, 0.0]).isfinite().all()


@pytest.mark.parametrize(("name", "call"), ROWS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ROWS)])
def test_malformed_calls_name_the_argument(monkeypatch, name, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert re.match(rf"{name}\b.*: ", str(caught.value)), str(caught.value)
