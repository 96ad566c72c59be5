"""How right posterior samples are: distances beside their floor, modes, spread across and along what was seen."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from refimpl._checks import check_numbers, check_sizes, check_tensor
from refimpl.data import NormalMixture
from refimpl.diffusion.measurement import Measurement
from refimpl.metrics import median_bandwidth, mmd_squared, sliced_wasserstein

__all__ = ["posterior_report"]


def posterior_report(
    samples: Float[Tensor, "chains *problems dim"],
    exact: NormalMixture | Float[Tensor, "draws *problems dim"],
    prior: NormalMixture | Float[Tensor, "n dim"],
    *,
    measurement: Measurement | None = None,
    modes: Callable | Tensor | None = None,
    truth: Float[Tensor, "*problems dim"] | None = None,
    level: float = 0.9,
    num_projections: int = 128,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, "*problems"]]:
    """Compare samples with the exact posterior, one number for each problem: average them.

    Args:
        samples: of a sampler, two or more chains.
        exact: the posterior, such as `prior.condition(...)`, from which twice as many are drawn; or draws of it,
            better more. One half is compared with; the other half against the first gives the floor.
        prior: for the distance that knows nothing of y; or draws of it.
        measurement: for the residual and, if linear, the spread in row and null space.
        modes: labels of the mixture's components, shape (components,), that say which of them count as one class (each
            by itself if None); or a function from (..., dim) to probabilities (..., classes).
        truth: what was measured, for the coverage.
        level: of the central intervals for it, in (0, 1).
        num_projections: directions of the sliced distance, the same for all of them.
        generator: of draws and directions.

    Returns:
        "distance": sliced W2 to exact samples, in units of that from prior to posterior; "floor": what as many exact
        samples get; "over_floor": distance by floor; units are means over problems, as some y say next to nothing;
        "mmd_squared": with the median bandwidth, unbiased;
        "mode_tv": total variation between the probabilities of modes, 0 to 1, if there are any;
        "variance_ratio": total variance over the exact one, 1 is right; "row_variance_ratio", "null_variance_ratio":
        the same across and along the directions that a linear measurement sees (no null space, no number);
        "residual": root mean square of (y - h(x)) / std; "coverage": share of the features of `truth` inside the
        intervals.

    Raises:
        ValueError, TypeError: if shapes do not fit.

    >>> p = NormalMixture(torch.zeros(1, 2), torch.eye(2)[None])
    >>> g = torch.Generator().manual_seed(0)
    >>> report = posterior_report(p.sample(500, g), p.condition(torch.eye(2), torch.ones(2), 0.5), p, generator=g)
    >>> report["variance_ratio"].round(decimals=1)  # the posterior's variances are 1/5
    tensor(4.8000)
    """
    check_tensor("samples", samples, "(*batch, dim)")
    check_sizes(num_projections=num_projections)
    check_numbers("level", [level], low=1e-9, high=1)
    if samples.ndim < 2 or len(samples) < 2:
        raise ValueError(
            f"samples: got shape {tuple(samples.shape)}, expected (chains, *problems, dim) with 2 or more chains"
        )
    problems, dim = samples.shape[1:-1], samples.shape[-1]
    mixture = exact if isinstance(exact, NormalMixture) else None
    draws = mixture.sample(2 * len(samples), generator) if mixture else exact
    before = prior.sample(len(samples), generator) if isinstance(prior, NormalMixture) else prior
    for name, value, shape in (("exact", draws, samples.shape[1:]), ("prior", before, (dim,)), ("truth", truth, None)):
        shape = samples.shape[1:] if name == "truth" else (len(value), *shape)
        if value is not None and (value.shape != shape or (name == "exact" and len(value) < 4)):
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(shape)} to fit samples")
    report = _distances(
        samples.reshape(len(samples), -1, dim), draws.reshape(len(draws), -1, dim), before, num_projections, generator
    )
    report |= _spread(samples, mixture, draws, measurement)
    if mixture or callable(modes):
        report["mode_tv"] = _mode_variation(samples, mixture, draws, modes)
    if measurement is not None:
        off = measurement.residual(samples) / measurement.std
        report["residual"] = off.square().mean((0, -1)).sqrt()
    if truth is not None:
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2]).to(samples)
        low, high = torch.quantile(samples, ends, dim=0)
        report["coverage"] = ((truth >= low) & (truth <= high)).to(samples).mean(-1)
    return {name: value.reshape(problems) for name, value in report.items()}


def _distances(samples, draws, prior, num_projections: int, generator) -> dict[str, Tensor]:
    """Sliced W2 along common directions, and MMD, problem by problem."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device if generator else None))
    half = len(draws) // 2

    def apart(x: Tensor, y: Tensor) -> Tensor:
        directions = torch.Generator().manual_seed(seed)
        return sliced_wasserstein(x, y, num_projections=num_projections, generator=directions)

    rows = []
    for i in range(samples.shape[1]):
        own, first, second = samples[:, i], draws[:half, i], draws[half:, i][: len(samples)]
        width = median_bandwidth(first[: len(samples)], second)
        mmd = mmd_squared(own, first[: len(samples)], bandwidth=width)
        rows.append([apart(prior, first), apart(own, first), apart(second, first), mmd])
    whole, distance, floor, mmd = torch.tensor(rows).T.to(samples)
    return {
        "distance": distance / whole.mean(),
        "floor": floor / whole.mean(),
        "over_floor": distance / floor.mean(),
        "mmd_squared": mmd,
    }


def _spread(samples, mixture, draws, measurement) -> dict[str, Tensor]:
    """Ratios of variances, in all directions, in those that the measurement sees, and in the others."""

    def ratio(basis: Tensor) -> Tensor:
        along = (samples @ basis).var(0).sum(-1)
        if mixture:
            return along / (basis.mT @ mixture.moments()[1] @ basis).diagonal(dim1=-2, dim2=-1).sum(-1)
        return along / (draws @ basis).var(0).sum(-1)

    out = {"variance_ratio": ratio(torch.eye(samples.shape[-1]).to(samples))}
    if measurement is not None and measurement.matrix is not None:
        rank = int(torch.linalg.matrix_rank(measurement.matrix))
        directions = torch.linalg.svd(measurement.matrix).Vh.mT
        out["row_variance_ratio"] = ratio(directions[:, :rank])
        if rank < len(directions):
            out["null_variance_ratio"] = ratio(directions[:, rank:])
    return out


def _mode_variation(samples, mixture, draws, modes) -> Tensor:
    if callable(modes):
        found, right = (modes(x).mean(0) for x in (samples, draws))
    else:
        found, right = mixture.responsibilities(samples).mean(0), mixture.weights
        if modes is not None:
            if modes.shape != right.shape[-1:]:
                raise ValueError(
                    f"modes: got shape {tuple(modes.shape)}, expected one label for {right.shape[-1]} components"
                )
            member = one_hot(modes.long()).to(samples)
            found, right = found @ member, right @ member
    return (found - right).abs().sum(-1) / 2
