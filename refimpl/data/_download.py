"""One file from a public address into the folder of data sets: complete or not at all."""

import shutil
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from refimpl import runtime


def fetch(name: str, address: str, folder: str | Path | None, download: bool) -> Path:
    """Path of the file `name` in `folder` (default: `refimpl.runtime.data_dir`), downloaded if asked for.

    Raises:
        FileNotFoundError: if the file is missing and `download` is False; it says what to put where.
        ConnectionError: if it cannot be downloaded.
        TypeError: if `folder` is not a path.
    """
    if folder is not None and not isinstance(folder, str | Path):
        raise TypeError(f"folder: got {folder!r}, expected a path")
    path = (runtime.data_dir() if folder is None else Path(folder)) / name
    if path.exists():
        return path
    if not download:
        raise FileNotFoundError(
            f"{path} is missing: put {address} there, pass download=True, or set REFIMPL_DATA to its folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
        part = Path(unfinished) / name
        try:
            with urllib.request.urlopen(address, timeout=60) as response, part.open("wb") as file:
                shutil.copyfileobj(response, file)
        except (OSError, HTTPException) as error:
            raise ConnectionError(
                f"cannot download {address}: {error}; with another machine, put it at {path}"
            ) from error
        part.replace(path)
    return path
