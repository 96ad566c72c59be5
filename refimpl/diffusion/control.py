"""Guidance as optimal control: NDTM shifts the network's input so that the step ends at a better estimate of the data.

Guided trajectories q and those of the model p bound the evidence (Pandey et al. 2025):

    -log p(y) <= E_q[-log p(y | x_0)] + sum over steps of E_q KL(q(x_s | x_t, u_t) || p(x_s | x_t)).

Made greedy, with x_hat in place of x_0, each step chooses its own control u. In DDIM's step the control x_t + gamma u
moves the mean by k gamma u + c d, where d is the change of the predicted noise; the KL is |.|^2 / (2 c1^2) of it, and
NDTM penalises the two terms on their own.
"""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes
from refimpl.diffusion._guided import bounded, check_not_negative, guided_walk
from refimpl.diffusion.measurement import Measurement
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.process import NoiseProcess
from refimpl.diffusion.steps import coefficients, ddim_mean, ddim_step

__all__ = ["CONTROL_WEIGHTS", "control_weights", "mean_coefficients", "ndtm", "ndtm_step"]

CONTROL_WEIGHTS = ("zero", "ddim", "theory", "ddpm", "kl")
Number = float | int


def mean_coefficients(
    process: NoiseProcess, t: Tensor | Number, s: Tensor | Number, eta: Number
) -> tuple[Tensor, Tensor, Tensor]:
    """k, c and c1 of DDIM's step written as x_s = k x_t + c noise(x_t) + c1 z, in float64.

    k = a_s / a_t, c1 the step's standard deviation, c = sqrt(b_s^2 - c1^2) - k b_t, which is negative.

    >>> from refimpl.diffusion.process import EDM
    >>> mean_coefficients(EDM(), 3.0, 1.0, 0.0)[:2]  # Euler's method in sigma
    (tensor(1., dtype=torch.float64), tensor(-2., dtype=torch.float64))
    """
    one = torch.ones((), dtype=torch.float64)
    if not (torch.as_tensor((t - s) * (process.noise_time - process.data_time)) >= 0).all():
        raise ValueError(f"t, s: got {t}, {s}, expected s nearer to the data")
    c2, c1 = ddim_mean(0 * one, one, process, t, s, eta)
    (a_t, b_t), (a_s, _) = (coefficients(process, time, one) for time in (t, s))
    k = a_s / a_t.clamp_min(1e-9)  # a flow's clock starts where a = 0
    return k, c2 - k * b_t, c1


def control_weights(
    scheme: str | Number, process: NoiseProcess, t: Tensor | Number, s: Tensor | Number, *, eta: Number, gamma: Number
) -> tuple[Tensor | Number, Tensor | Number]:
    """Weights of |gamma u|^2 and of |change of the noise|^2 in NDTM's cost.

    Args:
        scheme: "theory", k^2 and c^2 from the bound on the KL with its factor 1 / c1^2 dropped; "ddim" and "ddpm", as
            in the authors' code, where the first has gamma^2 / k^2 for DDIM and gamma^2 k^2 for the ancestral step,
            whose c is that of eta = 1; "zero"; or a number, which weighs the first term only.
        process, t, s, eta: the step.
        gamma: strength of the control; the authors' code has gamma^2 twice, so that u is penalised by gamma^4.

    Source: Pandey et al. 2025 (arXiv 2502.03686), Section 3, and the code published with it.
    """
    check_not_negative(gamma=gamma)
    if scheme == "zero":
        return 0.0, 0.0
    if not isinstance(scheme, str):
        check_not_negative(control_weight=scheme)
        return scheme, 0.0
    k, c, _ = mean_coefficients(process, t, s, 1.0 if scheme == "ddpm" else eta)
    if scheme not in CONTROL_WEIGHTS or scheme == "kl":
        raise ValueError(f"scheme: got {scheme!r}, expected a number, 'zero', 'ddim', 'theory' or 'ddpm'")
    return {"ddim": gamma**2 / k**2, "theory": k**2, "ddpm": gamma**2 * k**2}[scheme], c**2


def ndtm_step(
    model: DiffusionModel,
    measurement: Measurement,
    x: Float[Tensor, "*batch dim"],
    t: Tensor | Number,
    s: Tensor | Number,
    noise: Float[Tensor, "*batch dim"],
    *,
    inner_steps: int = 4,
    lr: Number = 0.2,
    gamma: Number = 1.0,
    terminal_weight: Number | Callable = 5.0,
    control_weight: str | Number = "ddim",
    score_weight: Number | None = None,
    eta: Number = 0.2,
    optimiser: str = "adam",
    clamp: Number | None = None,
    parameters: Sequence[Tensor] = (),
    parameter_optimiser: torch.optim.Optimizer | None = None,
) -> Float[Tensor, "*batch dim"]:
    """One step of NDTM: a few steps of gradient descent on u from 0, then DDIM from x_t + gamma u.

    The cost of a chain is w |y - h(x_hat)|^2 + weights of `control_weights` times |gamma u|^2 and |noise(x_t + gamma u)
    - noise(x_t)|^2, or with "kl" instead the exact KL (where it is infinite, in steps without noise, u stays 0). The
    settings are those of `ndtm`, with lr that of this step.
    """
    check_sizes(inner_steps=inner_steps)
    check_not_negative(lr=lr, gamma=gamma)
    if optimiser not in ("adam", "sgd"):
        raise ValueError(f"optimiser: got {optimiser!r}, expected 'adam' or 'sgd'")
    exact = control_weight == "kl"
    k, c, c1 = mean_coefficients(model.process, t, s, eta)
    of_control, of_noise = 0.0, 0.0
    if not exact:
        of_control, of_noise = control_weights(control_weight, model.process, t, s, eta=eta, gamma=gamma)
    of_noise = of_noise if score_weight is None else score_weight
    weight = terminal_weight(t) if callable(terminal_weight) else terminal_weight
    for name, value in (("terminal_weight", weight), ("score_weight", of_noise)):
        check_not_negative(**{name: value.item() if isinstance(value, Tensor) else value})
    x = x.detach()
    with torch.no_grad():
        before = model.noise(x, t) if exact or of_noise else None
    u = torch.zeros_like(x).requires_grad_()
    descent = (torch.optim.Adam if optimiser == "adam" else torch.optim.SGD)([u], lr=lr)
    # Nothing is controlled where a = 0, as no gradient passes the denoiser, or where the KL is infinite.
    free = coefficients(model.process, t, x)[0] > 0 and (not exact or c1 > 0)
    for _ in range(inner_steps if free else 0):
        with torch.enable_grad():
            x0, n = model.data_and_noise(x + gamma * u, t)
            cost = weight * measurement.energy(bounded(x0, clamp))
            if exact:
                cost = cost + (k * gamma * u + c * (n - before)).square().sum(-1) / (2 * c1**2)
            elif of_control or of_noise:
                cost = cost + of_control * (gamma * u).square().sum(-1)
                cost = cost + of_noise * (n - before).square().sum(-1) if of_noise else cost
            u.grad, *others = torch.autograd.grad(cost.sum(), [u, *parameters])
        descent.step()
        for parameter, gradient in zip(parameters, others, strict=True):
            parameter.grad = gradient
        if parameter_optimiser is not None:
            parameter_optimiser.step()
    with torch.no_grad():
        x0, n = model.data_and_noise(x + gamma * u, t)
        return ddim_step(bounded(x0, clamp), n, model.process, t, s, eta, noise)


def ndtm(
    model: DiffusionModel,
    measurement: Measurement,
    x: Float[Tensor, "*batch dim"],
    times: Tensor | Sequence[Number],
    *,
    lr: Number = 0.2,
    decay: str = "linear",
    eta: Number = 0.2,
    parameters: Sequence[Tensor] = (),
    parameter_lr: Number = 0.01,
    generator: torch.Generator | None = None,
    return_path: bool = False,
    **settings,
) -> Float[Tensor, "*path dim"]:
    """Variational control: guidance by a shift of the network's input, found by a few inner steps at every noise level.

    n steps cost n (inner_steps + 2) calls, or n (inner_steps + 1) where the change of the noise has no weight, and
    n inner_steps pullbacks.
    Adam's first step is lr times a sign, whatever the weights: lr is in units of x, and must fit the scale of the data.
    With inner_steps = 1 no penalty acts, as their gradients at u = 0 are 0.

    Args:
        model, measurement, x, times: as for every guided sampler.
        inner_steps: M >= 1, steps of the optimiser for each u.
        lr: of u, at the first of the times.
        decay: of lr over the times; "linear", to lr / n, or "constant".
        gamma: strength of the control.
        terminal_weight: w, per squared unit of y; 1 / (2 std^2) is that of Bayes' rule. Or a function of t.
        control_weight: "zero", "ddim" (the authors'), "theory", "ddpm", "kl", or a number; see `control_weights`.
        score_weight: weight of the change of the noise instead of the scheme's.
        eta: stochasticity of DDIM's step.
        optimiser: "adam" or "sgd", anew for every u.
        clamp: bound of |x_hat|, in the cost and in the step; the noise is kept.
        parameters: tensors that the operator depends on and that are not known, such as the kernel of a blur: they are
            changed in place, by one Adam for the whole run, at every inner step, to fit all chains together.
        parameter_lr: of that Adam.
        generator: of the fresh noise.
        return_path: return all states.

    Source: Pandey et al. 2025 (arXiv 2502.03686), Section 3; defaults are tuned to small images.
    """
    if decay not in ("linear", "constant"):
        raise ValueError(f"decay: got {decay!r}, expected 'linear' or 'constant'")
    for p in parameters:
        if not isinstance(p, Tensor) or not p.requires_grad:
            raise ValueError("parameters: got one that is not a tensor with requires_grad, so that it cannot be fitted")
    if settings.get("control_weight") == "kl" and eta == 0:
        raise ValueError(
            "eta: got 0, where control_weight='kl' is infinite and nothing is controlled; expected above 0"
        )
    check_not_negative(lr=lr)
    check_positive("parameter_lr", parameter_lr)
    parameters, done, num_steps = list(parameters), count(), len(times) - 1
    outer = torch.optim.Adam(parameters, lr=parameter_lr) if parameters else None

    def step(x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        now = lr * (1 - next(done) / num_steps) if decay == "linear" else lr
        more = {"lr": now, "eta": eta, "parameters": parameters, "parameter_optimiser": outer, **settings}
        return ndtm_step(model, measurement, x, t, s, noise, **more)

    return guided_walk(step, model, measurement, x, times, generator, return_path)


ndtm.step = ndtm_step
