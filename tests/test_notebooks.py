"""The tool that makes, checks and runs notebooks, on small notebooks of its own."""

import base64
import io
import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import notebook_check
import notebook_store
import notebooks

PYPROJECT = """\
[project]
urls = { Repository = "https://github.com/someone/course" }

[tool.ruff]
line-length = 120
"""
CHAPTER = """\
# %% [markdown]
# # Demo
# Some $x^2$.

# %%
import math
def area( r ): return math.pi*r**2
values = [area(r) for r in range(3)]
values.append(0);

# %%
from IPython.display import display
import ipywidgets
area_of_widget = ipywidgets.Output()
with area_of_widget:
    print("shown below the slider")
display(ipywidgets.VBox([ipywidgets.FloatSlider(), area_of_widget]))

# %%
print("a")
print("b")
len(values)

# %%
# NBVAL_CHECK_OUTPUT
print("GS-1 holds: a circle is round")
"""
SHEET = """\
# %% [markdown]
# # Sheet

# %%
print("not stored")

# %%
# NBVAL_CHECK_OUTPUT
print("stored")
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A course of one chapter and one sheet whose notebooks were made once."""
    root = tmp_path_factory.mktemp("made")
    (root / "pyproject.toml").write_text(PYPROJECT)
    for folder, text in (("chapters", CHAPTER), ("solutions/01_demo", SHEET)):
        (root / folder).mkdir(parents=True)
        (root / folder / "01_demo.py").write_text(text)
    (root / "exercises" / "01_demo").mkdir(parents=True)
    nbformat.write(notebook_store.build(SHEET), root / "exercises" / "01_demo" / "01_demo.ipynb")
    assert notebooks.main(["--root", str(root), "sync"]) == 0
    return root


@pytest.fixture
def course(made, tmp_path) -> Path:
    """A copy of that course to spoil."""
    return Path(shutil.copytree(made, tmp_path / "course"))


def chapter(root: Path):
    return nbformat.read(root / "chapters" / "01_demo.ipynb", as_version=4)


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def sync(root: Path, *arguments: str) -> int:
    return notebooks.main(["--root", str(root), "sync", *arguments])


def test_a_made_course_has_no_problem(course, capsys):
    assert notebooks.main(["--root", str(course), "check"]) == 0
    assert capsys.readouterr().out.strip() == "3 notebooks, 0 problems"


def test_stored_chapter(course):
    nb = chapter(course)
    assert nb.metadata == {"kernelspec": notebook_store.KERNELSPEC, "language_info": {"name": "python"}}
    cells = notebook_store.code_cells(nb)
    assert [c.execution_count for c in cells] == [1, 2, 3, 4, 5]
    assert cells[0].source == notebook_store.launch_source("https://github.com/someone/course")
    assert nb.cells[0].cell_type == "markdown" and nb.cells[1] == cells[0]
    # The widget's view is gone and what its Output area showed has stayed.
    assert [o.text for o in cells[2].outputs] == ["shown below the slider\n"]
    assert [(o.output_type, o.get("text")) for o in cells[3].outputs] == [
        ("stream", "a\nb\n"),
        ("execute_result", None),
    ]


def test_stored_solution_keeps_only_what_nbval_compares(course):
    nb = nbformat.read(course / "solutions" / "01_demo" / "01_demo.ipynb", as_version=4)
    cells = notebook_store.code_cells(nb)
    assert [(c.execution_count, len(c.outputs)) for c in cells] == [(None, 0), (1, 1)]


def test_formatted_code_goes_back_to_the_twin(course):
    text = (course / "chapters" / "01_demo.py").read_text()
    assert "def area(r):\n    return math.pi * r**2\n" in text
    assert "values.append(0);" in text
    assert "jupytext_version" not in text
    assert text.count('# %% tags=["launch"]') == 1


def test_sync_twice_gives_the_same_bytes(course, capsys):
    before = content(course)
    assert sync(course) == 0
    assert "kept its outputs, unchanged" in capsys.readouterr().out
    assert sync(course, "--all", "--jobs", "2") == 0
    assert "executed, unchanged" in capsys.readouterr().out
    assert content(course) == before


def test_a_change_of_prose_keeps_the_outputs(course, capsys):
    twin = course / "chapters" / "01_demo.py"
    twin.write_text(twin.read_text().replace("Some", "Much"))
    assert notebooks.main(["--root", str(course), "check"]) == 1
    assert "chapters/01_demo.ipynb: cell 1 differs from the .py in its source" in capsys.readouterr().out
    old = chapter(course)
    assert sync(course) == 0
    assert "chapters/01_demo: kept its outputs" in capsys.readouterr().out
    new = chapter(course)
    assert "Much" in new.cells[0].source
    assert [c for c in new.cells[1:]] == [c for c in old.cells[1:]]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def fail():\n    raise ValueError('no such thing')\n\n\nfail()",
            ["code cell 6 failed", "fail()", "no such thing"],
        ),
        ("with area_of_widget:\n    raise KeyError('inside')", ["inside a widget", "KeyError"]),
        ("import os\n\nos._exit(3)", ["the kernel died"]),
        ("if True print(1)", ["ruff", "01_demo.ipynb"]),
    ],
)
def test_a_failing_cell_is_shown_and_nothing_is_written(course, capsys, code, said):
    twin = course / "chapters" / "01_demo.py"
    twin.write_text(twin.read_text() + f"\n# %%\n{code}\n")
    before = content(course)
    assert sync(course, str(twin)) == 1
    output = capsys.readouterr().out
    assert all(words in output for words in said), output
    assert content(course) == before


def test_the_kernel_is_this_interpreter(course, tmp_path, monkeypatch):
    spec = tmp_path / "data" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "mine", "language": "python"}))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    assert sync(course, str(course / "solutions")) == 0


def spoil_error(nb):
    nb.cells[2].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]


def spoil_source(nb):
    nb.cells[2].source += "\nprint(1)"


def spoil_path(nb):
    nb.cells[-1].outputs[0].text += f"{Path.home()}/course/chapters\n"


def spoil_size(nb):
    noise = base64.b64encode(bytes(450_000)).decode()
    nb.cells[2].outputs = [nbformat.v4.new_output("display_data", data={"image/png": noise})]


def spoil_widget(nb):
    view = {notebook_store.WIDGET_VIEW: {"model_id": "0"}}
    nb.cells[2].outputs = [nbformat.v4.new_output("display_data", data=view)]


def spoil_stderr(nb):
    nb.cells[2].outputs = [nbformat.v4.new_output("stream", name="stderr", text="UserWarning: x")]


def spoil_address(nb):
    nb.cells[2].outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": "<Line at 0x7f3a12bc>"})]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_error, "code cell 2 holds an error: ValueError"),
        (spoil_source, "cell 3 differs from the .py in its source"),
        (spoil_path, "shows a path of the machine"),
        (spoil_size, "at most 500 allowed"),
        (spoil_widget, "holds the view of a widget"),
        (spoil_stderr, "wrote to standard error"),
        (spoil_address, "memory address"),
        (lambda nb: nb.metadata.update(widgets={}), "holds metadata.widgets"),
        (lambda nb: nb.metadata.update(authors=[]), "metadata other than the kernel's"),
        (lambda nb: nb.cells[2].update(execution_count=7), "execution counts are not 1, 2, 3"),
        (lambda nb: nb.cells[2].update(execution_count=None), "code cell 2 was not executed"),
        (lambda nb: nb.cells[-1].update(outputs=[]), "NBVAL_CHECK_OUTPUT but no stored output"),
        (lambda nb: nb.cells[2].metadata.update(tags=["x"]), "cell 3 differs from the .py in its metadata"),
        (lambda nb: nb.cells.pop(), "5 cells, the .py has 6"),
        (lambda nb: nb.cells[2].update(id="zzz"), "cell 3 differs from the .py in its id"),
    ],
)
def test_check_finds_what_must_not_be_stored(course, spoil, said):
    nb = chapter(course)
    spoil(nb)
    path = course / "chapters" / "01_demo.ipynb"
    path.write_text(nbformat.writes(nb))
    problems = notebook_check.check_notebook(path, course)
    assert any(said in line and line.startswith("chapters/01_demo.ipynb: ") for line in problems), problems


def test_check_finds_a_wrong_launch_cell(course):
    (course / "pyproject.toml").write_text(PYPROJECT.replace("someone", "other"))
    path = course / "chapters" / "01_demo.ipynb"
    assert any(
        "not the template with this repository's address" in p for p in notebook_check.check_notebook(path, course)
    )
    assert sync(course) == 0
    assert notebook_check.check_notebook(path, course) == []
    assert "someone" not in path.read_text()


def test_check_finds_a_checked_cell_that_never_ran_in_a_solution(course):
    path = course / "solutions" / "01_demo" / "01_demo.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells[-1].execution_count = None
    nbformat.write(nb, path)
    assert any("nothing would be compared" in line for line in notebook_check.check_notebook(path, course))


def test_check_finds_long_cells_and_verdicts_that_nbval_would_not_compare(course):
    twin = course / "chapters" / "01_demo.py"
    body = "\n".join(f"x{i} = {i}" for i in range(41))
    text = twin.read_text().replace("# NBVAL_CHECK_OUTPUT\n", "")
    twin.write_text(text + f"\n# %%\n{body}\n")
    assert sync(course) == 0
    problems, _ = notebook_check.check_tree(course)
    assert any("code cell 6 has 41 lines" in line for line in problems)
    assert any("verdict without NBVAL_CHECK_OUTPUT" in line for line in problems)


def test_check_finds_broken_names(course):
    shutil.copy(course / "chapters" / "01_demo.py", course / "chapters" / "02_alone.py")
    shutil.move(course / "exercises" / "01_demo", course / "exercises" / "01_other")
    problems = notebook_check.check_names(course)
    for line in (
        "chapters/02_alone.py: no twin .ipynb: run sync",
        "exercises/01_demo: missing, though there is a chapter of that name",
        "exercises/01_other: no chapter of that name",
        "solutions/02_alone: missing, though there is a chapter of that name",
    ):
        assert line in problems


def test_exercises_hold_no_outputs(course):
    path = course / "exercises" / "01_demo" / "01_demo.ipynb"
    shutil.copy(course / "solutions" / "01_demo" / "01_demo.ipynb", path)
    assert notebook_check.check_notebook(path, course) == [
        "exercises/01_demo/01_demo.ipynb: holds outputs or execution counts"
    ]


def test_run_prints_the_claims_and_fails_with_the_script(course, capfd):
    assert notebooks.main(["--root", str(course), "run"]) == 0
    assert "  GS-1 holds: a circle is round\n" in capfd.readouterr().out
    (course / "chapters" / "01_demo.py").write_text("print('GS-1 does not hold: x')\nraise SystemExit('broken')\n")
    assert notebooks.main(["--root", str(course), "run", "--chapter", "01"]) == 1
    output = capfd.readouterr().out
    assert "  GS-1 does not hold: x\n" in output and "broken" in output


def test_unknown_names_are_refused(course):
    with pytest.raises(SystemExit, match="no notebook"):
        sync(course, "--chapter", "17")


def test_pictures_get_a_palette_once():
    picture = Image.effect_noise((64, 64), 80).convert("RGBA")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    small = notebook_store.quantise(png)
    assert len(small) < len(png)
    assert notebook_store.quantise(small) == small
    with Image.open(io.BytesIO(base64.b64decode(small))) as stored:
        assert stored.mode == "P" and stored.size == (64, 64)


def test_progress_bars_do_not_stay():
    streams = [
        nbformat.v4.new_output("stream", name="stderr", text=" 10%|#     | 3/30 [00:00<00:01]"),
        nbformat.v4.new_output("stream", name="stdout", text="done\n"),
    ]
    cell = nbformat.v4.new_code_cell("fit()", outputs=streams, execution_count=1)
    nb = notebook_store.reduce_outputs(nbformat.v4.new_notebook(cells=[cell]), "chapters")
    assert [o.text for o in nb.cells[0].outputs] == ["done\n"]
