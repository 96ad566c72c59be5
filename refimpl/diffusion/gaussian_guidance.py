"""Guidance on one Gaussian number, without sampling error: every step is affine, so mean and variance follow."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl._checks import check_numbers, check_positive
from refimpl.diffusion._guided import check_not_negative
from refimpl.diffusion.control import control_weights, mean_coefficients
from refimpl.diffusion.process import NoiseProcess
from refimpl.diffusion.steps import check_clock, coefficients

__all__ = ["GAUSSIAN_METHODS", "gaussian_posterior", "guided_moments", "normal_kl"]

GAUSSIAN_METHODS = ("unguided", "exact", "dps_bayes", "pigdm", "tmpd", "mpgd", "ndtm")
Number = float | int


def guided_moments(
    method: str,
    process: NoiseProcess,
    times: Tensor | Sequence[Number],
    *,
    y: Number,
    std: Number,
    prior_mean: Number = 0.0,
    prior_std: Number = 1.0,
    eta: Number = 1.0,
    scale: Number = 0.3,
    terminal_weight: Number | str = "bayes",
    control_weight: str | Number = "kl",
    gamma: Number = 1.0,
) -> tuple[float, float]:
    """Mean and standard deviation of what a guided sampler gives for x_0 ~ N(prior_mean, prior_std^2), y = x_0 + std n.

    A step is x_s = A x_t + B + c1 z: the mean goes to A mean + B, the variance to A^2 variance + c1^2. Exact, for the
    true denoiser, from the noise's own law at times[0].

    Args:
        method: of `GAUSSIAN_METHODS`; NDTM with its inner problem solved, not descended.
        process, times, eta: as for the samplers.
        y, std: the measurement and its noise.
        prior_mean, prior_std: of the data. PiGDM takes its default, a standard deviation of 1.
        scale: of MPGD.
        terminal_weight: of NDTM; "bayes", 1 / (2 std^2), or "exact", 1 / (2 std^2 + 2 Var[x_0 | x_t]), or a number.
        control_weight, gamma: of NDTM.

    >>> from refimpl.diffusion.process import DDPM
    >>> mean, std = guided_moments("exact", DDPM(), DDPM().times(1000), y=1.0, std=0.3)
    >>> [round(v, 2) for v in (mean, std, *gaussian_posterior(1.0, 0.3))]
    [0.92, 0.28, 0.92, 0.29]
    """
    if method not in GAUSSIAN_METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(GAUSSIAN_METHODS)}")
    check_numbers("y, prior_mean", [y, prior_mean])
    for name, value in (("std", std), ("prior_std", prior_std)):
        check_positive(name, value)
    check_not_negative(scale=scale, gamma=gamma)
    if terminal_weight not in ("bayes", "exact"):
        if isinstance(terminal_weight, str):
            raise ValueError(f"terminal_weight: got {terminal_weight!r}, expected 'bayes', 'exact' or a number >= 0")
        check_not_negative(terminal_weight=terminal_weight)
    times = check_clock(process, times)
    a, b = (c.tolist() for c in coefficients(process, times, times))
    mean, variance = 0.0, b[0] ** 2
    for i in range(len(times) - 1):
        k, c, c1 = (v.item() for v in mean_coefficients(process, times[i], times[i + 1], eta))
        total = (a[i] * prior_std) ** 2 + b[i] ** 2
        gain = a[i] * prior_std**2 / total  # x_hat = gain x + offset, and noise = (x - a prior_mean) b / total
        offset, slope, spread = prior_mean * (1 - a[i] * gain), b[i] / total, (prior_std * b[i]) ** 2 / total
        # Whatever the method, x_s = a_s x_hat + c2 noise: each of the two is a pair (factor of x, constant).
        data, noise, c2 = [gain, offset], [slope, -slope * a[i] * prior_mean], c + k * b[i]
        shift = [0.0, 0.0]
        off = [-gain, y - offset]  # y - x_hat
        if method in ("exact", "tmpd", "dps_bayes", "pigdm"):
            unsure = {"dps_bayes": 0.0, "pigdm": b[i] ** 2 / (a[i] ** 2 + b[i] ** 2)}.get(method, spread)
            g = [gain * v / (std**2 + unsure) for v in off]
            data = [v + b[i] ** 2 / max(a[i], 1e-9) * w for v, w in zip(data, g, strict=True)]
            noise = [v - b[i] * w for v, w in zip(noise, g, strict=True)]
        elif method == "mpgd":
            data = [v + 2 * scale * w for v, w in zip(data, off, strict=True)]
        elif method == "ndtm":
            weight = {"bayes": 0.5 / std**2, "exact": 0.5 / (std**2 + spread)}.get(terminal_weight, terminal_weight)
            if control_weight == "kl":
                cost = (k + c * slope) ** 2 / (2 * max(c1**2, 1e-12))
            else:
                of_control, of_noise = control_weights(
                    control_weight, process, times[i], times[i + 1], eta=eta, gamma=gamma
                )
                cost = float(of_control + of_noise * slope**2)
            shift = [weight * gain / (weight * gain**2 + cost) * v for v in off]
        a_s = a[i + 1]
        factor, constant = (a_s * v + c2 * w for v, w in zip(data, noise, strict=True))
        through = a_s * gain + c2 * slope  # what a shift of the network's input does
        factor, constant = factor + through * shift[0], constant + through * shift[1]
        mean, variance = factor * mean + constant, factor**2 * variance + c1**2
    return mean, variance**0.5


def gaussian_posterior(
    y: Number, std: Number, prior_mean: Number = 0.0, prior_std: Number = 1.0
) -> tuple[float, float]:
    """Mean and standard deviation of x_0 given y = x_0 + std n, for x_0 ~ N(prior_mean, prior_std^2)."""
    check_numbers("y, prior_mean", [y, prior_mean])
    check_positive("std", std)
    check_positive("prior_std", prior_std)
    gain = prior_std**2 / (prior_std**2 + std**2)
    return prior_mean + gain * (y - prior_mean), std * gain**0.5


def normal_kl(mean: Number, std: Number, true_mean: Number, true_std: Number) -> float:
    """KL(N(mean, std^2) || N(true_mean, true_std^2)) in nats.

    >>> normal_kl(1.0, 1.0, 0.0, 1.0)
    0.5
    """
    check_numbers("mean, true_mean", [mean, true_mean])
    check_positive("std", std)
    check_positive("true_std", true_std)
    ratio = torch.tensor(std / true_std, dtype=torch.float64)
    return (0.5 * (ratio**2 + ((mean - true_mean) / true_std) ** 2 - 1) - ratio.log()).item()
