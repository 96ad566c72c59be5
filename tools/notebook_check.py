"""What may not be in a stored notebook; each finding is one line that names the file, the cell and the remedy."""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from launch import repository
from notebook_store import CLAIM_LINE, WIDGET_VIEW, build, code_cells, is_checked, is_launch, launch_source

KINDS = ("chapters", "solutions", "exercises")
LIMIT_KB = {"chapters": 500, "solutions": 1000, "exercises": 1000}
MAX_LINES = 40
NAME = re.compile(r"\d\d_[a-z0-9_]+")
MACHINE = re.compile(r"(?<![\w/.:])/(?:home|Users|root|tmp|usr|var|opt|mnt|private)/[\w.-]|[A-Z]:\\Users|site-packages")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


def check_tree(root: Path) -> tuple[list[str], int]:
    """All problems of the notebooks under ``root`` and how many notebooks there are."""
    notebooks = [
        p for kind in KINDS for p in sorted((root / kind).rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts
    ]
    problems = [line for path in notebooks for line in check_notebook(path, root)]
    return problems + check_names(root), len(notebooks)


def check_names(root: Path) -> list[str]:
    """One number and one name: each chapter but 00 has a sheet of its name, each notebook has its twin."""
    problems = []
    texts = sorted((root / "chapters").glob("*.py")) + sorted((root / "solutions").glob("*/*.py"))
    problems += [f"{_name(p, root)}: no twin .ipynb: run sync" for p in texts if not p.with_suffix(".ipynb").exists()]
    chapters = sorted({p.stem for p in (root / "chapters").glob("*.*") if p.suffix in (".py", ".ipynb")})
    problems += [f"chapters/{name}: expected a name such as 01_some_words" for name in chapters if not _proper(name)]
    numbers = [name[:2] for name in chapters]
    problems += [f"chapters/{n}: its number is taken twice" for n in chapters if numbers.count(n[:2]) > 1]
    for kind in ("solutions", "exercises"):
        sheets = {p.name for p in (root / kind).glob("*") if p.is_dir() and not p.name.startswith((".", "__"))}
        wanted = {name for name in chapters if not name.startswith("00_")}
        problems += [f"{kind}/{name}: missing, though there is a chapter of that name" for name in wanted - sheets]
        problems += [f"{kind}/{name}: no chapter of that name" for name in sheets - set(chapters)]
        problems += [
            f"{kind}/{name}: no {name}.ipynb" for name in sheets if not (root / kind / name / f"{name}.ipynb").exists()
        ]
    return sorted(problems)


def _proper(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def check_notebook(path: Path, root: Path, twin: bool = True) -> list[str]:
    """Problems of one stored notebook, as lines; with ``twin=False``, of its outputs and metadata alone."""
    kind = path.relative_to(root).parts[0]
    name = _name(path, root)
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except (ValueError, nbformat.ValidationError) as error:
        return [f"{name}: not a notebook: {str(error).splitlines()[0]}"]
    found = []
    if (size := path.stat().st_size / 1000) > LIMIT_KB[kind]:
        found.append(f"{size:.0f} kB, at most {LIMIT_KB[kind]} allowed: fewer or smaller figures")
    if "widgets" in nb.metadata:
        found.append("holds metadata.widgets: run sync")
    if kind != "exercises" and twin:
        found += _against_twin(nb, path)
    if kind == "chapters":
        found += _launch(nb, root)
    found += _counts(nb, kind)
    for number, cell in enumerate(code_cells(nb), start=1):
        found += [f"code cell {number} {what}" for what in _cell(cell, kind, root)]
    return [f"{name}: {what}" for what in found]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _against_twin(nb, path: Path) -> list[str]:
    """How the notebook differs from what its twin makes, outputs aside."""
    twin = path.with_suffix(".py")
    if not twin.exists():
        return ["no twin .py"]
    made = build(twin.read_text(encoding="utf-8"))
    for number, (cell, other) in enumerate(zip(nb.cells, made.cells, strict=False), start=1):
        for part in ("cell_type", "source", "metadata", "id"):
            if cell.get(part) != other.get(part):
                return [f"cell {number} differs from the .py in its {part.replace('_', ' ')}: run sync"]
    if len(nb.cells) != len(made.cells):
        return [f"{len(nb.cells)} cells, the .py has {len(made.cells)}: run sync"]
    if {k: v for k, v in nb.metadata.items() if k != "widgets"} != made.metadata:
        return ["metadata other than the kernel's: run sync"]
    return []


def _launch(nb, root: Path) -> list[str]:
    cells = code_cells(nb)
    if not cells or not is_launch(cells[0]):
        return ["the first code cell is not the launch cell: run sync"]
    if cells[0].source != launch_source(repository(root)):
        return ["the launch cell is not the template with this repository's address: run sync"]
    return ["more than one launch cell"] if any(map(is_launch, cells[1:])) else []


def _counts(nb, kind: str) -> list[str]:
    cells = code_cells(nb)
    counts = [cell.execution_count for cell in cells]
    if kind == "exercises":
        return ["holds outputs or execution counts"] if any(counts) or any(cell.outputs for cell in cells) else []
    if kind == "chapters":
        missing = [n for n, count in enumerate(counts, start=1) if count is None]
        if missing:
            return [f"code cell {missing[0]} was not executed: run sync"]
        return [] if counts == list(range(1, len(cells) + 1)) else ["execution counts are not 1, 2, 3, ...: run sync"]
    if any(cell.outputs or cell.execution_count for cell in cells if not is_checked(cell)):
        return ["a cell without NBVAL_CHECK_OUTPUT holds output: run sync"]
    return []


def _cell(cell, kind: str, root: Path) -> list[str]:
    found = []
    if not cell.source.strip():
        found.append("is empty")
    if (lines := len(cell.source.splitlines())) > MAX_LINES:
        found.append(f"has {lines} lines, at most {MAX_LINES} allowed: split it")
    if kind != "exercises" and is_checked(cell) and not (cell.execution_count and cell.outputs):
        found.append("has NBVAL_CHECK_OUTPUT but no stored output, so nothing would be compared: run sync")
    for output in cell.outputs:
        if output.output_type == "error":
            found.append(f"holds an error: {output.ename}")
        if output.output_type == "stream" and output.name == "stderr":
            found.append("wrote to standard error: silence the warning or its cause")
        if WIDGET_VIEW in output.get("data", {}):
            found.append("holds the view of a widget: run sync")
        text = _text(output)
        if any(own in text for own in _own_paths(root)) or MACHINE.search(text):
            found.append("shows a path of the machine in its output")
        if ADDRESS.search(text):
            found.append("shows a memory address in its output: end its last line with a semicolon")
        if CLAIM_LINE.search(text) and output.output_type == "stream" and not is_checked(cell):
            found.append("prints a claim's verdict without NBVAL_CHECK_OUTPUT")
    return list(dict.fromkeys(found))


def _own_paths(root: Path) -> set[str]:
    paths = {str(root), sys.prefix, str(Path.home()), tempfile.gettempdir()}
    return {p for p in paths if len(Path(p).parts) > 2} | {f"{p}/" for p in paths if len(Path(p).parts) == 2}


def _text(output) -> str:
    """All that a reader sees of an output as text (pictures aside)."""
    data = output.get("data", {})
    parts = [str(value) for name, value in data.items() if not name.startswith("image/") or name == "image/svg+xml"]
    return "\n".join([output.get("text", ""), *parts, *output.get("traceback", [])])
