"""Exact likelihoods: along the probability-flow ODE the density changes by the divergence of the velocity."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor
from refimpl.autodiff import probe_vectors
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.samplers import SOLVERS
from refimpl.diffusion.steps import check_times, recording

__all__ = ["log_prob"]


def log_prob(
    model: DiffusionModel,
    x: Float[Tensor, "*batch dim"],
    *,
    end_time: float | int | None = None,
    times: Tensor | Sequence[float | int] | None = None,
    num_steps: int | None = None,
    method: str | None = None,
    tolerance: float | int = 1e-5,
    divergence: str = "exact",
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    """log-density of the state at `end_time`, in nats, by the ODE from there to noise ~ N(0, b^2) at the process's start.

    log p_end(x) = log N(x_noise; 0, b^2) + integral of div u(x_t, t) dt from the end time to the noise. What is computed is
    the density of a x_0 + b n, the data blurred by the noise that is left; where b = 0 only the velocity that a network
    gives itself is finite, and so `end_time` may be the data's end only for a network that predicts velocities.

    Args:
        model: network and process.
        x: states at `end_time`.
        end_time: where the density is wanted; needed unless there are `times`.
        times: steps from noise to `end_time`, such as `EDM().times(128)[:-1]`.
        num_steps: in place of `times`, steps through those of `process.times(num_steps)` that come before `end_time`.
        method: one of `refimpl.diffusion.samplers.SOLVERS`. If None, "heun2" on the given steps, or where there are
            none "dopri5", which chooses its own.
        tolerance: relative and absolute, of the adaptive methods.
        divergence: "exact" (dim backward passes at each evaluation), or by one "rademacher" or "gaussian" probe v for
            each x, v^T (du/dx) v: unbiased, and of little noise where the Jacobian is nearly diagonal and v has signs.
        context: third argument of the network.
        generator: of the probes.

    Source: Song et al. 2021 (arXiv 2011.13456), Eq. (39) and Appendix D.2; Hutchinson 1990 for the probes.

    >>> from refimpl.diffusion.process import EDM
    >>> normal = DiffusionModel(lambda x, t: x / (1 + t**2), EDM(), predicts="data")  # exact for data ~ N(0, I)
    >>> log_prob(normal, torch.zeros(1, dtype=torch.float64), end_time=1e-3).round(decimals=3)  # -log(2 pi) / 2
    tensor(-0.9190, dtype=torch.float64)
    """
    from torchdiffeq import odeint

    steps = _steps(model, end_time, times, num_steps)
    check_tensor("x", x, "(*batch, dim)", some=True)
    check_positive("tolerance", tolerance)
    method = method or ("dopri5" if len(steps) == 2 else "heun2")
    if method not in SOLVERS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(SOLVERS)}")
    dim = x.shape[-1]
    if divergence == "exact":  # scaled so that the mean over the axes is the trace
        axes = math.sqrt(dim) * torch.eye(dim, dtype=x.dtype, device=x.device)
        probes = axes.view(dim, *[1] * (x.ndim - 1), dim).expand(dim, *x.shape)
    elif divergence in ("rademacher", "gaussian"):
        probes = probe_vectors(x, kind=divergence, generator=generator)
    else:
        raise ValueError(f"divergence: got {divergence!r}, expected 'exact', 'rademacher' or 'gaussian'")

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        velocity, pull = torch.func.vjp(lambda x: model.velocity(x, t, context), state[0])
        return velocity, (torch.vmap(lambda v: pull(v)[0])(probes) * probes).sum(-1).mean(0)

    with recording(x, context):
        start = (x, x.new_zeros(x.shape[:-1]))
        path, change = odeint(field, start, steps.to(x.device), rtol=tolerance, atol=tolerance, method=method)
        _, b = model.process.coefficients(steps[-1])
        return Normal(0.0, b.item()).log_prob(path[-1]).sum(-1) + change[-1]


def _steps(model: DiffusionModel, end_time, times, num_steps) -> Tensor:
    """Times from the end to the noise, in float64."""
    if (end_time is None) == (times is None) or (times is not None and num_steps is not None):
        raise ValueError("end_time: expected this, with or without num_steps, or times, and not both")
    check_sizes(num_steps=1 if num_steps is None else num_steps)
    if times is None:
        if not isinstance(model, DiffusionModel):
            raise TypeError(f"model: got {type(model).__name__}, expected a DiffusionModel")
        check_numbers("end_time", [end_time])
        process, end = model.process, torch.tensor([end_time], dtype=torch.float64)
        times = torch.tensor([process.noise_time]).to(end) if num_steps is None else process.times(num_steps)
        ahead = (end - times) * (process.data_time - process.noise_time) > 0
        if not ahead.any():
            raise ValueError(
                f"end_time: got {end_time!r}, expected a time nearer to the data than {process.noise_time:g}"
            )
        times = torch.cat([times[ahead], end])
    times = check_times(model, times)
    _, b = model.process.coefficients(times[-1])
    if b == 0 and model.predicts != "velocity":
        raise ValueError(f"end_time: got {times[-1]:g}, where b = 0; expected a time at which noise is left")
    return times.flip(0)
