"""A real Chromium, a real JupyterLab started by `make lab`, and the built book behind a local server."""

import functools
import http.server
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_support import (
    ROOT,
    SCREENSHOTS,
    Lab,
    QuietHandler,
    Witness,
    copy_course,
    finder,
    free_port,
    leave_out,
    stop,
    wait_until_up,
)


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, driven by playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        leave_out("playwright is not installed: pip install -e '.[browser]'")
    program = finder.find()
    if program is None:
        leave_out(finder.ADVICE)
    flags = [
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=flags)
        yield started
        started.close()


@pytest.fixture
def open_page(chromium, request) -> Iterator:
    """Function (width, height, colours) -> (page, witness); a screenshot of each page is kept."""
    contexts, pages = [], []

    def open_(width: int = 1400, height: int = 1000, colours: str = "light"):
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, color_scheme=colours))
        page = contexts[-1].new_page()
        page.set_default_timeout(180_000)
        pages.append(page)
        return page, Witness(page)

    yield open_
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages):
        name = re.sub(r"\W+", "-", request.node.name).strip("-")
        page.screenshot(path=str(SCREENSHOTS / f"{name}{number or ''}.png"))
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """What `make lab` starts, in a copy of the notebooks, with Jupyter folders, token and port of its own."""
    home = tmp_path_factory.mktemp("lab")
    work = copy_course(home / "work")
    settings = home / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "spaces", "IPYTHONDIR": "ipython"}
    token, port = secrets.token_hex(16), free_port()
    options = [
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
    ]
    options += ["--expose-app-in-browser", "--LabApp.extension_manager=readonly"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    prefix = Path(sys.prefix)
    command = ["make", "-s", "-o", str(prefix / ".course"), "lab", f"VENV={prefix}"]
    command.append(f"LAB_ARGS={' '.join(options)}")
    environ = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    environ |= {name: str(home / folder) for name, folder in folders.items()} | {"OMP_NUM_THREADS": "1"}
    started = Lab(f"http://127.0.0.1:{port}", token, work, home / "lab.log")
    with open(started.log, "w") as log:
        process = subprocess.Popen(
            command, cwd=work, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_until_up(started, process)
        yield started
    finally:
        stop(process)


@pytest.fixture(scope="session")
def book_folder() -> Path:
    """The built book; it is built when it is not there yet."""
    html = ROOT / "build/book/html"
    if not list((ROOT / "chapters").glob("*.ipynb")):
        leave_out("there are no chapters yet")
    if not (html / "index.html").is_file():
        run = subprocess.run([sys.executable, ROOT / "tools/book.py", "build"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    return html


@pytest.fixture(scope="session")
def book(book_folder: Path) -> Iterator[str]:
    """Address of a local server with the built book."""
    handler = functools.partial(QuietHandler, directory=str(book_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
