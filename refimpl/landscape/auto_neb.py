"""AutoNEB: a nudged elastic band that inserts pivots where the path between two pivots is higher than they show.

Draxler et al. 2018, *Essentially No Barriers in Neural Network Energy Landscape* (arXiv 1803.00885), Algorithm 2; the
constants are those of the authors' configuration files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_sizes, check_tensor
from refimpl.landscape.band import between, nudged_elastic_band

__all__ = ["PAPER_SCHEDULE", "AutoNEBPath", "Cycle", "auto_neb", "insert_pivots"]

#: Steps and learning rate of the 14 cycles.
PAPER_SCHEDULE = ((1000, 0.1),) * 4 + ((2000, 0.1),) * 2 + ((1000, 0.01),) * 4 + ((1000, 0.001),) * 4


@dataclass(frozen=True)
class Cycle:
    """One cycle's band and what dense evaluation found along it.

    Attributes:
        pivots: the relaxed chain, shape (n, dim).
        weights: target lengths of its segments, summing to 1, shape (n - 1,).
        positions: of the dense points, fraction of the path's length, shape (m,).
        values: loss at the dense points, shape (m,); pivot i is entry ``i * (num_between + 1)``.
        num_gradients: gradients evaluated in this cycle (pivots, both ends included, times steps).
    """

    pivots: Tensor
    weights: Tensor
    positions: Tensor
    values: Tensor
    num_gradients: int

    @property
    def saddle(self) -> float:
        """Highest loss met anywhere on the path, ends included."""
        return self.values.max().item()


@dataclass(frozen=True)
class AutoNEBPath:
    """The cycles of one AutoNEB run; `best` is the one with the lowest saddle, not the last."""

    cycles: tuple[Cycle, ...]

    @property
    def best(self) -> Cycle:
        return min(self.cycles, key=lambda cycle: cycle.saddle)

    @property
    def saddle(self) -> float:
        """Lowest saddle loss over the cycles."""
        return self.best.saddle

    @property
    def pivots(self) -> Tensor:
        """The best cycle's pivots, shape (n, dim)."""
        return self.best.pivots


def insert_pivots(
    pivots: Float[Tensor, "n dim"],
    weights: Float[Tensor, " segments"],
    values: Float[Tensor, " points"],
    *,
    max_insertions: int = 2,
    threshold: float | int = 0.1,
) -> tuple[Float[Tensor, "more dim"], Float[Tensor, " more_segments"]]:
    """Insert a pivot at the worst point of those segments on which the loss rises most above a straight interpolation.

    The rise is measured in units of the range of the pivots' losses.

    Args:
        pivots: the chain.
        weights: target lengths of its segments.
        values: loss at the points of `between(pivots, num_between)`.
        max_insertions: at most so many new pivots, on the segments with the largest rises.
        threshold: smallest rise that deserves a pivot.

    Returns: the new chain and its weights; a split segment's weight is divided in the same proportion.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    >>> chain, even = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.5, 0.5])
    >>> insert_pivots(chain, even, torch.tensor([0.0, 0.5, 1.0, 3.0, 0.0]))[0][:, 0]
    tensor([0.0000, 1.0000, 1.5000, 2.0000])
    """
    check_tensor("pivots", pivots, "(n, dim)")
    segments = len(pivots) - 1
    check_tensor("weights", weights, f"({segments},)")
    check_tensor("values", values, "(points,)")
    check_sizes(max_insertions=max_insertions)
    check_numbers("threshold", [threshold], low=0)
    if segments < 1 or (len(values) - 1) % segments or len(values) - 1 < 2 * segments:
        raise ValueError(f"values: got {len(values)}, expected those of between(pivots, num_between)")
    points_a_segment = (len(values) - 1) // segments
    at_pivots = values[::points_a_segment]
    fraction = torch.arange(1, points_a_segment, device=values.device, dtype=values.dtype) / points_a_segment
    inside = values[:-1].view(segments, points_a_segment)[:, 1:]
    straight = torch.lerp(at_pivots[:-1, None], at_pivots[1:, None], fraction)
    rise, where = ((inside - straight) / (at_pivots.max() - at_pivots.min() + 1e-12)).max(dim=1)
    worst = rise.topk(min(max_insertions, segments)).indices
    chosen = {i for i in worst.tolist() if rise[i] > threshold}
    chain, lengths = [], []
    for i in range(segments):
        chain.append(pivots[i])
        if i in chosen:
            a = fraction[where[i]].to(pivots.dtype)
            chain.append(torch.lerp(pivots[i], pivots[i + 1], a))
            lengths += [weights[i] * a, weights[i] * (1 - a)]
        else:
            lengths.append(weights[i])
    lengths = torch.stack(lengths)
    return torch.stack([*chain, pivots[-1]]), lengths / lengths.sum()


def auto_neb(
    start: Float[Tensor, " dim"],
    end: Float[Tensor, " dim"],
    loss: Callable,
    *,
    schedule: Sequence[tuple[int, float]] = PAPER_SCHEDULE,
    evaluate: Callable | None = None,
    num_pivots: int = 3,
    num_between: int = 9,
    max_insertions: int = 2,
    threshold: float | int = 0.1,
    initial: Float[Tensor, "n dim"] | None = None,
    data: Tensor | tuple | list | None = None,
    checkpoint: Path | str | None = None,
    **band_options,
) -> AutoNEBPath:
    """Find a path between two minima whose highest loss is as low as possible.

    Every cycle inserts pivots where the last dense evaluation found the path too high between two of them, relaxes the
    band, and evaluates it densely again.

    Args:
        start, end: the minima, as parameter vectors.
        loss: maps (points, *batch) to one value a point, for instance a `NetworkLoss`.
        schedule: steps and learning rate of each cycle.
        evaluate: maps (points, dim) to one value a point, for the dense evaluation; None: `loss` on all of `data`.
        num_pivots: inner pivots of the first band, on the straight line.
        num_between: points of the dense evaluation inside each segment.
        max_insertions, threshold: see `insert_pivots`.
        initial: first band instead of the straight line, such as a bent one; its ends must be the minima.
        data: the data set, a tensor or a tuple of tensors.
        checkpoint: folder; each cycle keeps its checkpoint there, and a run that was interrupted resumes.
        **band_options: momentum, weight_decay, spring, batch_size, transform, generator, progress of `nudged_elastic_band`.

    Raises:
        TypeError, ValueError: if an argument does not fit, or ``checkpoint`` belongs to another run.
        TrainingDiverged: if a loss or a gradient turns non-finite.

    Source: Draxler et al. 2018, Algorithm 2 and Sec. 3.1.

    >>> from refimpl.landscape.surfaces import CURVY_VALLEY_MINIMA, curvy_valley
    >>> ends = torch.tensor(CURVY_VALLEY_MINIMA)
    >>> round(auto_neb(*ends, curvy_valley, schedule=[(200, 0.05)] * 4).saddle, 1)
    1.0
    """
    check_tensor("start", start, "(dim,)")
    check_tensor("end", end, f"({len(start)},)", like=start)
    check_sizes(num_pivots=num_pivots, num_between=num_between, max_insertions=max_insertions)
    check_numbers("threshold", [threshold], low=0)
    schedule = list(schedule)
    if not schedule or not all(isinstance(cycle, Sequence) and len(cycle) == 2 for cycle in schedule):
        raise ValueError(f"schedule: got {schedule!r}, expected one or more pairs (steps, learning rate)")
    if initial is None:
        at = torch.linspace(0, 1, num_pivots + 2, dtype=start.dtype, device=start.device)
        initial = torch.lerp(start, end, at[:, None])
    else:
        check_tensor("initial", initial, f"(n, {len(start)})", like=start)
        if not (torch.equal(initial[0], start) and torch.equal(initial[-1], end)):
            raise ValueError("initial: its first and last point differ from start and end")
    if evaluate is None:
        evaluate = _on_all_data(loss, data)
    chain = initial
    weights = torch.full((len(chain) - 1,), 1 / (len(chain) - 1), dtype=start.dtype, device=start.device)
    cycles: list[Cycle] = []
    for number, (num_steps, lr) in enumerate(schedule):
        if cycles:
            last = cycles[-1]
            options = dict(max_insertions=max_insertions, threshold=threshold)
            chain, weights = insert_pivots(last.pivots, last.weights, last.values, **options)
        file = None if checkpoint is None else Path(checkpoint) / f"cycle-{number:02d}.pt"
        options = dict(num_steps=num_steps, lr=lr, weights=weights, data=data, checkpoint=file)
        chain, _ = nudged_elastic_band(chain, loss, **options, **band_options)
        positions, points = between(chain, num_between)
        values = evaluate(points)
        check_tensor("evaluate", values, f"({len(points)},)")
        cycles.append(Cycle(chain, weights, positions, values.detach(), len(chain) * num_steps))
    return AutoNEBPath(tuple(cycles))


def _on_all_data(loss: Callable, data: Tensor | tuple | list | None) -> Callable:
    batch = () if data is None else (data,) if isinstance(data, Tensor) else tuple(data)

    def evaluate(points: Tensor) -> Tensor:
        with torch.no_grad():
            chunks = points.split(getattr(loss, "chunk_size", None) or len(points))
            return torch.cat([loss(chunk, *batch) for chunk in chunks])

    return evaluate
