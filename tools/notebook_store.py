"""What a stored notebook is: a pure function of its py:percent twin, plus outputs reduced to what a reader needs.

Used by notebooks.py. Nothing here executes a notebook or touches the disk.
"""

import base64
import hashlib
import io
import re

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_notebook

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
CHECK_OUTPUT = re.compile(r"^\s*#\s*NBVAL_CHECK_OUTPUT\s*$", re.MULTILINE)
CLAIM_LINE = re.compile(r"^[A-Z]+-\d+ (holds|does not hold): ", re.MULTILINE)
# JupyterLab and jupytext leave these in a cell's metadata; none of them belongs to the notebook's content.
TRANSIENT = ("lines_to_next_cell", "execution", "collapsed", "scrolled", "ExecuteTime", "jupyter")

# Not `try: import refimpl`, which ruff reports as an unused import.
LAUNCH = """\
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("refimpl") is None:  # for example on Colab: install the course from its repository
    package = "refimpl[course] @ git+{address}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)"""


def launch_source(address: str) -> str:
    """Source of the first code cell of each chapter; it does nothing where ``refimpl`` is installed."""
    return LAUNCH.format(address=address)


def is_launch(cell) -> bool:
    """Whether the cell carries the tag ``launch``."""
    return "launch" in cell.metadata.get("tags", [])


def is_checked(cell) -> bool:
    """Whether nbval compares the cell's output with the stored one."""
    return cell.cell_type == "code" and bool(CHECK_OUTPUT.search(cell.source))


def code_cells(nb) -> list:
    """The notebook's code cells, in order."""
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def build(text: str):
    """Notebook without outputs from the text of a twin: ids from content, no metadata but the kernel's and the cells'."""
    nb = new_notebook(cells=jupytext.reads(text, fmt="py:percent").cells)
    nb.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    return finish(nb)


def finish(nb):
    """Give each cell the id that follows from its content, and drop metadata that is not content."""
    seen: dict[str, int] = {}
    for cell in nb.cells:
        key = hashlib.sha1(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[key] = seen.get(key, 0) + 1
        cell["id"] = key if seen[key] == 1 else f"{key}-{seen[key]}"
        for name in TRANSIENT:
            cell.metadata.pop(name, None)
    nb.nbformat, nb.nbformat_minor = 4, 5
    return nb


def to_text(nb) -> str:
    """The py:percent twin of a notebook, without the version of the tool that wrote it."""
    bare = new_notebook(cells=nb.cells, metadata={"kernelspec": KERNELSPEC})
    text = jupytext.writes(bare, fmt="py:percent")
    return re.sub(r"^# +jupytext_version: .*\n", "", text, count=1, flags=re.MULTILINE)


def with_launch(nb, address: str):
    """The notebook with exactly one, current launch cell, which is its first code cell.

    It stays where it is if only prose comes before it; a missing one is put after the first prose cell.
    """
    launch = new_code_cell(launch_source(address), metadata={"tags": ["launch"]})
    at = next((i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"), None)
    cells = [cell for cell in nb.cells if not is_launch(cell)]
    if at is None or not is_launch(nb.cells[at]):
        at = 1 if cells and cells[0].cell_type == "markdown" else 0
    nb.cells = [*cells[:at], launch, *cells[at:]]
    return finish(nb)


def widget_states(nb) -> dict:
    """State of each widget model that an executed notebook holds, by model id."""
    return nb.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})


def widget_errors(nb) -> list:
    """Error outputs inside Output widgets; a notebook runs on after them, so nothing else reports them."""
    outputs = (o for model in widget_states(nb).values() for o in model["state"].get("outputs", []))
    return [o for o in outputs if o["output_type"] == "error"]


def reduce_outputs(nb, kind: str):
    """Keep of an executed notebook what is stored; ``kind`` is ``"chapters"`` or ``"solutions"``.

    A widget's view is replaced by what its Output areas showed (the figure below a slider stays as a still figure),
    progress bars vanish, neighbouring streams become one, pictures get a palette. Execution counts run from 1;
    in solutions only the cells that nbval compares keep output and count.
    """
    states = widget_states(nb)
    count = 0
    for cell in code_cells(nb):
        keep = kind == "chapters" or is_checked(cell)
        count += keep
        cell.execution_count = count if keep else None
        outputs = [kept for output in cell.outputs for kept in _stills(output, states)] if keep else []
        cell.outputs = _merge_streams(outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            for name in [n for n in output.get("data", {}) if n == "image/png"]:
                output.data[name] = quantise(output.data[name])
    nb.metadata.pop("widgets", None)
    nb.metadata.language_info = nbformat.from_dict({"name": "python"})
    return finish(nb)


def _stills(output, states: dict) -> list:
    """The output itself, or for a widget's view what the widget's Output areas hold."""
    if WIDGET_VIEW not in output.get("data", {}):
        return [output]
    return [nbformat.from_dict(o) for o in _shown(output.data[WIDGET_VIEW]["model_id"], states)]


def _shown(model_id: str, states: dict) -> list:
    state = states.get(model_id, {}).get("state", {})
    inner = [o for child in state.get("children", []) for o in _shown(child.removeprefix("IPY_MODEL_"), states)]
    return [o for o in state.get("outputs", []) if WIDGET_VIEW not in o.get("data", {})] + inner


def _merge_streams(outputs: list) -> list:
    merged: list = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                output.text = re.sub(r"^.*\d+%\|.*(\n|$)", "", output.text, flags=re.MULTILINE).lstrip("\r\n")
            if merged and merged[-1].output_type == "stream" and merged[-1].name == output.name:
                merged[-1].text += output.text
                continue
            if not output.text:
                continue
        merged.append(output)
    return merged


def quantise(png: str, colours: int = 256) -> str:
    """A base64 PNG with a palette of at most ``colours`` and no metadata; the original if that is not smaller.

    A picture with a palette comes back unchanged, so that doing it twice changes nothing.
    """
    from PIL import Image

    raw = base64.b64decode(png)
    with Image.open(io.BytesIO(raw)) as picture:
        if picture.mode == "P":
            return png
        rgba = picture.convert("RGBA")
    flat = Image.new("RGB", rgba.size, "white")
    flat.paste(rgba, mask=rgba.getchannel("A"))
    buffer = io.BytesIO()
    flat.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        buffer, format="PNG", optimize=True
    )
    small = buffer.getvalue()
    return base64.b64encode(small).decode() if len(small) < len(raw) else png
