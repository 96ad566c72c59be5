"""Helpers of the browser tests: what a page did, a running JupyterLab, a quiet web server."""

import contextlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "build/screenshots"
PATIENCE = 900  # seconds; generous, because nothing here tests how fast the machine is

sys.path.insert(0, str(ROOT / "tools"))
import browser as finder  # noqa: E402


def leave_out(reason: str) -> None:
    """Skip the test on a user's machine; fail it in continuous integration, where nothing may be left out."""
    if finder.in_ci():
        pytest.fail(f"{reason} (CI must not skip this)", pytrace=False)
    pytest.skip(reason)


class Witness:
    """Collects what a page complained about and which requests left the machine."""

    def __init__(self, page):
        self.errors: list[str] = []
        self.outside: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        page.on("console", lambda message: message.type == "error" and self.errors.append(f"console: {message.text}"))
        page.on("request", self._request)

    def _request(self, request) -> None:
        local = ("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:")
        if not request.url.startswith(local):
            self.outside.append(request.url)


@dataclass
class Lab:
    """A running JupyterLab: its address, its token, the folder that it serves, its log."""

    base: str
    token: str
    work: Path
    log: Path

    def url(self, path: str) -> str:
        return f"{self.base}/{path}{'&' if '?' in path else '?'}token={self.token}"


def copy_course(work: Path) -> Path:
    """The part of the repository that `make lab` needs, copied to the folder `work`."""
    if not list((ROOT / "chapters").glob("*.ipynb")):
        leave_out("there are no chapters yet")
    work.mkdir()
    skip = shutil.ignore_patterns(".ipynb_checkpoints")
    for name in ("chapters", "exercises"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, work / name, ignore=skip)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, work / name)
    return work


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(lab: Lab, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, f"make lab ended:\n{lab.log.read_text()[-4000:]}"
        with contextlib.suppress(OSError), urllib.request.urlopen(lab.url("api"), timeout=5):
            return
        assert time.monotonic() < deadline, f"JupyterLab did not answer:\n{lab.log.read_text()[-4000:]}"
        time.sleep(0.3)


def stop(process: subprocess.Popen) -> None:
    """End the process with everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
            return


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass
