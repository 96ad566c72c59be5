"""Guidance with a normal p(y | x_t): N(y; h(x_hat), H Cov H^T + std^2 I), for three covariances of x_0 given x_t.

0 (DPS with the weight of Bayes' rule), one number times I (PiGDM), and the right one (TMPD). H is the operator's
matrix; a non-linear operator is linearised at x_hat, which the papers of the last two do not do. All three are
gradients of log N(y; ...) in x_t with the covariance held fixed, added to the score. They are samplers as in
`refimpl.diffusion.guidance`, written as their steps.
"""

import torch
from torch import Tensor

from refimpl import autodiff
from refimpl._checks import check_positive
from refimpl.diffusion._guided import Number, State, Time, guided_sampler, levels, pulled, towards
from refimpl.diffusion.measurement import Measurement
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.steps import ddim_step

__all__ = ["dps_bayes", "pigdm", "tmpd"]


@guided_sampler
def dps_bayes(
    model: DiffusionModel, measurement: Measurement, x: State, t: Time, s: Time, noise: State, *, eta: Number = 1.0
) -> State:
    """DPS with the weight of Bayes' rule: p(y | x_t) is replaced by N(y; h(x_hat), std^2 I).

    It takes x_0 to be known from x_t: Cov[x_0 | x_t] is left out. Explicit steps with this weight diverge if std is
    small for the steps taken. One call and one pullback.

    Source: Chung et al. 2023 (arXiv 2209.14687), Eq. (11) with Theorem 1, before the weights were tuned.
    """
    x0, n, _, g = pulled(model, x, t, lambda x0: -measurement.energy(x0) / (2 * measurement.std**2))
    _, b, worth = levels(model.process, t, x)
    return ddim_step(*towards(x0, n, g, b, worth), model.process, t, s, eta, noise)


def _linearised(measurement: Measurement, x0: Tensor) -> Tensor:
    """The operator's matrix, (m, dim); of a non-linear one its Jacobian at x0, (*batch, m, dim)."""
    return autodiff.jacobian(measurement.apply, x0) if measurement.matrix is None else measurement.matrix


def _whitened(covariance: Tensor, residual: Tensor) -> Tensor:
    return torch.linalg.solve(covariance, residual.unsqueeze(-1)).squeeze(-1)


@guided_sampler
def pigdm(
    model: DiffusionModel,
    measurement: Measurement,
    x: State,
    t: Time,
    s: Time,
    noise: State,
    *,
    prior_std: Number = 1.0,
    eta: Number = 1.0,
) -> State:
    """Pseudo-inverse guidance: p(y | x_t) is replaced by N(y; h(x_hat), H H^T r^2 + std^2 I), that is Cov = r^2 I.

    r^2 = prior_std^2 b^2 / (a^2 prior_std^2 + b^2) is the covariance for data ~ N(m, prior_std^2 I), where the method
    is exact. H is the operator's matrix; a non-linear operator is linearised at x_hat, which the paper does not do. One
    call and one pullback.

    Args:
        prior_std: standard deviation of the data, in its units.

    Source: Song et al. 2023 (PiGDM, ICLR), Eq. (7)-(8) and Appendix A.3.
    """
    check_positive("prior_std", prior_std)
    a, b, worth = levels(model.process, t, x)
    spread = (prior_std * b).square() / ((a * prior_std).square() + b.square())
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        x0, n = model.data_and_noise(at, t)
        matrix = _linearised(measurement, x0.detach())
        seen = spread.to(x).unsqueeze(-1) * (matrix @ matrix.mT) + measurement.std**2 * torch.eye(matrix.shape[-2]).to(
            x
        )
        weights = _whitened(seen, measurement.residual(x0).detach())
        (g,) = torch.autograd.grad((measurement.apply(x0) * weights).sum(), at)
    return ddim_step(*towards(x0.detach(), n.detach(), g, b, worth), model.process, t, s, eta, noise)


@guided_sampler
def tmpd(
    model: DiffusionModel, measurement: Measurement, x: State, t: Time, s: Time, noise: State, *, eta: Number = 1.0
) -> State:
    """Tweedie moment projection: both moments of p(x_0 | x_t) are right, p(y | x_t) is taken to be normal.

    Cov[x_0 | x_t] = b^2 / a dx_hat/dx_t. Exact for Gaussian data; a non-linear operator is linearised at x_hat. The
    whole covariance H Cov H^T is used (the paper's image experiments use the sums of its rows): one call and m
    pullbacks.

    Source: Boys et al. 2023 (arXiv 2310.06721), Eq. (11)-(13).
    """
    _, b, worth = levels(model.process, t, x)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        x0, n = model.data_and_noise(at, t)
        seen = measurement.apply(x0)
        rows = [torch.autograd.grad(seen[..., i].sum(), at, retain_graph=True)[0] for i in range(seen.shape[-1])]
    pulled = torch.stack(rows, -2)  # (*batch, m, dim): how the prediction of y changes with x_t
    across = worth.to(x).unsqueeze(-1) * pulled @ _linearised(measurement, x0.detach()).mT
    # A learned denoiser's Jacobian is not quite symmetric; a covariance is.
    covariance = (across + across.mT) / 2 + measurement.std**2 * torch.eye(across.shape[-1]).to(x)
    g = (pulled.mT @ _whitened(covariance, measurement.y - seen.detach()).unsqueeze(-1)).squeeze(-1)
    return ddim_step(*towards(x0.detach(), n.detach(), g, b, worth), model.process, t, s, eta, noise)
