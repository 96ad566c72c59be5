"""Make, check and run the notebooks; the py:percent twin of a notebook is its only source.

    python tools/notebooks.py sync [--chapter NN] [--all] [PATHS]   make the .ipynb of each .py, executed at quick size
    python tools/notebooks.py check                                 is every stored notebook what sync makes?
    python tools/notebooks.py run [--chapter NN]                    run the chapters as scripts, print their claims

``sync`` formats the code cells with ruff and writes them back to the .py, so that an author only edits the .py.
It executes a notebook whose code cells differ from those of the stored .ipynb, whose stored .ipynb has a problem, or
which is named by --chapter or a path; --all executes every notebook. A change of prose alone keeps the stored
outputs, and a change inside refimpl is not seen: after one, name the chapters that use it or give --all.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from launch import repository
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from notebook_check import check_notebook, check_tree
from notebook_store import CLAIM_LINE, build, code_cells, finish, reduce_outputs, to_text, widget_errors, with_launch

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"REFIMPL_SIZE": "quick", "REFIMPL_DEVICE": "cpu", "REFIMPL_SEED": "0", "PYTHONHASHSEED": "0"}


class Failed(Exception):
    """A notebook that could not be made; the message is for its author."""


class OwnInterpreter(KernelSpecManager):
    """Starts the interpreter that runs this script, whatever kernels the user has registered."""

    def get_kernel_spec(self, kernel_name):
        """The kernel of this environment, under any name."""
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


def twins(root: Path, chapter: str | None = None, paths: list[Path] | None = None) -> list[Path]:
    """The .py twins of all notebooks, of one chapter and its sheet, or of the files and folders named."""
    texts = sorted((root / "chapters").glob("*.py")) + sorted((root / "solutions").glob("*/*.py"))
    if chapter:
        texts = [p for p in texts if p.name.startswith(f"{int(chapter):02d}_")]
    if paths:
        wanted = [p.resolve().with_suffix(".py") if p.suffix else p.resolve() for p in paths]
        texts = [p for p in texts if any(p.resolve() == w or w in p.resolve().parents for w in wanted)]
    if not texts and (chapter or paths):
        raise SystemExit("no notebook of that name")
    return texts


def ruff(nb, name: str, root: Path):
    """Format and lint the code cells in place.

    Raises:
        Failed: if ruff reports something that it can't mend.
    """
    # Sorting imports may carry a line across a BEGIN SOLUTION or BEGIN HIDDEN TESTS comment.
    careful = ["--unfixable", "I001"] if name.startswith("solutions") else []
    text = nbformat.writes(nb)
    lint = ["check", "--fix", "--quiet", "--output-format", "concise", *careful]
    for command in (["format"], lint, ["format"]):
        call = [sys.executable, "-m", "ruff", *command, "--stdin-filename", name, "-"]
        done = subprocess.run(call, input=text, capture_output=True, text=True, cwd=root, encoding="utf-8")
        if done.returncode:
            raise Failed(f"ruff: {done.stderr.strip() or done.stdout.strip()[-2000:]}")
        text = done.stdout
    for cell, clean in zip(nb.cells, nbformat.reads(text, as_version=4).cells, strict=True):
        cell.source = clean.source
    return finish(nb)


def execute(nb, folder: Path, timeout: int) -> None:
    """Run the notebook in ``folder`` at quick size on the CPU.

    Raises:
        Failed: with the cell and its traceback, if a cell fails or takes longer than ``timeout`` seconds.
    """
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=OwnInterpreter())
    client = NotebookClient(nb, timeout=timeout, km=manager, record_timing=False, coalesce_streams=True)
    with tempfile.TemporaryDirectory() as home, open(Path(home) / "kernel.log", "w+") as log:
        env = {"OMP_NUM_THREADS": "1"} | os.environ | QUICK | {"IPYTHONDIR": home}
        try:
            asyncio.run(client.async_execute(cwd=str(folder), env=env, stderr=log, cleanup_kc=True))
        except (CellExecutionError, CellTimeoutError) as error:
            numbered = list(enumerate(code_cells(nb), start=1))
            started = [(n, cell) for n, cell in numbered if cell.execution_count is not None or cell.outputs]
            number, cell = next((x for x in numbered if _raised(x[1])), started[-1] if started else numbered[0])
            raise Failed(f"code cell {number} failed:\n\n{cell.source}\n\n{_plain(str(error))}") from None
        except DeadKernelError:
            log.seek(0)
            raise Failed(f"the kernel died\n{log.read()[-2000:]}") from None
    if errors := widget_errors(nb):
        raise Failed("inside a widget:\n" + _plain("\n".join(errors[0]["traceback"])))


def _raised(cell) -> bool:
    return any(output.output_type == "error" for output in cell.outputs)


def _plain(text: str) -> str:
    return text if sys.stdout.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text)


def write(path: Path, text: str) -> bool:
    """Replace a file's text at once; a file that has it already is left alone."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
    return True


def sync_one(py: Path, root: Path, force: bool, timeout: int) -> str:
    """Make one notebook from its twin; returns what was done.

    Raises:
        Failed: if the notebook can't be made; nothing is written then.
    """
    name, kind = py.relative_to(root).as_posix(), py.relative_to(root).parts[0]
    before = py.read_text(encoding="utf-8")
    nb = build(before)
    if kind == "chapters":
        with_launch(nb, repository(root))
    ruff(nb, name.removesuffix(".py") + ".ipynb", root)
    text = to_text(nb)
    if [(c.cell_type, c.source, c.metadata) for c in build(text).cells] != [
        (c.cell_type, c.source, c.metadata) for c in nb.cells
    ]:
        raise Failed("a cell does not survive the way to py:percent and back (a line that starts with '# %%'?)")
    ipynb = py.with_suffix(".ipynb")
    stored = nbformat.read(ipynb, as_version=4) if ipynb.exists() else None
    same = stored is not None and [c.source for c in code_cells(stored)] == [c.source for c in code_cells(nb)]
    if same and not force and not check_notebook(ipynb, root, twin=False):
        for cell, old in zip(code_cells(nb), code_cells(stored), strict=True):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
        done = "kept its outputs"
    else:
        execute(nb, py.parent, timeout)
        reduce_outputs(nb, kind)
        done = "executed"
    if py.read_text(encoding="utf-8") != before:
        raise Failed("the .py changed while it was being executed: run sync again")
    nbformat.validate(nb)
    changed = [write(py, text), write(ipynb, nbformat.writes(nb) + "\n")]
    return done + ("" if any(changed) else ", unchanged")


def sync(args: argparse.Namespace) -> int:
    """Make the notebooks; returns 1 if one of them fails."""
    texts = twins(args.root, args.chapter, args.paths)
    force = bool(args.all or args.chapter or args.paths)
    failed = []

    def one(py: Path) -> None:
        start, name = time.perf_counter(), py.relative_to(args.root).with_suffix("").as_posix()
        try:
            done, trouble = sync_one(py, args.root, force, args.timeout), ""
        except (Failed, ValueError) as error:
            done, trouble = "FAILED", f"\n{error}\n"
            failed.append(name)
        print(f"{name}: {done}, {time.perf_counter() - start:.1f} s{trouble}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, texts))
    print(f"{len(texts)} notebooks, {len(failed)} failed")
    return 1 if failed else 0


def check(args: argparse.Namespace) -> int:
    """Print one line a problem; returns 1 if there is one."""
    problems, count = check_tree(args.root)
    print(*problems, f"{count} notebooks, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


def run(args: argparse.Namespace) -> int:
    """Run each chapter as a script from a foreign folder and print its claims; returns 1 if one fails.

    The size, the device and the seed are the caller's (``REFIMPL_SIZE=full ... run --chapter 01``).
    """
    texts = [p for p in twins(args.root, args.chapter) if p.parent == args.root / "chapters"]
    failed = []
    for py in texts:
        start, lines = time.perf_counter(), []
        print(py.stem, flush=True)
        env = os.environ | {"MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"}
        with tempfile.TemporaryDirectory() as folder:
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
            with subprocess.Popen([sys.executable, str(py)], cwd=folder, env=env, **pipe) as process:
                for line in process.stdout:
                    lines = [*lines[-60:], line]
                    if CLAIM_LINE.match(line):
                        print(f"  {line}", end="", flush=True)
        if process.returncode:
            failed.append(py.stem)
            print(f"  FAILED with exit status {process.returncode}\n\n" + "".join(lines))
        print(f"  {time.perf_counter() - start:.1f} s", flush=True)
    print(f"{len(texts)} chapters, {len(failed)} failed")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=lambda p: Path(p).resolve(), default=ROOT, help="another repository's folder")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("sync", help="make the notebooks from their .py twins")
    one.add_argument("paths", nargs="*", type=Path)
    one.add_argument("--chapter", metavar="NN", help="this chapter and its exercise sheet")
    one.add_argument("--all", action="store_true", help="execute every notebook")
    one.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    one.add_argument("--timeout", type=int, default=300, help="seconds a cell may take")
    one.set_defaults(call=sync)
    commands.add_parser("check", help="check the stored notebooks").set_defaults(call=check)
    one = commands.add_parser("run", help="run the chapters as scripts and print their claims")
    one.add_argument("--chapter", metavar="NN")
    one.set_defaults(call=run)
    args = parser.parse_args(argv)
    return args.call(args)


if __name__ == "__main__":
    sys.exit(main())
