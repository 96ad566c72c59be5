"""Curves with trained bends between two minima: the cheap alternative to a band.

Garipov et al. 2018, *Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs* (arXiv 1802.10026): the ends of a
curve stay fixed, and its bend is trained so that the loss at a random position on it is low.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor
from refimpl.training import History, fit

__all__ = ["BezierCurve", "PolygonalChain", "fit_curve"]


class _Curve(nn.Module):
    """Fixed ends and trained bends, which start on the straight line between the ends."""

    def __init__(self, start: Tensor, end: Tensor, num_bends: int):
        super().__init__()
        check_tensor("start", start, "(dim,)")
        check_tensor("end", end, f"({len(start)},)", like=start)
        check_sizes(num_bends=num_bends)
        at = torch.linspace(0, 1, num_bends + 2, dtype=start.dtype, device=start.device)[1:-1, None]
        self.register_buffer("start", start.detach().clone())
        self.register_buffer("end", end.detach().clone())
        self.bends = nn.Parameter(torch.lerp(self.start, self.end, at))

    def points(self) -> Tensor:
        """Start, bends, end."""
        return torch.cat([self.start[None], self.bends, self.end[None]])


class BezierCurve(_Curve):
    r"""Quadratic curve :math:`(1-t)^2\theta_A+2t(1-t)\theta+t^2\theta_B` with one trained bend :math:`\theta`.

    Calling it maps positions t in [0, 1], shape (points,), to the curve's points, shape (points, dim).

    Args:
        start, end: the minima, as parameter vectors.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    Source: Garipov et al. 2018, Eq. (3).

    >>> BezierCurve(torch.zeros(2), torch.ones(2))(torch.tensor([0.25]))
    tensor([[0.2500, 0.2500]], grad_fn=<AddBackward0>)
    """

    def __init__(self, start: Float[Tensor, " dim"], end: Float[Tensor, " dim"]):
        super().__init__(start, end, num_bends=1)

    def forward(self, t: Float[Tensor, " points"]) -> Float[Tensor, "points dim"]:
        check_tensor("t", t, "(points,)")
        t = t[:, None]
        return (1 - t) ** 2 * self.start + 2 * t * (1 - t) * self.bends[0] + t**2 * self.end


class PolygonalChain(_Curve):
    """Straight segments through ``num_bends`` trained bends, each segment covering an equal share of t.

    Calling it maps positions t in [0, 1], shape (points,), to the curve's points, shape (points, dim).

    Args:
        start, end: the minima, as parameter vectors.
        num_bends: trained corners, >= 1.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    Source: Garipov et al. 2018, Eq. (2), with one bend.

    >>> PolygonalChain(torch.zeros(2), torch.ones(2))(torch.tensor([0.75]))
    tensor([[0.7500, 0.7500]], grad_fn=<AddBackward0>)
    """

    def __init__(self, start: Float[Tensor, " dim"], end: Float[Tensor, " dim"], num_bends: int = 1):
        super().__init__(start, end, num_bends=num_bends)

    def forward(self, t: Float[Tensor, " points"]) -> Float[Tensor, "points dim"]:
        check_tensor("t", t, "(points,)")
        corners = self.points()
        place = t * (len(corners) - 1)
        segment = place.detach().long().clamp(0, len(corners) - 2)
        fraction = (place - segment)[:, None]
        return (1 - fraction) * corners[segment] + fraction * corners[segment + 1]


def fit_curve(
    curve: BezierCurve | PolygonalChain,
    loss: Callable,
    *,
    num_steps: int,
    lr: float,
    momentum: float | int = 0.9,
    weight_decay: float | int = 0.0,
    points_per_step: int = 1,
    generator: torch.Generator | None = None,
    **fit_options: Any,
) -> History:
    """Train a curve's bends, in place, so that the expected loss at a uniformly random position is low.

    Args:
        curve: the curve.
        loss: maps (points, *batch) to one value a point, for instance a `NetworkLoss`.
        num_steps: number of updates.
        lr, momentum: of stochastic gradient descent.
        weight_decay: factor w of the penalty ``w/2 ||theta(t)||^2`` on the *point of the curve*, as in training.
        points_per_step: random positions a step; each costs one gradient.
        generator: source of the positions and of the batches.
        **fit_options: data, batch_size, schedule, checkpoint, progress of `refimpl.training.fit`.

    Raises:
        TypeError, ValueError: if an argument does not fit, or ``checkpoint`` belongs to another curve.
        TrainingDiverged: if a loss turns non-finite.

    Source: Garipov et al. 2018, Sec. 3.
    """
    if not isinstance(curve, _Curve):
        raise TypeError(f"curve: got {type(curve).__name__}, expected a BezierCurve or a PolygonalChain")
    check_sizes(points_per_step=points_per_step)
    check_positive("lr", lr)
    check_numbers("momentum", [momentum], low=0, high=1)
    check_numbers("weight_decay", [weight_decay], low=0)
    # What a checkpoint must agree with, besides what `fit` compares: it compares the entries of a parameter group, too.
    sample = curve.points().detach().flatten()[:: max(1, curve.points().numel() // 16)].tolist()
    problem = f"{weight_decay=}, {points_per_step=}, start={sample}"
    at = curve.start.device if generator is None else generator.device

    def objective(*batch: Tensor) -> Tensor:
        t = torch.rand(points_per_step, generator=generator, device=at).to(curve.start)
        points = curve(t)
        return loss(points, *batch).mean() + 0.5 * weight_decay * points.square().sum(1).mean()

    return fit(
        curve,
        objective,
        num_steps=num_steps,
        generator=generator,
        optimizer=lambda p: torch.optim.SGD([{"params": p, "problem": problem}], lr=lr, momentum=momentum),
        **dict(dict(progress=False), **fit_options),
    )
