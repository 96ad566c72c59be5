"""A chapter runs from top to bottom in a real JupyterLab, its equations are set, and its slider redraws the picture."""

import json
import os
import time
import urllib.error
import urllib.request

import pytest
from browser_support import PATIENCE, SCREENSHOTS, Lab

pytestmark = pytest.mark.browser

CHAPTERS = ["chapters/02_paths_between_minima.ipynb", "chapters/08_manifold_free_form_flows.ipynb"]
HANDLE = ".jp-OutputArea .widget-slider .noUi-handle"
KERNEL_IDLE = """() => {
  const session = window.jupyterapp.shell.currentWidget?.sessionContext;
  return session?.session?.kernel?.status === 'idle';
}"""
# Whether the picture beside the first slider is another one than before.
REDRAWN = """before => {
  const areas = Array.from(document.querySelectorAll('.jp-Cell-outputArea'));
  const picture = areas.find(area => area.querySelector('.noUi-handle'))?.querySelector('.widget-output img');
  return !!picture?.src && picture.src !== before;
}"""
# The notebook's model knows each cell, whether or not it is in view.
CELLS = """() => Array.from(window.jupyterapp.shell.currentWidget.content.model.cells, cell => ({
  kind: cell.type,
  source: cell.sharedModel.source,
  count: cell.type === 'code' ? cell.executionCount : null,
  errors: cell.type === 'code' ? cell.outputs.toJSON().filter(o => o.output_type === 'error').map(o => o.evalue) : [],
}))"""


def run_all(page, lab: Lab, path: str) -> list[dict]:
    """Open a notebook, run all of its cells, and wait for the last one."""
    page.goto(lab.url(f"lab/tree/{path}?reset"))
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    page.wait_for_function(KERNEL_IDLE)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    deadline = time.monotonic() + PATIENCE
    while True:
        cells = page.evaluate(CELLS)
        failed = [(cell["source"], cell["errors"]) for cell in cells if cell["errors"]]
        assert not failed, f"a cell of {path} failed: {failed[0][1]}\n{failed[0][0]}"
        waiting = [cell for cell in cells if cell["kind"] == "code" and cell["source"].strip() and not cell["count"]]
        if not waiting and page.evaluate(KERNEL_IDLE):
            return cells
        assert time.monotonic() < deadline, f"{path}: still not run:\n{waiting[0]['source'] if waiting else 'kernel'}"
        page.wait_for_timeout(500)


def scroll_to(page, selector: str) -> None:
    """Bring a cell's output into view; JupyterLab attaches far cells to the page only when one scrolls there."""
    number = page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.length")
    for index in range(number):
        page.evaluate(
            """async index => {
              const notebook = window.jupyterapp.shell.currentWidget.content;
              await notebook.scrollToItem(index, 'center');
            }""",
            index,
        )
        page.wait_for_timeout(60)
        if page.locator(selector).count():
            page.locator(selector).first.scroll_into_view_if_needed()
            return
    raise AssertionError(f"nothing in the notebook matches {selector}")


def drag(page, area) -> None:
    """Take the first slider of an output area by its handle and move it to its farther end."""
    handle, track = area.locator(".noUi-handle").first, area.locator(".noUi-target").first
    places = [None]
    while len(places) < 3 or places[-1] != places[-2]:  # figures above that are still being drawn move the slider
        handle.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        places.append((handle.bounding_box(), track.bounding_box()))
    box, rail = places[-1]
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    end = rail["x"] + rail["width"] * (0.85 if x < rail["x"] + rail["width"] / 2 else 0.15)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(end, y, steps=3)
    page.mouse.up()


def test_make_lab_serves_the_chapters(lab, open_page):
    with urllib.request.urlopen(lab.url("api/contents/chapters"), timeout=PATIENCE) as answer:
        names = {entry["name"] for entry in json.load(answer)["content"]}
    assert {path.name for path in (lab.work / "chapters").glob("*.ipynb")} <= names
    page, witness = open_page()
    page.goto(lab.url(""))
    chapter = page.locator(".jp-DirListing-item", has_text=CHAPTERS[0].split("/")[1])
    chapter.dblclick()
    page.wait_for_selector(".jp-NotebookPanel .jp-MarkdownCell h1")
    assert not [error for error in witness.errors if error.startswith("uncaught")]
    assert witness.outside == []


def test_every_notebook_opens_beside_its_text_twin(lab):
    """JupyterLab pairs a notebook with its twin and refuses a pair whose newer notebook says something else."""
    for path in sorted(lab.work.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        if path.with_suffix(".py").is_file():
            os.utime(path.with_suffix(".py"), (1e9, 1e9))
        name = path.relative_to(lab.work).as_posix()
        try:
            with urllib.request.urlopen(lab.url(f"api/contents/{name}?content=1"), timeout=PATIENCE) as answer:
                assert json.load(answer)["content"]["cells"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{name} does not open: {error.read().decode()[:2000]}") from error


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_and_its_slider_redraws(lab, open_page, chapter):
    page, witness = open_page(1400, 1500)
    start = time.monotonic()
    cells = run_all(page, lab, chapter)
    print(f"\n{chapter}: {len(cells)} cells run in JupyterLab, {time.monotonic() - start:.1f} s with opening")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    scroll_to(page, ".jp-MarkdownCell mjx-container")
    assert page.locator("mjx-merror, .MathJax_Error").count() == 0
    page.screenshot(path=str(SCREENSHOTS / f"lab-maths-{chapter[9:11]}.png"))

    scroll_to(page, HANDLE)
    area = page.locator(".jp-Cell-outputArea", has=page.locator(".noUi-handle")).first
    picture = area.locator(".widget-output img").first
    picture.wait_for()
    before = picture.get_attribute("src")
    start = time.monotonic()
    drag(page, area)
    page.wait_for_function(REDRAWN, arg=before, timeout=PATIENCE * 1000)
    print(f"the picture changed {time.monotonic() - start:.2f} s after the slider was taken")
    page.wait_for_timeout(2000)  # one move makes several pictures, each in place of the one before
    page.wait_for_function(KERNEL_IDLE)
    area.locator(".widget-output img").first.scroll_into_view_if_needed()
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert "Traceback" not in area.inner_text()  # an error in a control's picture has no type of its own
    assert not [error for error in witness.errors if error.startswith("uncaught")], witness.errors
    assert witness.outside == []
