"""The book's tools: links, assembly, build, checker, launch addresses, the search for a browser."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import book_check  # noqa: E402
import browser  # noqa: E402
import launch  # noqa: E402
from book_links import Links  # noqa: E402

import book  # noqa: E402

ADDRESS = "https://github.com/somebody/course"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel
TABLE = "| | chapter | what |\n|---|---|---|\n| 01 | [First](chapters/01_first.ipynb) | a slope and *much* |\n"


def markdown(text: str, **metadata) -> dict:
    return {"cell_type": "markdown", "metadata": metadata, "source": text}


def code(text: str, *outputs: dict, **metadata) -> dict:
    return {
        "cell_type": "code",
        "metadata": metadata,
        "source": text,
        "execution_count": 1,
        "outputs": [{"output_type": "display_data", "metadata": {}, "data": data} for data in outputs],
    }


def write_notebook(path: Path, *cells: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [dict(cell, id=f"cell{number}") for number, cell in enumerate(cells)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.write_text(
        json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})
    )


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A small course with two chapters, a sheet, its solution, the ledger and a licence."""
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n')
    (tmp_path / "README.md").write_text(
        f"# The course\n\nYou learn [much](chapters/01_first.ipynb).\n\n## More\n\n{TABLE}"
    )
    (tmp_path / "LICENSE").write_text("Do what you like.\n")
    for name in ("refimpl/module.py", "results/README.md", "solutions/01_first/01_first.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# Ledger\n\n| ID | claim |\n|---|---|\n| A-1 | it works |\n")
    claims = {"claims": [{"id": "A-1", "holds": True}, {"id": "A-2", "holds": False}]}
    write_notebook(
        tmp_path / "chapters/01_first.ipynb",
        markdown("# 01 The first\n\nThe lead, with $x$ and **force**.\n\n| a | b |\n|---|---|\n| 1 | 2 |"),
        code("install()", {"text/plain": "never shown"}, tags=["launch"]),
        markdown("## The idea\n\n$$x[1](y)$$\n\nSee [two](02_second.ipynb#here), [sheet](../exercises/01_first/)."),
        code("draw()", {"image/png": PNG, "text/plain": "<Figure>"}, alt="A rising line."),
        code("play()", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "Box()"}),
        code("claim.summary()", {"application/vnd.refimpl.claims+json": claims, "text/markdown": "| *A-1* |\n|---|"}),
        markdown("[code](../refimpl/module.py), [ledger](../results/README.md), [home](../README.md)"),
    )
    write_notebook(tmp_path / "chapters/02_second.ipynb", markdown("# The second\n\n## Here\n\n[back](01_first.ipynb)"))
    write_notebook(tmp_path / "exercises/01_first/01_first.ipynb", markdown("# Sheet\n"), code("answer = ..."))
    return tmp_path


def build(root: Path, *options: str) -> subprocess.CompletedProcess:
    npm = ROOT / "build/book/npm"
    if not (npm / ".done").exists() and not shutil.which("npm") and not browser.in_ci():
        pytest.skip("npm is missing, so the mathematics renderer cannot be fetched")
    command = [sys.executable, ROOT / "tools/book.py", "build", "--root", root, "--npm", npm, *options]
    return subprocess.run(command, capture_output=True, text=True)


def add(root: Path, text: str) -> None:
    """Append a text cell to the second chapter."""
    path = root / "chapters/02_second.ipynb"
    cells = json.loads(path.read_text())["cells"]
    write_notebook(path, *cells, markdown(text))


def test_book_is_built_and_sound(course):
    run = build(course, "--hub", "https://hub.example.edu")
    assert run.returncode == 0, run.stderr
    html = course / "build/book/html"
    assert book.main(["check", "--root", str(course)]) == 0
    first = (html / "chapters/01_first.html").read_text()
    assert 'href="02_second.html#here"' in first and 'href="../exercises/01_first/01_first.html"' in first
    assert f'href="{ADDRESS}/blob/main/refimpl/module.py"' in first and 'href="../results/README.html"' in first
    assert 'alt="A rising line."' in first
    assert "never shown" not in first and "Box()" not in first and "<em>A-1</em>" in first
    assert "git-pull?repo=https" in first and "mybinder.org/v2/gh/somebody/course" in first
    home = (html / "index.html").read_text()
    assert "I · What networks learn" in home and "II · " not in home
    assert "2 claims · 1 hold at quick size" in home and "You measure a slope and <em>much</em>." in home
    sheets = (html / "exercises/index.html").read_text()
    assert f"{ADDRESS}/blob/main/solutions/01_first/01_first.ipynb" in sheets
    assert (html / "_static/mathjax/tex-mml-chtml.js").is_file()
    assert not (html / "solutions").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x](03_third.ipynb)", "02_second.ipynb: link to 03_third.ipynb: no such file"),
        ("![x](figure.png)", "link to figure.png: no such file"),
        ("[x](../../elsewhere.md)", "stay inside the repository"),
        ("[x](/chapters/01_first.ipynb)", "must be relative"),
        ("[x](../Refimpl/module.py)", "no such file"),
        ('<img src="x.png">', "write a picture as"),
        ("[x]: ../nothing.md\n\n[x]", "link to ../nothing.md: no such file"),
    ],
)
def test_broken_link_stops_the_book(course, tmp_path, text, complaint):
    add(course, text)
    with pytest.raises(book.BookError, match="02_second.ipynb") as error:
        book.assemble(course, tmp_path / "out")
    assert complaint in str(error.value)


def test_every_warning_is_reported_and_stops_the_book(course):
    add(course, "[x](01_first.ipynb#no-such-place)\n\n[x](#nowhere)\n\n{unknown}`role`\n\n#### It skips a level")
    run = build(course)
    assert run.returncode == 1 and "each of them is an error" in run.stderr
    for complaint in ("no-such-place", "nowhere", "unknown", "Non-consecutive header level"):
        assert complaint in run.stderr
    assert run.stderr.count("02_second.ipynb") >= 4


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("chapters/03_zoo.ipynb", "no json", "03_zoo.ipynb: not a notebook"),
        ("chapters/03_zoo.ipynb", '{"cells": []}', "must begin with a title"),
        ("chapters/77_far.ipynb", None, "no part of the book has a chapter 77"),
        ("chapters/02_again.ipynb", None, "have the same number"),
        ("README.md", "No title.", "README.md must begin with a title"),
        ("pyproject.toml", "[project]\n", "Repository is missing"),
    ],
)
def test_unfit_repository_is_explained(course, tmp_path, name, content, complaint):
    if content is None:
        write_notebook(course / name, markdown("# A title"))
    else:
        (course / name).write_text(content)
    with pytest.raises(book.BookError, match=complaint):
        book.assemble(course, tmp_path / "out")


def test_course_without_anything_but_a_readme_has_a_book(course, tmp_path):
    for name in ("chapters", "exercises", "results", "solutions"):
        shutil.rmtree(course / name)
    (course / "README.md").write_text("# The course\n")
    assert book.assemble(course, tmp_path / "out") == ["LICENSE.md", "index.md"]


def test_missing_npm_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(book.BookError, match="install Node.js"):
        book.mathjax(tmp_path / "npm", tmp_path / "static")


def test_npm_lock_names_no_registry():
    lock = json.loads((ROOT / "book/package-lock.json").read_text())
    package = lock["packages"]["node_modules/mathjax"]
    assert package["version"] == "3.2.2" and package["integrity"].startswith("sha512-")
    assert "resolved" not in (ROOT / "book/package-lock.json").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`[x](missing)` and $a[x](missing)$", None),
        ("```\n[x](missing)\n```\n", None),
        ("~~~~md\n[x](missing)\n~~~~\n", None),
        ("$$\nA[i](missing)\n$$", None),
        ("[x](https://example.org), [y](#here), <mailto:a@b.c>", None),
        ("[x](02_b.ipynb 'title')", None),
        ("<a class='k' href='02_b.ipynb#z'>x</a>", "<a class='k' href='02_b.html#z'>x</a>"),
        ("[x](..)", "[x](../index.md)"),
        ("[**x** [1]](<../results/>)", f"[**x** [1]]({ADDRESS}/tree/main/results)"),
        ("it costs 5$ [x](../a%20b.txt#L3) or 6$", f"it costs 5$ [x]({ADDRESS}/blob/main/a%20b.txt#L3) or 6$"),
    ],
)
def test_links_are_rewritten_only_where_they_are_links(tmp_path, text, expected):
    (tmp_path / "results").mkdir()
    (tmp_path / "a b.txt").touch()
    pages = {f"chapters/{name}.ipynb": f"chapters/{name}.ipynb" for name in ("01_a", "02_b")}
    links = Links(tmp_path, tmp_path / "out", pages, {".": "index.md"}, ADDRESS)
    assert links.rewrite(text, "chapters/01_a.ipynb") == (text if expected is None else expected)
    assert links.problems == []


def test_picture_is_copied_into_the_source(tmp_path):
    (tmp_path / "teaching").mkdir()
    (tmp_path / "teaching/plan.png").write_bytes(b"picture")
    links = Links(tmp_path, tmp_path / "out", {"teaching/README.md": "teaching/README.md"}, {}, ADDRESS)
    assert links.rewrite("![plan](plan.png)", "teaching/README.md") == "![plan](plan.png)"
    assert (tmp_path / "out/teaching/plan.png").read_bytes() == b"picture"


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("<a href='other.html'>x</a>", "no such page"),
        ("<a href='page.html#gone'>x</a>", "no such place"),
        ("<a href='javascript:x()'>x</a>", "not a web address"),
        ("<a href='../out.html'>x</a>", "no such page"),
        ("<img src='gone.png' alt=''>", "gone.png does not exist"),
        ("<img src='fig.png'>", "without an alternative text"),
        ("<img srcset='https://x.org/a.png 2x' alt=''>", "loads https://x.org/a.png from outside"),
        ("<script src='https://x.org/a.js'></script>", "from outside"),
        ("<link rel='preload stylesheet' href='//x.org/a.css'>", "from outside"),
        ("<style>@import 'https://x.org/a.css';</style>", "from outside"),
        ("<p style='background: url(https://x.org/a.png)'>x</p>", "from outside"),
        ("<link rel='stylesheet' href='a.css'>", "a.css: loads https://x.org/f.woff from outside"),
    ],
)
def test_checker_finds(tmp_path, page, complaint):
    (tmp_path / "index.html").write_text("<p id='top'><a href='page.html#here'>x</a>")
    (tmp_path / "page.html").write_text(f"<h1 id='here'>x</h1><a href='https://x.org'>x</a>{page}")
    (tmp_path / "fig.png").touch()
    if page.endswith("href='a.css'>"):
        (tmp_path / "a.css").write_text("/* url(no.png) */ @font-face { src: url(https://x.org/f.woff) }")
    problems = book_check.check(tmp_path)
    assert len(problems) == 1 and complaint in problems[0]


def test_checker_accepts_a_sound_book_and_wants_one(tmp_path):
    assert "run: python tools/book.py build" in book_check.check(tmp_path)[0]
    (tmp_path / "index.html").write_text("<a href='#'>x</a><a href='sub/'>x</a><img src='data:,' alt='x'>")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/index.html").write_text("<a href='../index.html#top'>x</a><p id='a'><a href='#a'>x</a>")
    assert book_check.check(tmp_path) == ["sub/index.html: link to ../index.html#top: no such place on that page"]


def test_launch_links_name_the_notebook():
    links = launch.launch_links(ADDRESS, "chapters/01_a.ipynb", "https://hub.example.edu/")
    assert links == {
        "Binder": "https://mybinder.org/v2/gh/somebody/course/main?urlpath=lab%2Ftree%2Fchapters%2F01_a.ipynb",
        "Colab": "https://colab.research.google.com/github/somebody/course/blob/main/chapters/01_a.ipynb",
        "JupyterHub": "https://hub.example.edu/hub/user-redirect/git-pull?repo=https%3A%2F%2Fgithub.com%2Fsomebody%2Fcourse"
        "&branch=main&urlpath=lab%2Ftree%2Fcourse%2Fchapters%2F01_a.ipynb",
    }
    assert list(launch.launch_links("https://git.example.edu/a/b", "x.ipynb")) == ["Binder"]


def test_launch_prints_links_and_refuses_what_is_not_there(course, capsys):
    assert launch.main(["chapters/01_first.ipynb", "--root", str(course)]) == 0
    assert "[Colab](https://colab.research.google.com/github/somebody/course/" in capsys.readouterr().out
    assert launch.main(["chapters/09_none.ipynb", "--root", str(course)]) == 1
    assert "no such notebook" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://github.com/a/b", "https://github.com/a", "github.com/a/b"])
def test_repository_must_be_an_address(tmp_path, address):
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
    with pytest.raises(ValueError, match="must look like"):
        launch.repository(tmp_path)


def test_repository_is_normalised(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/a/b.git/"\n')
    assert launch.repository(tmp_path) == "https://github.com/a/b"


def test_binder_installs_the_torch_that_the_package_wants():
    import tomllib

    with open(ROOT / "pyproject.toml", "rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    listed = yaml.safe_load((ROOT / "binder/environment.yml").read_text())["dependencies"]
    torch = next(line for line in wanted if line.startswith("torch"))
    assert torch.replace("torch", "pytorch-cpu") in listed
    assert (ROOT / "binder/postBuild").stat().st_mode & 0o111


def program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_chromium_is_found_by_variable_then_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "APPLICATIONS", ())
    chosen, named = program(tmp_path / "a", "mine"), program(tmp_path / "b", "google-chrome")
    assert browser.find({"PATH": ""}) is None
    assert browser.find({"PATH": str(named.parent)}) == str(named)
    assert browser.find({"PATH": str(named.parent), "CHROMIUM": str(chosen)}) == str(chosen)
    with pytest.raises(ValueError, match="CHROMIUM"):
        browser.find({"CHROMIUM": str(tmp_path / "none"), "PATH": ""})


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 0)])
def test_ensure_installs_only_in_ci(tmp_path, monkeypatch, capsys, ci, status):
    installed = []
    found = iter([None, "/usr/bin/chromium"])
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(browser, "find", lambda: next(found))
    monkeypatch.setattr(browser, "apt_install", lambda *packages: installed.extend(packages))
    assert browser.main(["ensure"]) == status
    assert ("chromium" in installed) == bool(ci)
    assert ("/usr/bin/chromium" if ci else "install the package") in "".join(capsys.readouterr())


def test_install_without_apt_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no apt-get"):
        browser.apt_install("chromium")


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_nothing_is_left_out_in_ci(monkeypatch, ci, outcome):
    monkeypatch.syspath_prepend(ROOT / "tests/browser")
    from browser_support import leave_out

    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no browser"):
        leave_out("no browser")
