"""Real points on the sphere: the world's airports, which a small package brings along, and how places become vectors."""

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_tensor

__all__ = ["airports", "from_degrees", "split_points", "to_degrees"]


def from_degrees(places: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 3"]:
    """Unit vectors (cos lat cos lon, cos lat sin lon, sin lat) of latitude and longitude in degrees.

    Raises:
        ValueError, TypeError: if `places` are not finite, or a latitude is beyond a pole.

    >>> from_degrees(torch.tensor([[90.0, 0.0], [0.0, 180.0]])).round().abs()
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    check_tensor("places", places, "(*batch, 2)")
    if (places[..., 0].abs() > 90).any():
        raise ValueError(f"places: has a latitude of {places[..., 0].abs().max():.4g} degrees, expected at most 90")
    lat, lon = places.deg2rad().unbind(-1)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1)


def to_degrees(x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 2"]:
    """Latitude and longitude, in (-180, 180], of vectors of any length but 0."""
    check_tensor("x", x, "(*batch, 3)")
    lat = torch.atan2(x[..., 2], torch.linalg.vector_norm(x[..., :2], dim=-1))
    return torch.stack([lat, torch.atan2(x[..., 1], x[..., 0])], -1).rad2deg()


def airports() -> tuple[Float[Tensor, "n 3"], list[str]]:
    """Places of the airports that have a IATA code (7,882 in the release of 2026-09), in no order that matters, and countries.

    Places that occur twice, to 0.001 degrees, are kept once: a copy in the test set of a point of the training set would
    make every likelihood meaningless. A quarter of the airports lie in the United States; that is what the world's
    airports look like, and nothing is thinned.

    Returns:
        Unit vectors in single precision, and the two-letter country code of each.

    Raises:
        ImportError: if the package `airportsdata` is not installed.

    Source: the package `airportsdata` by Mike Borsetti (MIT licence).
    """
    try:
        import airportsdata
    except ImportError as error:
        raise ImportError("airports: needs the package airportsdata: pip install airportsdata") from error
    seen: dict[tuple[float, float], str] = {}
    for row in airportsdata.load("IATA").values():
        seen.setdefault((round(row["lat"], 3), round(row["lon"], 3)), row["country"])
    return from_degrees(torch.tensor(list(seen), dtype=torch.float64)).float(), list(seen.values())


def split_points(
    x: Float[Tensor, "n dim"], shares: tuple[float, ...] = (0.8, 0.1, 0.1), generator: torch.Generator | None = None
) -> list[Tensor]:
    """Random parts of the rows of x: training, validation and test points.

    Args:
        x: shape (n, dim).
        shares: of each part; they must sum to 1.
        generator: shuffles.

    Raises:
        ValueError, TypeError: if x is no such tensor, or the shares are negative or do not sum to 1.

    >>> [len(part) for part in split_points(torch.zeros(20, 3))]
    [16, 2, 2]
    """
    check_tensor("x", x, "(n, dim)")
    if any(share < 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares: got {shares}, expected parts >= 0 that sum to 1")
    order = torch.randperm(len(x), generator=generator, device=generator.device if generator else None).to(x.device)
    ends = [round(len(x) * sum(shares[: k + 1])) for k in range(len(shares))]
    return [x[order[a:b]] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
