"""Which noise goes with which data point in flow matching, and how straight the paths become.

Flow matching draws a straight line from a noise to a data point and learns the mean velocity of all lines through a
point. Lines that cross make that mean curved in time. Three pairings: at random (many crossings), by optimal transport
inside each batch (few), and each noise with the point to which a trained flow carries it (reflow; none).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_tensor
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.samplers import integrate

__all__ = ["independent_pairs", "minibatch_ot_pairs", "reflow_pairs", "straightness", "transport_cost"]

Points = Float[Tensor, "n dim"]


def _check_pairs(noise: Tensor, data: Tensor) -> None:
    check_tensor("noise", noise, "(n, dim)", some=True)
    check_tensor("data", data, f"({len(noise)}, {noise.shape[-1]})", noise)


def independent_pairs(noise: Points, data: Points, generator: torch.Generator | None = None) -> tuple[Points, Points]:
    """The same points, paired at random whatever their order was; data keep their order.

    >>> noise, data = independent_pairs(torch.arange(3.0)[:, None], torch.zeros(3, 1))
    >>> noise.flatten().sort().values
    tensor([0., 1., 2.])
    """
    _check_pairs(noise, data)
    where = generator.device if generator else noise.device
    return noise[torch.randperm(len(noise), generator=generator, device=where).to(noise.device)], data


def minibatch_ot_pairs(
    noise: Points,
    data: Points,
    *,
    method: str = "exact",
    regularisation: float | int = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Points, Points]:
    """Pairs by optimal transport of the batch, at the cost |data - noise|^2.

    Args:
        noise, data: as many points of each, in any order.
        method: "exact": the cheapest one-to-one assignment, in O(n^3) on the CPU; "sinkhorn": each data point with a
            noise drawn from its row of the entropic plan, so that a noise may come twice or not at all, and is expected
            once.
        regularisation: of the entropic plan, in squared units of the data; 2 s^2 gives the coupling of a Schroedinger
            bridge with noise s. The smaller, the more iterations.
        generator: of those draws.

    Returns: the noise in the order that pairs it, and the data as they came, so that their labels still fit.

    Raises:
        ValueError: if the two are not equally many, or if the entropic plan does not converge.

    Source: Tong et al. 2023 (arXiv 2302.00482), Section 3.2; Pooladian et al. 2023 (arXiv 2304.14772).

    >>> minibatch_ot_pairs(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]))[0].flatten()
    tensor([5., 0.])
    """
    _check_pairs(noise, data)
    if method not in ("exact", "sinkhorn"):
        raise ValueError(f"method: got {method!r}, expected 'exact' or 'sinkhorn'")
    check_positive("regularisation", regularisation, "squared units of the data")
    import ot

    cost = torch.cdist(data.double(), noise.double()).square().detach().cpu().numpy()
    even = [1 / len(cost)] * len(cost)
    if method == "exact":  # a corner of the polytope of all plans, hence a permutation
        chosen = torch.as_tensor(ot.emd(even, even, cost, numItermax=10**7)).argmax(-1)
    else:
        options = dict(method="sinkhorn_log", numItermax=5000, stopThr=1e-4, warn=False)
        plan = torch.as_tensor(ot.sinkhorn(even, even, cost, regularisation, **options))
        off = max((plan.sum(axis) - 1 / len(plan)).abs().sum().item() for axis in (0, 1))
        if not off < 0.05:
            raise ValueError(f"regularisation: got {regularisation:g}, too small for the plan to converge; take more")
        where = generator.device if generator else plan.device
        chosen = torch.multinomial(plan.to(where), 1, generator=generator).squeeze(-1)
    return noise[chosen.to(noise.device)], data


def transport_cost(noise: Points, data: Points, power: float | int = 2) -> Float[Tensor, ""]:
    """Mean of |data - noise|^power over the pairs as they stand; of power 1 or more it is a convex cost."""
    _check_pairs(noise, data)
    check_numbers("power", [power], low=1)
    return torch.linalg.vector_norm(data - noise, dim=-1).pow(power).mean()


def reflow_pairs(
    model: DiffusionModel, noise: Points, times: Tensor | Sequence[float | int], context: Tensor | None = None
) -> tuple[Points, Points]:
    """Each noise with the point to which the flow of `model` carries it: the pairs that a second flow trains on.

    The map is the teacher's: its errors are in the pairs, and the second flow learns them too.

    Args:
        model: a trained flow, or any model whose process has rates.
        noise: where the flow starts, such as `process.initial(...)`.
        times: three or more, from noise to data, such as `process.times(50)`; each step is one of the midpoint rule, two
            calls, but for the last, see `integrate`.
        context: of the network.

    Source: Liu, Gong, Liu 2022 (arXiv 2209.03003), Algorithm 1 and Theorem 3.5.
    """
    check_tensor("noise", noise, "(n, dim)", some=True)
    return noise, integrate(model, noise, times, method="midpoint", context=context)


def straightness(
    model: DiffusionModel, noise: Points, times: Tensor | Sequence[float | int], context: Tensor | None = None
) -> Float[Tensor, ""]:
    """Mean over paths and time of |v_t(x_t) - (x_1 - x_0) / duration|^2; 0 if and only if all paths are straight.

    Arguments as in `reflow_pairs`. Features are summed, so the unit is the squared one of the data (for a clock of
    duration 1).

    Source: Liu, Gong, Liu 2022 (arXiv 2209.03003), Section 2.2, S(Z).

    >>> from refimpl.diffusion import FlowPath
    >>> model = DiffusionModel(lambda x, t: torch.ones_like(x), FlowPath(), predicts="velocity")
    >>> straightness(model, torch.randn(5, 2), FlowPath().times(4)) < 1e-12
    tensor(True)
    """
    check_tensor("noise", noise, "(n, dim)", some=True)
    path = integrate(model, noise, times, method="midpoint", context=context, return_path=True)
    times = torch.as_tensor(times).to(path)
    steps = times.diff()
    velocity, mean = path.diff(dim=0) / steps[:, None, None], (path[-1] - path[0]) / steps.sum()
    return ((velocity - mean).square().sum(-1).mean(-1) * steps).sum() / steps.sum()
