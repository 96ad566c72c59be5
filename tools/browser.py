"""Find the Chromium that drives the browser tests.

    python tools/browser.py            print where it is
    python tools/browser.py ensure     the same; when CI=true and there is none, install Debian's package

On your own machine nothing is installed: `ensure` then says how to get a Chromium, and the browser tests are skipped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
ADVICE = (
    "no Chromium found: install the package `chromium` (Debian, Ubuntu, Fedora) or Google Chrome, "
    "or set CHROMIUM to the program"
)


def find(environ: Mapping[str, str] = os.environ) -> str | None:
    """The Chromium to use, or None.

    Raises:
        ValueError: if CHROMIUM is set to something that cannot be run.
    """
    if chosen := environ.get("CHROMIUM"):
        if path := shutil.which(chosen, path=environ.get("PATH")):
            return path
        raise ValueError(f"CHROMIUM={chosen!r} is not a program that can be run")
    for name in NAMES:
        if path := shutil.which(name, path=environ.get("PATH")):
            return path
    return next((path for path in APPLICATIONS if Path(path).exists()), None)


def in_ci(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a run of continuous integration, where nothing may be left out."""
    return environ.get("CI", "").lower() in {"1", "true", "yes"}


def apt_install(*packages: str) -> None:
    """Install Debian packages.

    Raises:
        RuntimeError: if there is no apt-get, no right to use it, or it fails.
    """
    if not shutil.which("apt-get"):
        raise RuntimeError(f"cannot install {' '.join(packages)}: there is no apt-get on this machine")
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "--yes", "--no-install-recommends", *packages]):
        try:
            subprocess.run([*prefix, "apt-get", *command], check=True, env=environ, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"cannot install {' '.join(packages)}: {error}") from error


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv not in ([], ["ensure"]):
        print(__doc__)
        return 2
    try:
        path = find()
        if path is None and argv and in_ci():
            apt_install("chromium", "fonts-dejavu-core", "fonts-liberation")
            path = find()
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    if path is None:
        print(ADVICE, file=sys.stderr)
        return 1 if in_ci() or not argv else 0
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
