"""Tables of real measurements on which densities are compared: POWER, GAS, HEPMASS, MINIBOONE, for full-size runs.

Cleaned, split and standardised as by Papamakarios et al. 2017, in whose archive three of them lie. GAS lies there as
a pickle, which this course does not open, so that it is read from the text file of its donors. Nothing is downloaded
unless you ask for it.
"""

import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from refimpl import runtime

__all__ = ["UCI", "Parts", "uci"]


class Archive(NamedTuple):
    """Address of a file, its size and its MD5 checksum, where one is published."""

    name: str
    address: str
    megabytes: int
    md5: str | None


MAF = Archive(
    "maf-data.tar.gz",
    "https://zenodo.org/records/1161203/files/data.tar.gz",
    857,
    "9b9c9b0375315ad270eba4ce80c093ab",
)
GAS = Archive(
    "gas-mixtures.zip",
    "https://archive.ics.uci.edu/static/public/322/gas+sensor+array+under+dynamic+gas+mixtures.zip",
    800,
    None,  # checked by the shape of what is inside
)
# Features that are left after cleaning.
UCI = {"power": 6, "gas": 8, "hepmass": 21, "miniboone": 43}


class Parts(NamedTuple):
    """Rows to train with, to choose by and to judge by, each of shape (rows, features)."""

    train: Tensor
    validation: Tensor
    test: Tensor


def uci(name: str, *, folder: str | Path | None = None, download: bool = False) -> Parts:
    """One table, standardised with the statistics that the literature uses, as float32 on the CPU.

    ==============  =====================================================  =========  ========
    name            what a row is                                          rows       features
    ==============  =====================================================  =========  ========
    ``power``       a household's electricity in one minute                2,049,280         6
    ``gas``         readings of sensors in a mixture of gases              1,052,065         8
    ``hepmass``     a simulated particle collision with a signal             525,123        21
    ``miniboone``   a neutrino candidate                                      36,488        43
    ==============  =====================================================  =========  ========

    POWER gets a little uniform noise, as its values are rounded; here from a fixed seed. Mean and standard deviation are
    those of training and validation rows together (power, miniboone), of training rows (hepmass), or of all (gas).

    Args:
        name: one of the four.
        folder: where the archive lies; default ``REFIMPL_DATA`` (`refimpl.runtime.data_dir`).
        download: whether to fetch the archive (0.8 GB) if it is not there.

    Raises:
        ValueError: if `name` is unknown, or the archive is damaged or holds something else (and is then renamed).
        FileNotFoundError: if the archive is missing and `download` is False; it says what to put where.
        ConnectionError: if it cannot be downloaded.

    Source: Papamakarios, Pavlakou, Murray 2017 (arXiv 1705.07057), appendix on data sets.
    """
    if name not in UCI:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(UCI)}")
    path = _fetch(GAS if name == "gas" else MAF, runtime.data_dir() if folder is None else Path(folder), download)
    parts = {"power": _power, "gas": _gas, "hepmass": _hepmass, "miniboone": _miniboone}[name](path)
    if any(part.ndim != 2 or part.shape[1] != UCI[name] or not np.isfinite(part).all() for part in parts):
        shapes = [part.shape for part in parts]
        raise ValueError(f"{path.name}: got parts of shapes {shapes}, expected finite rows of {UCI[name]} features")
    return Parts(*(torch.tensor(part, dtype=torch.float32) for part in parts))


def _fetch(archive: Archive, folder: Path, download: bool) -> Path:
    """Path of the archive once it is there and, if a checksum is known, has it."""
    path, what = folder / archive.name, f"{archive.address} ({archive.megabytes} MB)"
    if not path.exists():
        if not download:
            raise FileNotFoundError(
                f"{path.name} is missing: put {what} into {folder} under that name, pass download=True, "
                "or set REFIMPL_DATA to its folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # Under its own name only when complete: an interrupted download leaves nothing behind.
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            part = Path(unfinished) / archive.name
            try:
                with urllib.request.urlopen(archive.address, timeout=60) as response, part.open("wb") as file:
                    shutil.copyfileobj(response, file)
            except (OSError, HTTPException) as error:
                raise ConnectionError(
                    f"cannot download {what}: {error}; with another machine, save it as {path.name}"
                ) from error
            part.replace(path)
    if archive.md5 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if digest != archive.md5:
            path.replace(path.with_name(path.name + ".damaged"))
            raise ValueError(
                f"{path.name}: got the MD5 checksum {digest}, expected {archive.md5}; renamed to {path.name}.damaged, "
                f"download it again from {archive.address}"
            )
    return path


def _member(path: Path, name: str) -> np.ndarray:
    """An array (without pickle) or a table of numbers with a header, out of the archive."""
    with tarfile.open(path) as tar, tempfile.TemporaryFile() as file:
        try:
            shutil.copyfileobj(tar.extractfile(name), file)
        except KeyError as error:
            raise ValueError(f"{path.name}: holds no {name}") from error
        file.seek(0)
        if name.endswith(".npy"):
            return np.load(file, allow_pickle=False)
        return np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)


def _split(data: np.ndarray) -> list[np.ndarray]:
    """The last tenth to judge by, the last tenth of the rest to choose by."""
    tenth = int(0.1 * len(data))
    rest = data[: len(data) - tenth]
    tenth_of_rest = int(0.1 * len(rest))
    return [rest[: len(rest) - tenth_of_rest], rest[len(rest) - tenth_of_rest :], data[len(data) - tenth :]]


def _standardised(parts: list[np.ndarray]) -> list[np.ndarray]:
    both = np.vstack(parts[:2])
    mean, std = both.mean(0), both.std(0)
    return [(part - mean) / std for part in parts]


def _power(path: Path) -> list[np.ndarray]:
    source = np.random.RandomState(42)  # the shuffle of the literature
    data = _member(path, "data/power/data.npy")
    source.shuffle(data)
    data = np.delete(data, [1, 3], axis=1)  # reactive power and the rounded copy of another column
    steps = np.array([0.001, 0.01, 1, 1, 1, 0])  # to what the columns were rounded; the last one is the time of day
    return _standardised(_split(data + steps * source.rand(*data.shape)))


def _miniboone(path: Path) -> list[np.ndarray]:
    return _standardised(_split(_member(path, "data/miniboone/data.npy")))


def _hepmass(path: Path) -> list[np.ndarray]:
    # The first column is the class, of which 1 is the signal; the test file has a stray column at the end.
    files = [_member(path, f"data/hepmass/1000_{part}.csv") for part in ("train", "test")]
    train, test = (rows[rows[:, 0] == 1, 1:] for rows in files)
    test = test[:, : train.shape[1]]
    mean, std = train.mean(0), train.std(0)
    train, test = (train - mean) / std, (test - mean) / std
    # Features that take their smallest value again and again are not continuous; the literature leaves them out.
    smooth = (train == train.min(0)).sum(0) <= 5
    tenth = int(0.1 * len(train))
    train, test = train[:, smooth], test[:, smooth]
    return [train[: len(train) - tenth], train[len(train) - tenth :], test]


def _gas(path: Path) -> list[np.ndarray]:
    with zipfile.ZipFile(path) as archive, archive.open("ethylene_CO.txt") as file:
        data = np.loadtxt(file, skiprows=1, ndmin=2)[:, 3:]  # without time and the two concentrations
    data = data[::4] if len(data) > 4_000_000 else data  # the archive's pickle has a quarter of the 4,208,261 rows
    while True:  # of sensors that say nearly the same, the first is left out, until there are none
        twins = (np.corrcoef(data.T) > 0.98).sum(1)
        if (twins <= 1).all():
            break
        data = np.delete(data, int((twins > 1).argmax()), axis=1)
    return _split((data - data.mean(0)) / data.std(0))
