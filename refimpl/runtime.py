"""Device, size, seed and folders: the only module that reads the environment.

=====================  ==================================================  =============================
variable               meaning                                             default
=====================  ==================================================  =============================
``REFIMPL_SIZE``       ``quick`` (a laptop, minutes) or ``full`` (a GPU)   ``quick``
``REFIMPL_DEVICE``     ``cpu``, ``cuda``, ``cuda:1``, ...                  the GPU if there is one
``REFIMPL_SEED``       whole number that every chapter starts from         ``0``
``REFIMPL_RESULTS``    folder of the records of full-size runs             ``results/``
``REFIMPL_SCRATCH``    folder of checkpoints of full-size runs             ``build/``
``REFIMPL_DATA``       folder of downloaded data sets of full-size runs    ``data`` in the scratch folder
=====================  ==================================================  =============================
"""

import os
from pathlib import Path
from typing import TypeVar

import torch

__all__ = ["data_dir", "describe", "device", "generator", "results_dir", "scratch_dir", "seed", "size", "size_name"]

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


def device() -> torch.device:
    """Device that a chapter computes on: ``REFIMPL_DEVICE`` if set, else the GPU if there is one, else the CPU.

    Raises:
        ValueError: if ``REFIMPL_DEVICE`` is not a device name or names a device that this machine lacks.
    """
    name = os.environ.get("REFIMPL_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"REFIMPL_DEVICE: {name!r} is not a device name such as 'cpu' or 'cuda'") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"REFIMPL_DEVICE: {name!r} asks for a GPU; PyTorch sees {torch.cuda.device_count()} here")
    return chosen


def size_name() -> str:
    """``"quick"`` or ``"full"``.

    Raises:
        ValueError: if ``REFIMPL_SIZE`` is neither.
    """
    name = os.environ.get("REFIMPL_SIZE") or "quick"
    if name not in ("quick", "full"):
        raise ValueError(f"REFIMPL_SIZE: got {name!r}, expected 'quick' or 'full'")
    return name


def size(*, quick: T, full: T) -> T:
    """The one of two settings that this run uses.

    >>> size(quick=100, full=60_000)
    100
    """
    return quick if size_name() == "quick" else full


def seed() -> int:
    """The whole number that a chapter starts from.

    Raises:
        ValueError: if ``REFIMPL_SEED`` is not a whole number >= 0.
    """
    text = os.environ.get("REFIMPL_SEED") or "0"
    if not text.isdecimal():
        raise ValueError(f"REFIMPL_SEED: got {text!r}, expected a whole number >= 0")
    return int(text)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A seeded source of random numbers; on the CPU the same seed gives the same bits.

    Raises:
        ValueError: if ``seed`` is not a whole number >= 0, or this machine has no such ``device``.

    >>> bool((torch.rand(3, generator=generator(7)) == torch.rand(3, generator=generator(7))).all())
    True
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: got {seed!r}, expected a whole number >= 0")
    try:
        return torch.Generator(device=device).manual_seed(seed)
    except RuntimeError as error:
        raise ValueError(f"device: got {device!r}, expected a device of this machine, such as 'cpu'") from error


def describe() -> str:
    """One line that says what this run uses: size, device, seed, PyTorch's version."""
    where = device()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    return f"{size_name()} size on {where.type} ({name}), seed {seed()}, PyTorch {torch.__version__}"


def results_dir() -> Path:
    """Folder that holds the records of full-size runs."""
    return Path(os.environ.get("REFIMPL_RESULTS") or ROOT / "results")


def scratch_dir() -> Path:
    """Folder for checkpoints of full-size runs; nothing in it is committed."""
    return Path(os.environ.get("REFIMPL_SCRATCH") or ROOT / "build")


def data_dir() -> Path:
    """Folder of data sets that full-size runs download; nothing in it is committed."""
    return Path(os.environ.get("REFIMPL_DATA") or scratch_dir() / "data")
