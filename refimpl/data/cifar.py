"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 coloured photographs of 32 x 32 pixels, for full-size runs.

Read from the archives in binary form, without pickle. Nothing is downloaded unless you ask for it.
"""

import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import pad

from refimpl import runtime

__all__ = ["augment", "cifar"]

PIXELS = 3 * 32 * 32


class Archive(NamedTuple):
    """Name and content of a file, and the layout of its records: labels, then pixels, one byte each."""

    name: str
    sha256: str
    num_bytes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_labels: int  # labels of a record; the last one is the class, before it may stand a coarser one

    @property
    def address(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.name}"


ARCHIVES = {
    10: Archive(
        "cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        170_052_171,
        tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        ("cifar-10-batches-bin/test_batch.bin",),
        1,
    ),
    100: Archive(
        "cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        169_001_437,
        ("cifar-100-binary/train.bin",),
        ("cifar-100-binary/test.bin",),
        2,
    ),
}


def cifar(
    classes: int = 10, *, folder: str | Path | None = None, download: bool = False
) -> tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, " n"], UInt8[Tensor, "m 3 32 32"], Int64[Tensor, " m"]]:
    """Training images, their classes, test images, their classes: 50,000 and 10,000, on the CPU.

    The archive's checksum is verified at each call (seconds), so that a damaged file is never used.

    Args:
        classes: 10 or 100: which of the two data sets.
        folder: where the archive lies, as it was downloaded; default ``REFIMPL_DATA`` (`refimpl.runtime.data_dir`).
        download: whether to fetch the archive (170 MB) if it is not there.

    Returns:
        Images as bytes (divide by 255 for numbers in [0, 1]) and classes 0..``classes`` - 1, in the files' order.

    Raises:
        ValueError: if ``classes`` is neither 10 nor 100, or the archive is damaged (and then renamed to ``*.damaged``).
        TypeError: if ``folder`` is not a path.
        FileNotFoundError: if the archive is missing and ``download`` is False; it says what to put where.
        ConnectionError: if it cannot be downloaded.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    if type(classes) is not int or classes not in ARCHIVES:
        raise ValueError(f"classes: got {classes!r}, expected 10 or 100")
    if folder is not None and not isinstance(folder, str | Path):
        raise TypeError(f"folder: got {folder!r}, expected a path")
    archive = ARCHIVES[classes]
    path = _fetch(archive, runtime.data_dir() if folder is None else Path(folder), download)
    with tarfile.open(path) as tar:
        train, test = (_read(tar, names, archive.num_labels, classes) for names in (archive.train, archive.test))
    return *train, *test


def augment(
    images: Shaped[Tensor, "batch c h w"], generator: torch.Generator | None = None, *, padding: int = 4
) -> Shaped[Tensor, "batch c h w"]:
    """Each image shifted by up to ``padding`` pixels along both axes (black moves in), and mirrored half of the time.

    Args:
        images: shape (batch, channels, height, width), any type and device.
        generator: source of shifts and mirrorings; one on the images' device saves a copy per call.
        padding: largest shift in pixels.

    Returns:
        New images of the same shape, type and device.

    Raises:
        TypeError, ValueError: if ``images`` are not a tensor of that shape, or ``padding`` is not a whole number >= 0.

    Source: He et al. 2016 (arXiv 1512.03385), Section 4.2.

    >>> augment(torch.zeros(2, 3, 32, 32), runtime.generator(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images: got {type(images).__name__}, expected a tensor")
    if images.ndim != 4:
        raise ValueError(f"images: got shape {tuple(images.shape)}, expected (batch, channels, height, width)")
    if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
        raise ValueError(f"padding: got {padding!r}, expected a whole number >= 0")
    n, c, h, w = images.shape
    source = generator.device if generator is not None else images.device
    draw = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=source).to(images.device)
    mirrored = torch.randint(2, (n, 1), generator=generator, device=source).to(images.device) == 1
    rows = draw[0] + torch.arange(h, device=images.device)  # (batch, height)
    columns = draw[1] + torch.arange(w, device=images.device)  # (batch, width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    batch, channel = torch.arange(n, device=images.device), torch.arange(c, device=images.device)
    padded = pad(images, [padding] * 4)
    return padded[batch[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def _fetch(archive: Archive, folder: Path, download: bool) -> Path:
    """Path of the archive once it is there and has its checksum."""
    path = folder / archive.name
    if not path.exists():
        what = f"{archive.address} ({archive.num_bytes / 1e6:.0f} MB)"
        if not download:
            raise FileNotFoundError(
                f"{path} is missing: put {what} there, pass download=True, or set REFIMPL_DATA to its folder"
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
                    f"cannot download {what}: {error}; with another machine, put it at {path}"
                ) from error
            part.replace(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        size, aside = path.stat().st_size, path.with_name(path.name + ".damaged")
        path.replace(aside)
        raise ValueError(
            f"{path.name}: got {size} bytes with SHA-256 {digest}, expected {archive.num_bytes} bytes with "
            f"{archive.sha256}; renamed to {aside}, download it again from {archive.address}"
        )
    return path


def _read(
    tar: tarfile.TarFile, names: tuple[str, ...], num_labels: int, classes: int
) -> tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
    """Images and classes of some files of the archive."""
    size, parts = num_labels + PIXELS, []
    for name in names:
        content = tar.extractfile(name).read()
        if not content or len(content) % size:
            raise ValueError(f"{name}: got {len(content)} bytes, expected records of {size} bytes each")
        parts.append(torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, size))
    records = torch.cat(parts)
    labels = records[:, num_labels - 1].long()
    if labels.max() >= classes:
        raise ValueError(f"{names[0]}: got the class {labels.max()}, expected 0 to {classes - 1}")
    # A copy, so that the images are contiguous and the records can be freed.
    return records[:, num_labels:].reshape(-1, 3, 32, 32).contiguous(), labels
