"""Torsion angles of proteins (two a residue) and of RNA (seven a nucleotide) as points on flat tori, for full-size runs."""

import io
import math
import zipfile
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_tensor
from refimpl.data._download import fetch

__all__ = ["angles_of", "on_torus", "torsions"]

RNA = "https://raw.githubusercontent.com/vislearn/FFF/7b99c97693c0ea24ca8b84d1884766cec751fb5f/fff/data/raw_data/torus/rna.tsv"
PROTEIN = "https://rtqichen.com/manifold_data/data.zip"
KINDS = ("General", "Glycine", "Proline", "Pre-Pro")
RNA_ROWS = 9478


def torsions(kind: str, *, folder: str | Path | None = None, download: bool = False) -> Float[Tensor, "n ambient"]:
    """Points (cos a_1, sin a_1, cos a_2, ...) of all angles of one kind, in the file's order, in double precision.

    Args:
        kind: "RNA" (9478 rows of 7 angles), or of the proteins' (phi, psi) "General", "Glycine", "Proline" or "Pre-Pro".
        folder: where the file lies, `rna.tsv` or `data.zip`; default ``REFIMPL_DATA`` (`refimpl.runtime.data_dir`).
        download: whether to fetch it if it is not there.

    Raises:
        ValueError: if the kind is unknown, or the file is not what it should be.
        FileNotFoundError, ConnectionError, TypeError: as `refimpl.data.cifar` raises them.

    Source: Lovell et al. 2003 and Murray et al. 2003, as collected by Huang et al. 2022 (arXiv 2208.07949) and
        Chen and Lipman 2024 (arXiv 2302.03660).
    """
    if kind == "RNA":
        path = fetch("rna.tsv", RNA, folder, download)
        rows = [line.split("\t")[2:] for line in path.read_text(encoding="utf-8").splitlines()]
        angles = _numbers(path.name, rows, 7)
        if len(angles) != RNA_ROWS:
            raise ValueError(f"{path.name}: got {len(angles)} rows, expected {RNA_ROWS}")
        return on_torus(angles)
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected 'RNA' or one of {', '.join(KINDS)}")
    path = fetch("data.zip", PROTEIN, folder, download)
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("top500/aggregated_angles.tsv")]
        if len(names) != 1:
            raise ValueError(f"{path.name}: has {len(names)} files top500/aggregated_angles.tsv, expected one")
        with archive.open(names[0]) as file:
            rows = [line.rstrip("\n").split("\t") for line in io.TextIOWrapper(file, encoding="utf-8")]
    return on_torus(_numbers(names[0], [row[1:3] for row in rows if row[-1] == kind], 2))


def _numbers(name: str, rows: list[list[str]], columns: int) -> Tensor:
    try:
        angles = torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64)
    except ValueError as error:
        raise ValueError(f"{name}: expected {columns} angles a row: {error}") from None
    if angles.ndim != 2 or angles.shape[1] != columns or not angles.isfinite().all():
        raise ValueError(f"{name}: got angles of shape {tuple(angles.shape)}, expected (n, {columns}), finite")
    return angles


def on_torus(degrees: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch two_n"]:
    """Cosine and sine of each angle, side by side. Raises ValueError or TypeError unless the angles are finite.

    >>> on_torus(torch.tensor([0.0, 90.0])).abs().round()
    tensor([1., 0., 0., 1.])
    """
    check_tensor("degrees", degrees, "(*batch, n)")
    angles = degrees.deg2rad()
    return torch.stack([angles.cos(), angles.sin()], -1).flatten(-2)


def angles_of(x: Float[Tensor, "*batch two_n"]) -> Float[Tensor, "*batch n"]:
    """Angles in radians, in [0, 2 pi), of points on a flat torus."""
    pairs = x.unflatten(-1, (-1, 2))
    return torch.atan2(pairs[..., 1], pairs[..., 0]) % (2 * math.pi)
