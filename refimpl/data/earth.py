"""Where disasters happened: volcanic eruptions, earthquakes, floods and fires as points on the sphere, for full-size runs.

The four sets on which densities on the sphere are compared in the literature. They are small, and they repeat: only 267 of
the 827 eruptions are at places of their own. Nothing is downloaded unless you ask for it.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_tensor
from refimpl.data._download import fetch
from refimpl.data.sphere import from_degrees

__all__ = ["earth", "repeated"]

ADDRESS = (
    "https://raw.githubusercontent.com/oxcsml/riemannian-score-sde/5b48a7f7e175894afb6933f5e5f367b5a0eb65d7/data/{}"
)
# File, lines before the data, and rows: a file with another number of rows is not the one that papers report on.
SETS = {
    "volcano": ("volerup.csv", 2, 827),
    "earthquake": ("quakes_all.csv", 4, 6120),
    "flood": ("flood.csv", 2, 4875),
    "fire": ("fire.csv", 1, 12809),
}


def earth(name: str, *, folder: str | Path | None = None, download: bool = False) -> Float[Tensor, "n 3"]:
    """Unit vectors of all events of one set, in the file's order, in double precision.

    Args:
        name: "volcano", "earthquake", "flood" or "fire".
        folder: where the file lies; default ``REFIMPL_DATA`` (`refimpl.runtime.data_dir`).
        download: whether to fetch the file (at most 0.2 MB) if it is not there.

    Raises:
        ValueError: if the name is unknown, or the file is not what it should be.
        FileNotFoundError, ConnectionError, TypeError: as `refimpl.data.cifar` raises them.

    Source: the public repository of De Bortoli et al. 2022 (arXiv 2202.02763), which names the agencies they come from.
    """
    if name not in SETS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(SETS)}")
    file, header, rows = SETS[name]
    path = fetch(file, ADDRESS.format(file), folder, download)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines()[header:] if line.strip()]
    try:
        places = torch.tensor([[float(v) for v in line.split(",")] for line in lines], dtype=torch.float64)
    except ValueError as error:
        raise ValueError(f"{file}: expected lines of latitude, longitude: {error}") from None
    if places.shape != (rows, 2):
        raise ValueError(f"{file}: got data of shape {tuple(places.shape)}, expected {(rows, 2)}")
    return from_degrees(places)


def repeated(test: Float[Tensor, "n dim"], train: Float[Tensor, "m dim"]) -> Float[Tensor, " n"]:
    """1 for each test point that is an exact copy of a training point, else 0.

    Raises:
        ValueError, TypeError: if the two differ in type or width, in which case nothing would be a copy.

    >>> repeated(torch.eye(2), torch.tensor([[1.0, 0.0]]))
    tensor([1., 0.])
    """
    check_tensor("test", test, "(n, dim)")
    check_tensor("train", train, f"(m, {test.shape[1]})", like=test)
    known = set(map(tuple, train.tolist()))
    return torch.tensor([float(tuple(row) in known) for row in test.tolist()])
