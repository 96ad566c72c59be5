"""NDTM against its own mathematics: the mean of DDIM's step, closed-form controls, and the limits in which it is something else."""

import math

import jaxtyping
import pytest
import torch

from refimpl.data import NormalMixture, digits
from refimpl.diffusion import (
    DDPM,
    EDM,
    VP,
    FlowPath,
    Measurement,
    blind_blur,
    control_weights,
    ddim,
    exact_model,
    guided_start,
    ndtm,
    ndtm_step,
)
from refimpl.diffusion.control import mean_coefficients
from refimpl.diffusion.gaussian_guidance import guided_moments

SGD = {"optimiser": "sgd", "control_weight": "zero"}


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(dim=3, components=3, process=None, std=0.3, m=2, problems=2, seed=0):
    """An exact model of a mixture in float64, a linear measurement, states, and times."""
    g, process = source(seed), VP() if process is None else process
    root = torch.randn(components, dim, dim, generator=g, dtype=torch.float64)
    means = torch.randn(components, dim, generator=g, dtype=torch.float64)
    prior = NormalMixture(means, 0.3 * root @ root.mT + 0.05 * torch.eye(dim).double())
    matrix = torch.randn(m, dim, generator=g, dtype=torch.float64)
    y = prior.sample(problems, g) @ matrix.T + std * torch.randn(problems, m, generator=g, dtype=torch.float64)
    x = process.initial((4, problems, dim), y, g)
    return exact_model(prior, process), Measurement(matrix, y, std), x, process.times(6)


@pytest.mark.parametrize(("process", "t", "s"), [(DDPM(), 500.0, 480.0), (VP(), 0.6, 0.5), (EDM(), 2.0, 0.7)], ids=str)
def test_a_control_shifts_the_mean_as_derived(process, t, s):
    model, measurement, x, _ = problem(process=process)
    u = torch.randn(4, 2, 3, generator=source(1), dtype=torch.float64)
    for eta in (0.0, 0.6, 1.0):
        k, c, c1 = mean_coefficients(process, t, s, eta)
        quiet = [ndtm_step(model, measurement, v, t, s, 0 * x, lr=0, eta=eta) for v in (x, x + u)]
        change = model.noise(x + u, t) - model.noise(x, t)
        torch.testing.assert_close(quiet[1] - quiet[0], k * u + c * change, rtol=1e-11, atol=1e-11)
        noisy = ndtm_step(model, measurement, x, t, s, x, lr=0, eta=eta)
        torch.testing.assert_close(noisy - quiet[0], c1 * x, rtol=1e-11, atol=1e-11)
        assert c < 0
        of_control, of_noise = control_weights("theory", process, t, s, eta=eta, gamma=1.0)
        exact = (k * u + c * change).square().sum(-1) / 2
        bound = of_control * u.square().sum(-1) + of_noise * change.square().sum(-1)
        assert (exact > 0).all() and (exact <= bound).all()


def test_the_weights_of_the_code():
    process, t, s, eta, gamma = DDPM(), 500, 480, 0.7, 3.0
    alpha_t, alpha_s = (process.log_alpha_bar[i].exp().item() for i in (t, s))
    c1 = eta * math.sqrt((1 - alpha_t / alpha_s) * (1 - alpha_s) / (1 - alpha_t))
    c2 = math.sqrt(1 - alpha_s - c1**2)
    change = c2 - math.sqrt(alpha_s / alpha_t * (1 - alpha_t))
    beta = 1 - alpha_t / alpha_s
    expected = {
        "zero": (0, 0),
        "ddim": (gamma**2 * alpha_t / alpha_s, change**2),
        "theory": (alpha_s / alpha_t, change**2),
        "ddpm": (gamma**2 / (1 - beta), beta**2 / ((1 - beta) * (1 - alpha_t))),
        0.25: (0.25, 0),
    }
    for scheme, weights in expected.items():
        found = control_weights(scheme, process, t, s, eta=eta, gamma=gamma)
        assert [float(v) for v in found] == pytest.approx(weights, rel=1e-9), scheme
    coded, theory = (control_weights(v, process, t, s, eta=eta, gamma=gamma)[0] for v in ("ddim", "theory"))
    assert (coded / theory).item() == pytest.approx((alpha_t / alpha_s) ** 2 * gamma**2)


@pytest.mark.parametrize("still", [{"lr": 0.0}, {"gamma": 0.0}])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_without_control_it_is_ddim_to_the_last_bit(still, eta):
    model, measurement, x, times = problem()
    ours = ndtm(model, measurement, x, times, eta=eta, generator=source(), **still)
    assert torch.equal(ours, ddim(model, x, times, eta=eta, generator=source()))


def test_one_inner_step_feels_no_penalty():
    model, measurement, x, times = problem()
    first, *others = (
        ndtm(
            model, measurement, x, times, inner_steps=1, control_weight=scheme, score_weight=weight, generator=source()
        )
        for scheme, weight in (("zero", None), ("ddim", None), ("theory", None), (50.0, 7.0))
    )
    assert all(torch.equal(first, other) for other in others)
    two = [
        ndtm(model, measurement, x, times, inner_steps=2, control_weight=scheme, generator=source())
        for scheme in ("zero", "ddim")
    ]
    assert not torch.allclose(*two, atol=1e-4)


def test_strength_and_step_are_one_setting_without_penalty_only():
    model, measurement, x, times = problem()

    def run(**settings):
        return ndtm(model, measurement, x, times, terminal_weight=0.5, generator=source(), **{**SGD, **settings})

    assert torch.equal(run(gamma=1.0, lr=0.2), run(gamma=2.0, lr=0.05))
    penalised = {"control_weight": "ddim"}
    assert not torch.allclose(run(gamma=1.0, lr=0.2, **penalised), run(gamma=2.0, lr=0.05, **penalised), atol=1e-3)


def test_one_step_of_gradient_descent_is_dps_before_the_move():
    model, measurement, x, _ = problem()
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(measurement.energy(model.data(at, 0.5)).sum(), at)
    settings = {"inner_steps": 1, "lr": 0.02, "gamma": 1.5, "terminal_weight": 3.0, "eta": 0.0}
    ours = ndtm_step(model, measurement, x, 0.5, 0.4, x, **SGD, **settings)
    moved = x - 0.02 * 1.5**2 * 3.0 * gradient
    torch.testing.assert_close(ours, ndtm_step(model, measurement, moved, 0.5, 0.4, x, lr=0, eta=0.0))


@pytest.mark.parametrize("scheme", ["ddim", "theory", "kl"])
def test_the_converged_control_of_a_gaussian_is_its_closed_form(scheme):
    model, measurement, x, _ = problem(components=1)
    process, t, s, eta, w = VP(), 0.5, 0.45, 0.6, 0.8
    (a, b), eye = process.coefficients(torch.tensor(t, dtype=torch.float64)), torch.eye(3).double()
    jacobian = torch.func.jacrev(lambda v: model.data(v, t))(x[0, 0])  # the same everywhere
    of_input, of_noise = measurement.matrix @ jacobian, (eye - a * jacobian) / b
    k, c, c1 = mean_coefficients(process, t, s, eta)
    if scheme == "kl":
        moved = k * eye + c * of_noise
        cost = moved.T @ moved / (2 * c1**2)
    else:
        weights = control_weights(scheme, process, t, s, eta=eta, gamma=1.0)
        cost = weights[0] * eye + weights[1] * of_noise.T @ of_noise
    hessian = w * of_input.T @ of_input + cost
    shift = torch.linalg.solve(hessian, (w * measurement.residual(model.data(x, t)) @ of_input).mT).mT
    settings = {"optimiser": "sgd", "control_weight": scheme, "terminal_weight": w, "eta": eta}
    lr = 0.9 / torch.linalg.eigvalsh(hessian).max().item()
    ours = ndtm_step(model, measurement, x, t, s, x, inner_steps=300, lr=lr, **settings)
    expected = ndtm_step(model, measurement, x + shift, t, s, x, lr=0, eta=eta)
    assert shift.abs().max() > 0.05
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scheme", ["kl", "ddim"])
def test_the_recursion_solves_the_inner_problem(scheme):
    """The affine map of one converged step, at two points, is what the recursion of moments uses."""
    process, t, s, eta = VP(), 0.4, 0.3, 1.0
    prior = NormalMixture(torch.tensor([[0.3]]).double(), torch.full((1, 1, 1), 0.49).double())
    measurement = Measurement(torch.eye(1).double(), torch.tensor([1.0]).double(), 0.4)
    settings = {"optimiser": "sgd", "control_weight": scheme, "terminal_weight": lambda t: 0.5 / 0.4**2, "eta": eta}
    at = [
        ndtm_step(
            exact_model(prior, process),
            measurement,
            torch.tensor([v], dtype=torch.float64),
            t,
            s,
            torch.zeros(1).double(),
            inner_steps=400,
            lr=0.05,
            **settings,
        ).item()
        for v in (0.0, 1.0)
    ]
    _, b = process.coefficients(torch.tensor(t, dtype=torch.float64))
    c1 = mean_coefficients(process, t, s, eta)[2]
    mean, std = guided_moments(
        "ndtm", process, [t, s], y=1.0, std=0.4, prior_mean=0.3, prior_std=0.7, control_weight=scheme
    )
    assert mean == pytest.approx(at[0], abs=1e-6)
    assert std == pytest.approx(math.sqrt((at[1] - at[0]) ** 2 * b**2 + c1**2), abs=1e-6)


def test_the_scale_of_the_cost_moves_gradient_descent_but_hardly_adam():
    model, measurement, x, times = problem()
    moved = {
        optimiser: (
            ndtm(model, measurement, x, times, terminal_weight=1.0, **settings)
            - ndtm(model, measurement, x, times, terminal_weight=100.0, **settings)
        )
        .abs()
        .median()
        .item()
        for optimiser in ("adam", "sgd")
        for settings in [{"optimiser": optimiser, "control_weight": "zero", "eta": 0.0, "lr": 1e-3}]
    }
    assert moved["adam"] < 1e-5 < 1e-2 < moved["sgd"]


def test_gradient_descent_turns_with_the_problem_and_adam_does_not():
    model, measurement, x, times = problem()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=source(5), dtype=torch.float64)).Q
    prior_means = torch.randn(3, 3, generator=source(6), dtype=torch.float64)
    covariances = torch.diag_embed(torch.rand(3, 3, generator=source(7), dtype=torch.float64) + 0.1)
    noise = torch.randn(6, *x.shape, generator=source(8), dtype=torch.float64)

    def run(q, optimiser):
        model = exact_model(NormalMixture(prior_means @ q.T, q @ covariances @ q.T), VP())
        turned = Measurement(measurement.matrix @ q.T, measurement.y, measurement.std)
        state = x @ q.T
        for t, s, z in zip(times[:-1], times[1:], noise, strict=True):
            state = ndtm_step(model, turned, state, t, s, z @ q.T, optimiser=optimiser, lr=0.05, terminal_weight=1.0)
        return state

    eye = torch.eye(3).double()
    torch.testing.assert_close(run(turn, "sgd"), run(eye, "sgd") @ turn.T, rtol=1e-10, atol=1e-10)
    assert (run(turn, "adam") - run(eye, "adam") @ turn.T).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({"control_weight": "ddim"}, 5),
        ({"control_weight": "zero"}, 4),
        ({"control_weight": 0.1}, 4),
        ({"score_weight": 2}, 5),
    ],
)
def test_calls_and_pullbacks(settings, calls):
    model, measurement, x, times = problem()
    ndtm(model, measurement, x, times, inner_steps=3, **settings)
    assert (model.calls, model.pullbacks) == (6 * calls, 6 * 3)
    model.reset_counts()
    ndtm(model, measurement, x, times, inner_steps=3, control_weight="kl")
    assert (model.calls, model.pullbacks) == (6 * 5 - 3, 5 * 3)  # in the last step there is no noise, and no control


def test_the_step_shrinks_over_the_times():
    model, measurement, x, times = problem()
    for decay, share in (("linear", lambda i: 1 - i / 6), ("constant", lambda i: 1)):
        state = x
        for i in range(6):
            state = ndtm_step(model, measurement, state, times[i], times[i + 1], x, lr=0.1 * share(i), eta=0.0)
        assert torch.equal(ndtm(model, measurement, x, times, lr=0.1, eta=0.0, decay=decay), state)


def test_bounds_hold_for_the_estimate_and_not_for_the_noise():
    model, measurement, x, _ = problem()
    settings = {"clamp": 0.2, "eta": 0.0, "lr": 0}
    assert torch.equal(ndtm_step(model, measurement, x, 0.2, 0.0, x, **settings), model.data(x, 0.2).clamp(-0.2, 0.2))
    a, b = VP().coefficients(torch.tensor(0.4, dtype=torch.float64))
    expected = a * model.data(x, 0.5).clamp(-0.2, 0.2) + b * model.noise(x, 0.5)
    torch.testing.assert_close(ndtm_step(model, measurement, x, 0.5, 0.4, x, **settings), expected)


def test_an_unknown_kernel_is_found_with_the_image():
    images = 2 * digits()[0] - 1
    prior = NormalMixture.fit(images, 12, regularisation=0.02)
    model = exact_model(prior, DDPM())
    truth = images[:3]
    sharp = torch.zeros(3, 3)
    sharp[1, 0] = sharp[1, 1] = sharp[1, 2] = 4.0  # a blur along the rows
    true = blind_blur((8, 8), 3, generator=source())
    with torch.no_grad():
        true.logits.copy_(sharp)
    measurement = true.measure(truth, 0.02, generator=source(1))
    guess = blind_blur((8, 8), 3, generator=source(2))
    blind = Measurement(guess, measurement.y, measurement.std, measurement.start)
    times = torch.cat([torch.linspace(600, 20, 30).round(), torch.zeros(1)])
    x = guided_start(blind, DDPM(), times[0], (4, 3, 64), source(3))
    first = guess.kernel().detach().clone()
    known = {"lr": 0.1, "clamp": 1.0, "inner_steps": 5, "generator": source(4)}
    ndtm(model, blind, x, times, parameters=list(guess.parameters()), parameter_lr=0.1, **known)
    before, after = ((kernel - true.kernel()).abs().sum().item() for kernel in (first, guess.kernel()))
    assert after < 0.4 * before
    kept = guess.kernel().detach().clone()
    ndtm(model, blind, x, times, **known)
    assert torch.equal(guess.kernel(), kept) and all(p.grad is not None for p in guess.parameters())


BAD = {
    "inner_steps: got 0, expected a whole number": {"inner_steps": 0},
    "lr: got .-1., expected one or more finite numbers >= 0": {"lr": -1},
    "gamma: got .nan., expected": {"gamma": math.nan},
    "optimiser: got 'lbfgs', expected 'adam' or 'sgd'": {"optimiser": "lbfgs"},
    "decay: got 'cosine', expected 'linear' or 'constant'": {"decay": "cosine"},
    "scheme: got 'ones', expected a number, 'zero'": {"control_weight": "ones"},
    "control_weight: got .-0.5., expected": {"control_weight": -0.5},
    "eta: got 0, where control_weight='kl'": {"control_weight": "kl", "eta": 0},
    "terminal_weight: got .nan.": {"terminal_weight": math.nan},
    "terminal_weight: got .-5.": {"terminal_weight": -5},
    "terminal_weight: got .-2.0.": {"terminal_weight": lambda t: torch.tensor(-2.0)},
    "terminal_weight: got .'much'.": {"terminal_weight": "much"},
    "score_weight: got .-1.": {"score_weight": -1},
    "score_weight: got .nan.": {"score_weight": math.nan},
    "eta: got 1.5, expected a number in": {"eta": 1.5},
    "clamp: got 0, expected a finite number > 0": {"clamp": 0},
    "parameters: got one that is not a tensor with requires_grad": {"parameters": [torch.ones(1)]},
    "parameter_lr: got 0, expected": {"parameter_lr": 0},
}


@pytest.fixture
def untyped(monkeypatch):
    """The annotations' run-time check would raise first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("message", BAD)
def test_errors_name_the_argument(untyped, message):
    model, measurement, x, times = problem()
    with pytest.raises(ValueError, match=message):
        ndtm(model, measurement, x, times, **BAD[message])


def test_weights_of_a_step_backwards(untyped):
    with pytest.raises(ValueError, match="t, s: got 480, 500, expected s nearer to the data"):
        control_weights("theory", DDPM(), 480, 500, eta=0.0, gamma=1.0)
    with pytest.raises(ValueError, match="t, s: got 0.5, 0.2"):
        mean_coefficients(FlowPath(), 0.5, 0.2, 0.0)
    with pytest.raises(ValueError, match=r"gamma: got \[nan\]"):
        control_weights("ddim", DDPM(), 500, 480, eta=0.0, gamma=math.nan)
