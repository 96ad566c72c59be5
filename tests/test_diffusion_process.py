"""Noise processes, conversions between predictions, the model that carries them, measurements."""

import math
import re

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from refimpl.diffusion import (
    DDPM,
    EDM,
    VE,
    VP,
    DiffusionModel,
    FlowPath,
    Measurement,
    NoiseProcess,
    TrigonometricPath,
    convert,
)
from refimpl.diffusion.model import KINDS, target_of
from refimpl.diffusion.process import as_time

F64 = torch.float64
CONTINUOUS = [VP(), VP(0.5, 25.0), VE(), EDM(), FlowPath(), TrigonometricPath()]
PROCESSES = [*CONTINUOUS, DDPM()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
each_continuous = pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: type(p).__name__)


def number(value):
    return torch.tensor(value, dtype=F64)


def inside(process, n=9):
    """Times off both ends."""
    return torch.linspace(process.noise_time, process.data_time, n + 2, dtype=F64)[1:-1]


@each_continuous
def test_rates_are_derivatives_of_coefficients(process):
    t = inside(process).requires_grad_()
    for value, rate in zip(process.coefficients(t), process.rates(t), strict=True):
        slope = (
            torch.autograd.grad(value.sum(), t, retain_graph=True, allow_unused=True)[0]
            if value.requires_grad
            else None
        )
        torch.testing.assert_close(
            torch.zeros_like(t) if slope is None else slope, rate.detach(), rtol=1e-9, atol=1e-12
        )


@each_continuous
def test_the_sde_has_the_variance_of_the_process(process):
    """Along the clock that runs to noise, d(b^2)/dt = 2 (da/dt) / a b^2 + g^2."""
    t = inside(process)
    (a, b), (da, db) = process.coefficients(t), process.rates(t)
    to_noise = math.copysign(1, process.noise_time - process.data_time)
    torch.testing.assert_close(to_noise * (2 * b * db - 2 * da / a * b.square()), process.diffusion_squared(t))


def test_known_diffusions():
    t = number([0.1, 0.5, 0.9])
    torch.testing.assert_close(VP().diffusion_squared(t), 0.1 + 19.9 * t)
    torch.testing.assert_close(EDM().diffusion_squared(t), 2 * t)
    torch.testing.assert_close(VE().diffusion_squared(t), 2 * math.log(5000) * (0.01 * 5000**t) ** 2)


@each
def test_ends(process):
    a, b = process.coefficients(number(process.data_time))
    assert a == 1 and b == (process.sigma_min if isinstance(process, VE) else 0)
    a, b = process.coefficients(number(process.noise_time))
    assert b / a > 49  # almost only noise


def test_variance_is_preserved_where_it_should_be():
    for process in (VP(), TrigonometricPath(), DDPM()):
        a, b = process.coefficients(inside(process).round() if isinstance(process, DDPM) else inside(process))
        torch.testing.assert_close(a**2 + b**2, torch.ones_like(a))
    t = number([0.0, 0.3, 1.0])
    torch.testing.assert_close(VP().coefficients(t)[0] ** 2, torch.exp(-0.1 * t - 9.95 * t**2))


def test_ddpm_is_the_product_and_vp_its_limit():
    chain, products, alpha_bar = DDPM(), [1.0], 1.0
    for i in range(1000):
        alpha_bar *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        products.append(alpha_bar)
    a, _ = chain.coefficients(torch.arange(1001, dtype=F64))
    torch.testing.assert_close(a**2, number(products))
    assert alpha_bar == pytest.approx(4.0e-5, rel=0.02)
    for t, largest in ((0.2, 0.01), (0.5, 0.01), (0.8, 0.034), (1.0, 0.069)):
        gap = 2 * (VP().sigma(number(t)).log() - chain.sigma(number(1000 * t)).log())
        assert gap.abs() < largest


@each
def test_times_run_from_noise_to_data(process):
    times = process.times(18)
    assert len(times) == 19 and times.dtype == F64
    assert times[0].item() == pytest.approx(process.noise_time) and times[-1] == process.data_time
    assert (process.sigma(times).diff() < 0).all()


def test_grids_of_edm_and_ddpm():
    ends = [80 ** (1 / 7), 0.002 ** (1 / 7)]
    grid = [(ends[0] + i / 17 * (ends[1] - ends[0])) ** 7 for i in range(18)]
    torch.testing.assert_close(EDM().times(18), number([*grid, 0.0]))
    assert (DDPM().times(7) == DDPM().times(7).round()).all()
    assert DDPM().times(1000).diff().eq(-1).all()


@each
def test_initial_states(process):
    like = torch.zeros((), dtype=F64)
    x = process.initial((20_000, 2), like, torch.Generator().manual_seed(0))
    _, b = process.coefficients(number(process.noise_time))
    assert x.dtype == F64 and x.std() / b == pytest.approx(1, abs=0.02)
    assert torch.equal(x, process.initial((20_000, 2), like, torch.Generator().manual_seed(0)))
    assert process.initial((3,)).dtype == torch.float32


@each_continuous
def test_time_of_inverts_sigma(process):
    sigma = number([[0.02], [0.5], [1.0], [30.0]])
    torch.testing.assert_close(process.sigma(process.time_of(sigma)), sigma)


def test_time_of_stops_at_the_noise():
    assert VP().time_of(1e9) == 1.0 and FlowPath().time_of(1.0) == 0.5
    with pytest.raises(TypeError, match="^process: "):
        DDPM().time_of(1.0)


@each
def test_add_noise_takes_one_time_or_one_for_each_sample(process):
    x0, noise = torch.randn(2, 4, 3, dtype=F64).unbind()
    t = process.times(5)[1:, None]
    if len(t) > 4:
        t = t[:4]
    together = process.add_noise(x0, noise, t)
    for i in range(4):
        torch.testing.assert_close(together[i], process.add_noise(x0[i], noise[i], t[i].item()))


pick = st.sampled_from
precise = pick([(torch.float32, 2e-5), (F64, 1e-12)])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pick(CONTINUOUS), pick(KINDS), pick(KINDS), st.floats(-1.5, 1.5), precise, st.integers(0, 10_000))
def test_a_prediction_of_known_data_and_noise_converts_to_every_other(process, source, target, log_sigma, how, seed):
    dtype, tolerance = how
    x0, noise = torch.randn(2, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype).unbind()
    t = process.time_of(math.exp(log_sigma)).to(dtype)
    x, known = process.add_noise(x0, noise, t), {kind: target_of(kind, x0, noise, t, process) for kind in KINDS}
    found = convert(known[source], x, t, process, source=source, target=target)
    assert found.dtype == dtype
    torch.testing.assert_close(found, known[target], rtol=tolerance, atol=tolerance * known[target].abs().max().item())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pick(CONTINUOUS), pick(KINDS), pick(KINDS), st.floats(-0.7, 0.7), pick([0, 1]), st.integers(0, 10_000))
def test_there_and_back_is_the_identity(process, source, target, log_sigma, double, seed):
    dtype, tolerance = ((torch.float32, 1e-6), (F64, 1e-12))[double]
    x, prediction = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed)).to(dtype).unbind()
    t = process.time_of(math.exp(log_sigma)).to(dtype)
    there = convert(prediction, x, t, process, source=source, target=target)
    back = convert(there, x, t, process, source=target, target=source)
    # A prediction that is small beside what it was converted to loses digits that no algorithm can give back.
    a, b = process.coefficients(t)
    scales = [1.0] + ([*map(abs, process.rates(t))] if "velocity" in (source, target) else [])
    scale = prediction.abs().max() + x.abs().max() * max(max(scales), 1 / a, 1 / b) / min(
        min(scales[1:], default=1.0), 1
    )
    assert (back - prediction).abs().max() <= tolerance * scale


@each_continuous
def test_the_velocity_is_the_derivative_of_the_state(process):
    x0, noise = torch.randn(2, 3, dtype=F64).unbind()
    t = inside(process)[3]
    h = 1e-6 * abs(process.noise_time - process.data_time)
    change = (process.add_noise(x0, noise, t + h) - process.add_noise(x0, noise, t - h)) / (2 * h)
    torch.testing.assert_close(change, target_of("velocity", x0, noise, t, process), rtol=1e-6, atol=1e-8)


def test_v_of_the_literature():
    """x_0 = a x - b v and n = b x + a v where the variance is preserved."""
    x0, noise = torch.randn(2, 3, dtype=F64).unbind()
    a, b = VP().coefficients(number(0.4))
    x, v = VP().add_noise(x0, noise, 0.4), target_of("v", x0, noise, 0.4, VP())
    torch.testing.assert_close(a * x - b * v, x0)
    torch.testing.assert_close(b * x + a * v, noise)


def test_v_is_finite_at_both_ends():
    x, v = torch.randn(2, 3, dtype=F64).unbind()
    path = TrigonometricPath()
    for t in (0.0, 1.0):
        assert convert(v, x, t, path, source="v", target="data").isfinite().all()
        assert convert(v, x, t, path, source="v", target="noise").isfinite().all()


class Halve(torch.nn.Module):
    """Predicts half of the state, plus the context; remembers what it was asked."""

    def forward(self, x, t, context=0.0):
        self.seen = t
        return x / 2 + context


def test_the_model_counts_calls_and_gives_every_kind():
    model = DiffusionModel(Halve(), VP(), "v")
    x = torch.randn(4, 2, dtype=F64)
    for kind in KINDS:
        wanted = convert(x / 2, x, 0.3, VP(), source="v", target=kind)
        torch.testing.assert_close(getattr(model, kind)(x, 0.3) if kind != "v" else model(x, 0.3), wanted)
    assert model.calls == 5 and model.network.seen.shape == (4, 1)
    data, noise = model.data_and_noise(x, 0.3)
    assert model.calls == 6
    torch.testing.assert_close(VP().add_noise(data, noise, 0.3), x)
    model.reset_counts()
    assert model.calls == model.pullbacks == 0


def test_the_model_counts_pullbacks():
    model = DiffusionModel(Halve(), VP())
    x = torch.randn(4, 2, requires_grad=True)
    y = model.data(x, 0.3)
    assert model.pullbacks == 0
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.autograd.grad(y.square().sum(), x)
    assert model.pullbacks == 2
    torch.func.vjp(lambda x: model.data(x, 0.3), x.detach())
    assert model.calls == 2 and model.pullbacks == 2


def test_the_model_passes_the_context_and_times_of_each_sample():
    model, x = DiffusionModel(Halve(), FlowPath(), "velocity"), torch.ones(2, 3)
    context, t = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.2], [0.8]])
    assert torch.equal(model(x, t, None, context), 0.5 + context.expand(2, 3))
    assert torch.equal(model.velocity(x, t, context), model(x, t, None, context))
    assert torch.equal(model.network.seen, t)


def test_what_a_network_says_of_itself_is_what_it_predicts():
    network = Halve()
    assert DiffusionModel(network, VP()).predicts == "noise"
    network.predicts = "data"
    assert DiffusionModel(network, VP()).predicts == "data" == DiffusionModel(network, VP(), "data").predicts
    with pytest.raises(ValueError, match="^predicts: got 'noise', expected one of \\('data',\\)"):
        DiffusionModel(network, VP(), "noise")


@pytest.mark.parametrize("linear", [True, False])
def test_measurements(linear):
    matrix = number([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
    y, x = torch.randn(4, 2, dtype=F64), torch.randn(7, 4, 3, dtype=F64)
    seen = Measurement(matrix if linear else lambda x: x @ matrix.T, y, 0.3)
    torch.testing.assert_close(seen.apply(x), x @ matrix.T)
    torch.testing.assert_close(seen.energy(x), (y - x @ matrix.T).square().sum(-1))
    assert seen.residual(x).shape == (7, 4, 2)
    wanted = multivariate_normal((matrix @ x[3, 1]).numpy(), 0.09 * torch.eye(2, dtype=F64).numpy()).logpdf(
        y[1].numpy()
    )
    assert seen.log_likelihood(x)[3, 1].item() == pytest.approx(wanted, abs=1e-10)
    if linear:
        torch.testing.assert_close(seen.start, torch.linalg.lstsq(matrix, y.T, driver="gelsd").solution.T)
        torch.testing.assert_close(seen.apply(seen.start), y)
    else:
        assert seen.matrix is None and seen.start is None


x, model = torch.zeros(4, 2), DiffusionModel(Halve(), VP())
ROWS = [
    ("beta_min", lambda: VP(0.0)),
    ("beta_max", lambda: VP(beta_max=math.inf)),
    ("num_levels", lambda: DDPM(0)),
    ("beta_first", lambda: DDPM(beta_last=1.0)),
    ("sigma_min", lambda: VE(-1.0)),
    ("sigma_max", lambda: EDM(sigma_max="80")),
    ("rho", lambda: EDM(rho=0)),
    ("num_steps", lambda: VP().times(0)),
    ("num_steps", lambda: DDPM().times(1001)),
    ("num_steps", lambda: EDM().times(2.5)),
    ("process", lambda: DDPM().rates(number(3.0))),
    ("t", lambda: DDPM().coefficients(number(2.5))),
    ("t", lambda: DDPM().coefficients(number(1001.0))),
    ("t", lambda: VP().add_noise(x, x, torch.zeros(4))),
    ("t", lambda: as_time(torch.zeros(3, 4, 1), x)),
    ("source", lambda: convert(x, x, 0.5, VP(), source="epsilon", target="data")),
    ("target", lambda: convert(x, x, 0.5, VP(), source="data", target="x0")),
    ("prediction", lambda: convert(x[:1], x, 0.5, VP(), source="data", target="noise")),
    ("kind", lambda: target_of("epsilon", x, x, 0.5, VP())),
    ("network", lambda: DiffusionModel(None, VP())),
    ("process", lambda: DiffusionModel(Halve(), "VP")),
    ("predicts", lambda: DiffusionModel(Halve(), VP(), "epsilon")),
    ("network", lambda: DiffusionModel(lambda x, t: x[:, :1], VP())(x, 0.5)),
    ("network", lambda: DiffusionModel(lambda x, t: None, VP())(x, 0.5)),
    ("t", lambda: model(x, torch.zeros(2, 4))),
    ("target", lambda: model(x, 0.5, "epsilon")),
    ("t", lambda: model(x, math.nan)),
    ("noise", lambda: VP().add_noise(x, x[0], 0.5)),
    ("prediction", lambda: convert([[0.0, 0.0]], x, 0.5, VP(), source="data", target="noise")),
    ("x", lambda: convert(x, [[0.0, 0.0]], 0.5, VP(), source="data", target="noise")),
    ("sigma_min", lambda: EDM(sigma_min=5, sigma_max=1)),
    ("sigma_min", lambda: VE(2.0, 2.0)),
    ("start", lambda: Measurement(torch.eye(2), torch.zeros(2), 1.0, start=torch.zeros(3))),
    ("start", lambda: Measurement(torch.eye(2), torch.zeros(2), 1.0, start=torch.zeros(4, 2))),
    ("start", lambda: Measurement(torch.tanh, torch.zeros(2), 1.0, start=torch.full((2,), math.nan))),
    ("x", lambda: Measurement(torch.eye(2), torch.zeros(2), 1.0).energy(torch.zeros(4, 3))),
    ("operator", lambda: Measurement(lambda x: x[..., :1], torch.zeros(2), 1.0).energy(x)),
    ("std", lambda: Measurement(torch.eye(2), torch.zeros(2), 0.0)),
    ("y", lambda: Measurement(torch.eye(2), torch.tensor([math.nan, 0.0]), 1.0)),
    ("y", lambda: Measurement(torch.eye(2), [0.0, 0.0], 1.0)),
    ("operator", lambda: Measurement(torch.eye(3), torch.zeros(2), 1.0)),
    ("operator", lambda: Measurement(torch.eye(2, dtype=F64), torch.zeros(2), 1.0)),
    ("operator", lambda: Measurement("identity", torch.zeros(2), 1.0)),
]


@pytest.mark.parametrize(("name", "call"), ROWS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ROWS)])
def test_malformed_calls_name_the_argument(monkeypatch, name, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert re.match(rf"{name}\b.*: ", str(caught.value)), str(caught.value)


def test_a_process_of_ones_own_needs_coefficients_and_rates():
    with pytest.raises(NotImplementedError):
        NoiseProcess().coefficients(number(0.5))
    with pytest.raises(NotImplementedError):
        NoiseProcess().rates(number(0.5))
    assert repr(VE()) == "VE(sigma_min=0.01, sigma_max=50)"
