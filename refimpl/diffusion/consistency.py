"""Consistency models: one call from any noise level to the data's end of the probability-flow ODE.

f(x_sigma, sigma) must be the same all along a trajectory, and at its end f(x, sigma_min) = x. Learned is agreement
between neighbouring levels: the neighbour of x_sigma comes from a step of a trained model (distillation), or, on average
the same, from the data point and the noise that made x_sigma (training).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor
from refimpl.data._random import draw
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.process import EDM, as_time

__all__ = [
    "ConsistencyModel",
    "consistency_loss",
    "consistency_sample",
    "ct_schedule",
    "draw_levels",
    "ict_num_levels",
    "pseudo_huber",
]


class ConsistencyModel(nn.Module):
    """f(x, sigma) = c_skip x + c_out network(c_in x, ln(sigma) / 4), exactly x at sigma_min whatever the network says.

    Args:
        network: called as network(x, t) or network(x, t, context), t of shape (*batch, 1), on inputs of about unit scale.
        process: the noise levels; `sigma_min` and `sigma_max` are the trajectory's ends.
        sigma_data: standard deviation of the data, a feature.

    Attributes:
        calls: network evaluations, of a whole batch each.

    Source: Song et al. 2023 (arXiv 2303.01469), Eq. (5) and Appendix C, where the network's time is 1000 times ours.

    >>> f = ConsistencyModel(lambda x, t: x + 7, EDM(), sigma_data=0.5)
    >>> f(torch.tensor([3.0]), 0.002)
    tensor([3.])
    """

    def __init__(self, network: Callable, process: EDM, sigma_data: float | int = 0.5):
        super().__init__()
        if not callable(network):
            raise TypeError(f"network: got {type(network).__name__}, expected a function of (x, t)")
        if not isinstance(process, EDM):
            raise TypeError(f"process: got {type(process).__name__}, expected EDM(): the clock is the noise level")
        check_positive("sigma_data", sigma_data, "units of the data")
        self.network, self.process, self.sigma_data, self.calls = network, process, sigma_data, 0

    def forward(
        self, x: Float[Tensor, "*batch dim"], sigma: Tensor | float | int, context: Tensor | None = None
    ) -> Float[Tensor, "*batch dim"]:
        """The end of the trajectory through x at this noise level (a number, or one for each state)."""
        sigma = as_time(sigma, x)
        if not (sigma >= self.process.sigma_min * (1 - 1e-6)).all():
            raise ValueError(f"sigma: got {sigma.min():g}, expected sigma_min, {self.process.sigma_min:g}, or above")
        past, total = sigma - self.process.sigma_min, (sigma.square() + self.sigma_data**2).sqrt()
        skip = self.sigma_data**2 / (past.square() + self.sigma_data**2)
        t = (0.25 * sigma.log()).expand(*x.shape[:-1], 1)
        out = self.network(x / total, t) if context is None else self.network(x / total, t, context)
        if out.shape != x.shape:
            raise ValueError(f"network: returned {tuple(out.shape)}, expected the shape of x, {tuple(x.shape)}")
        self.calls += 1
        return skip * x + past * self.sigma_data / total * out


def pseudo_huber(
    x: Float[Tensor, "*batch dim"], y: Float[Tensor, "*batch dim"], c: float | int | None = None
) -> Float[Tensor, "*batch"]:
    """sqrt(|x - y|^2 + c^2) - c: a square within c of each other, the distance beyond; c = .00054 sqrt(dim) if None.

    Source: Song and Dhariwal 2023 (arXiv 2310.14189), Section 3.3.

    >>> pseudo_huber(torch.tensor([3.0, 4.0]), torch.zeros(2), c=12)
    tensor(1.)
    """
    c = 0.00054 * math.sqrt(x.shape[-1]) if c is None else c
    check_positive("c", c, "units of x")
    return ((x - y).square().sum(-1) + c**2).sqrt() - c


def draw_levels(
    levels: Float[Tensor, " levels"],
    num: int,
    *,
    mean: float | int = -1.1,
    std: float | int = 2.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " num"]:
    """Places of levels before the last, drawn as ln(sigma) ~ N(mean, std^2) would fall between it and the next.

    Source: Song and Dhariwal 2023 (arXiv 2310.14189), Section 3.5 and Table 1.
    """
    check_sizes(num=num)
    check_positive("std", std)
    edges = torch.distributions.Normal(mean, std).cdf(levels.double().log())
    where = generator.device if generator else levels.device
    weights = edges.diff().clamp_min(1e-12).to(where)
    return torch.multinomial(weights, num, replacement=True, generator=generator).to(levels.device)


def consistency_loss(
    model: ConsistencyModel,
    x0: Float[Tensor, "n dim"],
    num_levels: int,
    *,
    target: ConsistencyModel | None = None,
    teacher: DiffusionModel | None = None,
    indices: Callable | None = None,
    distance: Callable = pseudo_huber,
    weight: Callable | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Disagreement of f between neighbouring noise levels of the same trajectory, mean over samples.

    The upper state is x_0 + sigma_{n+1} e; the lower one is x_0 + sigma_n e with the *same* e (consistency training), or
    the end of a Heun step of the teacher from the upper one (distillation). The lower one is the target, without
    gradient. The two targets agree in expectation as neighbours come closer: given x_sigma, the mean of e is the
    probability-flow ODE's slope. Values at different `num_levels` cannot be compared.

    Args:
        model: f, trained.
        x0: data.
        num_levels: of the process's grid, from sigma_min to sigma_max; see `ict_num_levels` and `ct_schedule`.
        target: gives the target, such as a moving average of `model`; `model` itself if None.
        teacher: a trained diffusion model with an EDM process, for distillation; consistency training if None.
        indices: function (levels, num, generator=) that draws n, such as the default, `draw_levels`.
        distance: function of two batches (n, dim) that gives (n,).
        weight: function of the lower and the upper level, (n, 1) each, that gives the same shape; one over their
            difference if None.
        context: of the networks.
        generator: of levels and noise.

    Source: Song et al. 2023 (arXiv 2303.01469), Definitions 1 and 2, Algorithms 2 and 3; the defaults are Song and
    Dhariwal's 2023 (arXiv 2310.14189), Table 1.
    """
    check_tensor("x0", x0, "(n, dim)", some=True)
    if not isinstance(num_levels, int) or num_levels < 2:
        raise ValueError(f"num_levels: got {num_levels!r}, expected a whole number >= 2")
    if teacher is not None and not isinstance(getattr(teacher, "process", None), EDM):
        raise TypeError("teacher: expected a DiffusionModel with an EDM process: the clock is the noise level")
    levels = model.process.times(num_levels)[:-1].flip(0).to(x0)
    n = (draw_levels if indices is None else indices)(levels, len(x0), generator=generator)
    low, high = levels[n].unsqueeze(-1), levels[n + 1].unsqueeze(-1)
    noise = draw(torch.randn, tuple(x0.shape), x0, generator)
    upper = x0 + high * noise
    with torch.no_grad():
        lower = x0 + low * noise
        if teacher is not None:
            slope = teacher.velocity(upper, high, context)
            end = teacher.velocity(upper + (low - high) * slope, low, context)
            lower = upper + (low - high) * (slope + end) / 2
        wanted = (model if target is None else target)(lower, low, context)
    scale = 1 / (high - low) if weight is None else weight(low, high)
    return (scale.squeeze(-1) * distance(model(upper, high, context), wanted)).mean()


def ct_schedule(
    step: int, num_steps: int, first: int = 2, last: int = 150, ema: float | int = 0.95
) -> tuple[int, float]:
    """Number of levels N and the target's decay at a training step: N grows like a square root, the decay towards 1.

    Args:
        step: 0 to num_steps.
        num_steps: length of the training.
        first, last: numbers of levels at its ends (last + 1 at the very end).
        ema: decay at the start.

    Source: Song et al. 2023 (arXiv 2303.01469), Appendix C; the official code has N - 1 in place of N in the decay.

    >>> ct_schedule(0, 1000), ct_schedule(1000, 1000)[0]
    ((2, 0.95), 151)
    """
    _check_schedule(step, num_steps, first, last)
    check_numbers("ema", [ema], low=1e-12, high=1)
    grown = math.sqrt(step / num_steps * ((last + 1) ** 2 - first**2) + first**2)
    num_levels = math.ceil(grown - 1) + 1
    return num_levels, ema ** (first / num_levels)


def ict_num_levels(step: int, num_steps: int, first: int = 10, last: int = 1280) -> int:
    """Number of levels at a training step: doubled at even intervals, from first + 1 to last + 1.

    Source: Song and Dhariwal 2023 (arXiv 2310.14189), Section 3.4.

    >>> [ict_num_levels(step, 800) for step in (0, 99, 100, 799)]
    [11, 11, 21, 1281]
    """
    _check_schedule(step, num_steps, first, last)
    stage = math.floor(num_steps / (math.log2(last // first) + 1))
    return min(first * 2 ** (step // max(stage, 1)), last) + 1


def _check_schedule(step: int, num_steps: int, first: int, last: int) -> None:
    check_sizes(num_steps=num_steps, first=first, last=last)
    if not isinstance(step, int) or not 0 <= step <= num_steps:
        raise ValueError(f"step: got {step!r}, expected a whole number in [0, {num_steps}]")
    if not 2 <= first <= last:
        raise ValueError(f"first: got {first}, expected 2 to {last}")


@torch.no_grad()
def consistency_sample(
    model: ConsistencyModel,
    x: Float[Tensor, "*batch dim"],
    levels: Sequence[float | int] = (),
    *,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch dim"]:
    """From noise to data in one call, and one more for each level to which noise is added again.

    Args:
        model: f.
        x: noise of scale sigma_max, such as `model.process.initial(shape)`.
        levels: noise levels in (sigma_min, sigma_max), falling, for more calls.
        context: of the network.
        generator: of the noise that is added.

    Source: Song et al. 2023 (arXiv 2303.01469), Algorithm 1.
    """
    check_tensor("x", x, "(*batch, dim)")
    lowest, highest = model.process.sigma_min, model.process.sigma_max
    if list(levels):
        check_numbers("levels", list(levels), low=lowest, high=highest)
    if any(s >= t for t, s in pairwise(levels)):
        raise ValueError(f"levels: got {list(levels)}, expected falling ones")
    x = model(x, highest, context)
    for sigma in levels:
        noise = draw(torch.randn, tuple(x.shape), x, generator)
        x = model(x + math.sqrt(sigma**2 - lowest**2) * noise, sigma, context)
    return x
