"""Heavy tails: how heavy the data's are, and flows whose base has the same (marginal tail-adaptive flows).

X has tail index a if P(|X| > r) falls like r^-a: Student's t has its degrees of freedom, the normal is light (inf).
Triangular maps with affine tails keep the index of a feature as long as no heavier one feeds it.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor
from refimpl.flows.autoregressive import MaskedAutoregressive, check_no_order
from refimpl.flows.bases import StudentT
from refimpl.flows.bijection import Bijection, Chain, Permutation
from refimpl.flows.elementwise import AffineMap, ElementwiseMap
from refimpl.flows.flow import Flow
from refimpl.flows.linear import BlockTriangularLinear, InvertibleLinear

__all__ = ["hill_index", "sample_heavy_copula", "tail_adaptive_flow", "tail_index"]


def _log_excesses(x: Tensor, k: int) -> Tensor:
    if not isinstance(k, int) or not 0 < k < len(x):
        raise ValueError(f"k: got {k}, expected a whole number from 1 to {len(x) - 1}")
    top = x.abs().topk(k + 1, 0).values.log()
    return top[:-1] - top[-1]


def hill_index(x: Float[Tensor, "n ..."], k: int) -> Tensor:
    """Hill's estimate of the tail index of |x|, for each feature, from its k largest values.

    For a light tail it is large and grows with n, but it is never infinite: see `tail_index`.

    Args:
        x: samples, shape (n,) or (n, dim), around 0.
        k: how many values, < n: few leave much noise (index / sqrt(k)), many reach where the tail is no power yet.

    Raises:
        TypeError, ValueError: if x is not finite, or k out of its range.

    Source: Hill 1975 (Annals of Statistics 3(5)).

    >>> hill_index(torch.tensor([1.0, math.e, math.e]), 2)
    tensor(1.)
    """
    check_tensor("x", x, "(n, dim)" if getattr(x, "ndim", 1) > 1 else "(n,)")
    return 1 / _log_excesses(x, k).mean(0)


def tail_index(x: Float[Tensor, "n dim"], share: float = 0.05) -> Float[Tensor, " dim"]:
    """Tail index of each feature around its median; inf if light, that is, if the index is 10 or more.

    Hill's estimate cannot tell a light tail from a moderately heavy one. What decides is the moment estimate of 1 / index,
    which tends to 0 or below for light tails.

    Args:
        x: samples, shape (n, dim).
        share: of the samples that count as the tail, in (0, 1).

    Raises:
        TypeError, ValueError: if x is not a finite (n, dim), or the share leaves no tail.

    Source: Dekkers, Einmahl, de Haan 1989 (Annals of Statistics 17(4)) for the moment estimate; Laszkiewicz, Lederer,
        Fischer 2022 (marginal tail-adaptive flows) for the use.
    """
    check_tensor("x", x, "(n, dim)")
    if not 0 < share < 1 or share * len(x) < 1:
        raise ValueError(f"share: got {share!r} of {len(x)} samples, expected a number in (0, 1) that leaves a tail")
    excesses = _log_excesses(x - x.median(0).values, int(share * len(x)))
    first, second = excesses.mean(0), excesses.square().mean(0)
    inverse_index = first + 1 - 0.5 / (1 - first.square() / second)
    return torch.where(inverse_index > 0.1, 1 / first, math.inf)


def tail_adaptive_flow(
    tails: Tensor | Sequence[float],
    num_layers: int = 5,
    *,
    tau: ElementwiseMap | None = None,
    learned: bool = True,
    generator: torch.Generator | None = None,
    **settings,
) -> Flow:
    """Flow whose light features have a normal base and whose heavy ones a Student-t base, and stay apart.

    The features are reordered, light first; autoregressive layers and linear ones between them are triangular from
    light to heavy, so that a heavy feature never feeds a light one. Within the heavy group features do mix, and share
    the smallest index where they do.

    Args:
        tails: index of every feature, shape (dim,), inf for light; or data, shape (n, dim), from which `tail_index`
            estimates it.
        num_layers: autoregressive layers, whose order within the groups is reversed each time.
        tau: elementwise map with affine tails, `AffineMap()` if None.
        learned: whether the degrees of freedom are trained.
        generator: of the initial linear layers.
        **settings: of `MADE`: width, depth, activation, dim_context.

    Source: Laszkiewicz, Lederer, Fischer 2022 (marginal tail-adaptive flows).
    """
    check_sizes(num_layers=num_layers)
    check_no_order(settings)
    tails = torch.as_tensor(tails)
    index = tail_index(tails) if tails.ndim == 2 else tails
    if index.ndim != 1 or not len(index) or not (index > 0).all():
        raise ValueError(f"tails: got {index.tolist()}, expected data (n, dim) or tail indices > 0, one a feature")
    order = index.isfinite().int().argsort(stable=True)
    dim, heavy = len(index), int(index.isfinite().sum())
    light = dim - heavy
    layers: list[Bijection] = [Permutation(order.cpu())]
    for i in range(num_layers):
        if i and light and heavy:
            layers.append(BlockTriangularLinear(light, heavy, generator))
        elif i:
            layers.append(InvertibleLinear(dim, generator=generator))
        step = (-1) ** i
        features = [*list(range(light))[::step], *list(range(light, dim))[::step]]
        layers.append(MaskedAutoregressive(dim, tau or AffineMap(), order=features, **settings))
    return Flow(Chain(*layers), StudentT(index[order].tolist(), learned=learned))


def sample_heavy_copula(
    n: int, num_heavy: int = 4, df: float | int = 2.0, *, dim: int = 8, generator: torch.Generator | None = None
) -> Float[Tensor, "n dim"]:
    """Mixtures of normals or of Student-t, joined by a Gaussian copula and standardised: the last `num_heavy` are heavy.

    Features 0 and 1 are normal, 2 a mixture of two normals, 3 of three, further light ones of two, heavy ones of two
    Student-t; locations are uniform on (-4, 4), scales on (1, 2). 2 dim random entries of the copula's correlation
    matrix are 0.25.

    Args:
        n: number of samples.
        num_heavy: heavy features, from 0 to dim.
        df: their tail index.
        dim: number of features.
        generator: source; torch's global one if None.

    Returns:
        Samples, float64, on the generator's device.

    Source: the synthetic data of Laszkiewicz, Lederer, Fischer 2022 (marginal tail-adaptive flows).
    """
    import numpy as np
    from scipy import stats

    check_sizes(n=n, dim=dim)
    check_numbers("num_heavy", [num_heavy], low=0, high=dim + 1, whole=True)
    check_positive("df", df)
    where = {"generator": generator, "device": generator.device if generator else None, "dtype": torch.float64}
    pairs = torch.tril_indices(dim, dim, -1)
    chosen = torch.rand(pairs.shape[1], **where).argsort().cpu()[: 2 * dim]
    correlation = torch.eye(dim, dtype=torch.float64)
    correlation[pairs[0, chosen], pairs[1, chosen]] = correlation[pairs[1, chosen], pairs[0, chosen]] = 0.25
    # The matrix may miss positive definiteness by a little; its nearest one has the same features joined.
    values, vectors = torch.linalg.eigh(correlation)
    root = vectors * values.clamp_min(1e-6).sqrt()
    normal = torch.randn(n, dim, **where).cpu() @ (root / root.norm(dim=1, keepdim=True)).T
    uniform = torch.special.ndtr(normal).numpy()
    columns = []
    for j in range(dim):
        heavy = j >= dim - num_heavy
        parts = 2 if heavy or j == 2 or j > 3 else 3 if j == 3 else 1
        location, scale = (torch.rand(2, parts, **where).cpu() * torch.tensor([[8.0], [1.0]])).numpy()
        law = stats.t(df, location - 4, scale + 1) if heavy else stats.norm(location - 4, scale + 1)
        # A mixture's quantile lies between those of its parts: bisection.
        quantiles = law.ppf(uniform[:, j, None])
        low, high = quantiles.min(1), quantiles.max(1)
        for _ in range(50 if parts > 1 else 0):
            middle = (low + high) / 2
            below = law.cdf(middle[:, None]).mean(1) < uniform[:, j]
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        columns.append(torch.from_numpy(low))
    x = torch.stack(columns, 1)
    return ((x - x.mean(0)) / x.std(0)).to(generator.device if generator else "cpu")
