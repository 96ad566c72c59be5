"""Nudged elastic band: relax a chain of points between two minima onto a minimum energy path.

The band is a polygonal chain of pivots p_0 ... p_{n-1} with fixed ends. The loss pulls each inner pivot perpendicular to
the path only, and springs act along the path only; so neither do the springs lift the band out of a curved valley, nor
does the loss let the pivots slide down into the minima.

Every function here treats the loss as `loss(points, *batch) -> (points,)`: a plain function on the plane, or a
`NetworkLoss`, in which case all pivots are evaluated in one vectorised pass.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor
from refimpl.training import History, fit

__all__ = [
    "band_gradient",
    "between",
    "nudged_elastic_band",
    "path_length",
    "redistribute",
    "tangents",
    "value_and_gradient",
]


def _check_band(pivots: Tensor, least: int = 2) -> None:
    check_tensor("pivots", pivots, "(n, dim)")
    if len(pivots) < least:
        raise ValueError(f"pivots: got {len(pivots)}, expected at least {least}")


def _segment_weights(weights: Tensor | None, pivots: Tensor) -> Tensor:
    """Target lengths of the segments as fractions of the whole."""
    segments = len(pivots) - 1
    if weights is None:
        return torch.full((segments,), 1 / segments, dtype=pivots.dtype, device=pivots.device)
    check_tensor("weights", weights, "(segments,)")
    if len(weights) != segments or not (weights > 0).all():
        raise ValueError(f"weights: got {weights.tolist()}, expected {segments} positive numbers")
    return (weights / weights.sum()).to(pivots)


def path_length(pivots: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    """Length of the polygonal chain, in units of the coordinates.

    >>> path_length(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]))
    tensor(6.)
    """
    _check_band(pivots)
    return pivots.diff(dim=0).norm(dim=1).sum()


def redistribute(
    pivots: Float[Tensor, "n dim"], weights: Float[Tensor, " segments"] | None = None
) -> Float[Tensor, "n dim"]:
    """Place the pivots anew on their own chain, at arc lengths in the proportion of ``weights``; the ends stay.

    This is the limit of infinitely stiff springs along the path (a string method).

    Args:
        pivots: the chain.
        weights: wanted lengths of the segments, up to a factor; None: all equal.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    >>> redistribute(torch.tensor([[0.0], [0.9], [1.0]]), torch.tensor([1.0, 3.0]))[:, 0]
    tensor([0.0000, 0.2500, 1.0000])
    """
    _check_band(pivots)
    wanted = _segment_weights(weights, pivots).cumsum(0)[:-1]
    lengths = pivots.diff(dim=0).norm(dim=1)
    arc = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    target = wanted * arc[-1]
    segment = torch.searchsorted(arc, target, right=True).sub(1).clamp(0, len(lengths) - 1)
    # A segment of length zero (pivots that coincide) has no inside: stay at its start.
    fraction = (target - arc[segment]) / lengths[segment].clamp_min(torch.finfo(arc.dtype).tiny)
    inner = torch.lerp(pivots[segment], pivots[segment + 1], fraction.clamp(0, 1)[:, None])
    return torch.cat([pivots[:1], inner, pivots[-1:]])


def tangents(pivots: Float[Tensor, "n dim"], values: Float[Tensor, " n"]) -> Float[Tensor, "n-2 dim"]:
    """Unit tangents at the inner pivots: towards the higher neighbour, blended at a local extremum of the loss.

    Args:
        pivots: the chain.
        values: loss at each pivot.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    Source: Henkelman & Jonsson 2000 (J. Chem. Phys. 113, 9978), Eqs. (8)-(11).

    >>> tangents(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, 1.0, 2.0]))
    tensor([[0., 1.]])
    """
    _check_band(pivots, least=3)
    check_tensor("values", values, f"({len(pivots)},)")
    step = pivots.diff(dim=0)
    backward, forward = step[:-1], step[1:]
    rise = values.diff()
    down, up = -rise[:-1], rise[1:]  # how much the previous, and the next, neighbour lies above the pivot
    most, least = torch.maximum(down.abs(), up.abs()), torch.minimum(down.abs(), up.abs())
    # Weights relative to the larger one: as products they would underflow. Equal losses: take the mean direction.
    less = torch.where(most > 0, least / most.clamp_min(torch.finfo(most.dtype).tiny), 1.0)
    with_forward = torch.where(up > down, 1.0, less)
    with_backward = torch.where(up > down, less, torch.ones_like(less))
    rising, falling = (up > 0) & (down < 0), (up < 0) & (down > 0)
    with_forward = torch.where(rising, 1.0, torch.where(falling, 0.0, with_forward))
    with_backward = torch.where(rising, 0.0, torch.where(falling, 1.0, with_backward))
    direction = with_forward[:, None] * forward + with_backward[:, None] * backward
    return torch.nn.functional.normalize(direction, dim=1, eps=torch.finfo(direction.dtype).tiny)


def band_gradient(
    pivots: Float[Tensor, "n dim"],
    values: Float[Tensor, " n"],
    gradients: Float[Tensor, "n dim"],
    *,
    spring: float | int = math.inf,
    weights: Float[Tensor, " segments"] | None = None,
) -> Float[Tensor, "n-2 dim"]:
    """What an inner pivot moves against: the loss gradient across the path, minus the spring force along it.

    Args:
        pivots: the chain.
        values: loss at each pivot.
        gradients: gradient of the loss at each pivot.
        spring: spring constant k, in loss per squared length; infinity: no spring term, use `redistribute` instead.
        weights: wanted lengths of the segments, up to a factor; None: all equal.

    Returns: minus the force on the inner pivots, shape (n - 2, dim).

    Raises:
        TypeError, ValueError: if an argument does not fit.

    Source: Jonsson et al. 1998 and Henkelman & Jonsson 2000; Draxler et al. 2018, Sec. 3.1.
    """
    tangent = tangents(pivots, values)
    check_tensor("gradients", gradients, f"({len(pivots)}, {pivots.shape[1]})")
    inner = gradients[1:-1]
    across = inner - (inner * tangent).sum(1, keepdim=True) * tangent
    if spring == math.inf:
        return across
    check_positive("spring", spring, "loss per squared length")
    lengths = pivots.diff(dim=0).norm(dim=1)
    stretch = lengths - _segment_weights(weights, pivots) * lengths.sum()
    return across - spring * stretch.diff()[:, None] * tangent


def value_and_gradient(
    loss: Callable, points: Float[Tensor, "n dim"], *batch: Tensor
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n dim"]]:
    """Loss and its gradient at every point, ``loss.chunk_size`` points at a time if the loss has such a limit.

    Raises:
        ValueError: if ``loss`` does not give one value a point.
    """
    values, gradients = [], []
    for chunk in points.detach().split(getattr(loss, "chunk_size", None) or len(points)):
        chunk = chunk.requires_grad_()
        value = loss(chunk, *batch)
        if not isinstance(value, Tensor) or value.shape != (len(chunk),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss: got {got} for {len(chunk)} points, expected one value a point")
        # Point i has no part in the loss of point j, so the gradient of the sum holds every point's own gradient.
        gradients.append(torch.autograd.grad(value.sum(), chunk)[0])
        values.append(value.detach())
    return torch.cat(values), torch.cat(gradients)


def nudged_elastic_band(
    pivots: Float[Tensor, "n dim"],
    loss: Callable,
    *,
    num_steps: int,
    lr: float,
    momentum: float | int = 0.0,
    weight_decay: float | int = 0.0,
    spring: float | int = math.inf,
    weights: Float[Tensor, " segments"] | None = None,
    data: Tensor | tuple | list | None = None,
    batch_size: int | None = None,
    transform: Callable | None = None,
    generator: torch.Generator | None = None,
    checkpoint: Path | str | None = None,
    progress: bool = False,
) -> tuple[Float[Tensor, "n dim"], History]:
    """Relax a band by gradient descent with momentum on the forces of `band_gradient`.

    All pivots see the same batch, so that the tangents compare like with like. With ``spring = inf`` the pivots are
    redistributed before every step.

    Args:
        pivots: initial chain, at least three points; the ends stay fixed.
        loss: maps (points, *batch) to one value a point.
        num_steps: number of updates.
        lr: learning rate.
        momentum: of the descent.
        weight_decay: added to the gradient as ``weight_decay * pivot`` before the projection, so that it too acts
            across the path only; give it the value that the minima were trained with.
        spring, weights: see `band_gradient`.
        data, batch_size, generator: the data set and its batches, as in `refimpl.training.fit`.
        transform: maps the tensors of a batch to those that the loss sees, once a step, such as augmentation.
        checkpoint: file to resume from, as in `fit`.
        progress: show a progress bar.

    Returns: the relaxed chain, and the history, whose `loss` is the highest pivot's loss on the step's batch.

    Raises:
        TypeError, ValueError: if an argument does not fit, or ``checkpoint`` belongs to another band.
        TrainingDiverged: if a loss or a gradient turns non-finite.

    >>> line = torch.tensor([[-1.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
    >>> band, _ = nudged_elastic_band(line, lambda p: p[:, 1] ** 2, num_steps=50, lr=0.1)
    >>> band[1].abs().max() < 1e-3
    tensor(True)
    """
    _check_band(pivots, least=3)
    check_sizes(num_steps=num_steps)
    check_positive("lr", lr)
    check_numbers("momentum", [momentum], low=0, high=1)
    check_numbers("weight_decay", [weight_decay], low=0)
    if spring != math.inf:
        check_positive("spring", spring, "loss per squared length")
    wanted = _segment_weights(weights, pivots)
    band = pivots.detach().clone().requires_grad_()
    # What a checkpoint must agree with, besides what `fit` compares: it compares the entries of a parameter group, too.
    sample = band.detach().flatten()[:: max(1, band.numel() // 16)].tolist()
    problem = f"{spring=}, {weight_decay=}, weights={wanted.tolist()}, start={sample}"

    def objective(*batch: Tensor) -> Tensor:
        if not band.isfinite().all():
            return band.sum()
        if spring == math.inf:
            with torch.no_grad():
                band.copy_(redistribute(band, wanted))
        points = band.detach()
        batch = batch if transform is None else transform(*batch)
        values, gradients = value_and_gradient(loss, points, *batch)
        gradients = gradients + weight_decay * points
        if not (values.isfinite().all() and gradients.isfinite().all()):
            return math.nan * band.sum()  # not an error of an argument: `fit` says what diverged
        force = torch.zeros_like(points)
        force[1:-1] = band_gradient(points, values, gradients, spring=spring, weights=wanted)
        # A scalar with the highest loss as its value and the band's own gradient as its gradient.
        return values.max() + ((band - points) * force).sum()

    history = fit(
        [band],
        objective,
        num_steps=num_steps,
        data=data,
        batch_size=batch_size,
        generator=generator,
        optimizer=lambda p: torch.optim.SGD([{"params": p, "problem": problem}], lr=lr, momentum=momentum),
        checkpoint=checkpoint,
        progress=progress,
    )
    return band.detach(), history


def between(
    pivots: Float[Tensor, "n dim"], num_between: int
) -> tuple[Float[Tensor, " points"], Float[Tensor, "points dim"]]:
    """The chain with ``num_between`` equally spaced points inside every segment: where its barriers are looked for.

    Returns: positions in [0, 1] (fraction of the length), and the points; pivot i is point ``i * (num_between + 1)``.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    >>> between(torch.tensor([[0.0], [1.0], [3.0]]), 1)[1][:, 0]
    tensor([0.0000, 0.5000, 1.0000, 2.0000, 3.0000])
    """
    _check_band(pivots)
    check_sizes(num_between=num_between)
    fraction = torch.arange(num_between + 1, dtype=pivots.dtype, device=pivots.device) / (num_between + 1)
    points = torch.lerp(pivots[:-1, None], pivots[1:, None], fraction[:, None]).flatten(0, 1)
    points = torch.cat([points, pivots[-1:]])
    steps = points.diff(dim=0).norm(dim=1).cumsum(0)
    position = torch.cat([steps.new_zeros(1), steps]) / steps[-1].clamp_min(torch.finfo(steps.dtype).tiny)
    return position, points
