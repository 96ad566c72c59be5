"""Build the book from the notebooks as they are stored (nothing is run), and check what was built.

    python tools/book.py build       assemble build/book/src, build build/book/html; any warning is an error
    python tools/book.py check       links, anchors and pictures of the built pages; nothing may come from outside

The pages are what is there: chapters/NN_*.ipynb in the parts below, exercise sheets, the ledger of claims, the notes for
lecturers. The source folder keeps the repository's layout, so that links between files work in both places.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import book_check
import book_pages
from book_links import Links
from browser import apt_install, in_ci
from launch import BRANCH, ROOT, repository

MATHJAX = ("tex-mml-chtml.js", "output/chtml/fonts", "input/tex/extensions")


class BookError(Exception):
    """The book cannot be built; the message says why and what to do."""


def assemble(root: Path, source: Path, hub: str | None = None) -> list[str]:
    """Write the book's source for the repository `root` into the folder `source`; returns the pages' paths.

    Raises:
        BookError: if a link leads nowhere, a chapter has no title or its number belongs to no part.
    """
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    try:
        address = repository(root)
        title, pitch = book_pages.title_and_pitch(root)
        chapters = book_pages.chapters(root)
        sheets = book_pages.sheets(root)
        pages = book_pages.files(root, chapters, sheets)
        folders = book_pages.folders(root, sheets, pages)
    except (OSError, ValueError) as error:
        raise BookError(str(error)) from error
    links = Links(root, source, pages, folders, address)
    for path, target in pages.items():
        if target in book_pages.GENERATED:
            continue
        text = (root / path).read_text(encoding="utf-8")
        if path.endswith(".ipynb"):
            text = book_pages.notebook(text, lambda markdown, path=path: links.rewrite(markdown, path), path)
        elif path.endswith(".md"):
            text = links.rewrite(text, path)
        else:
            text = f"# Licence\n\n```text\n{text.strip()}\n```\n"
        _write(source / target, text)
    pitch = links.rewrite(pitch, "README.md")
    measures = {path: links.rewrite(text, "README.md") for path, text in book_pages.measured(root).items()}
    _write(source / "index.md", book_pages.home(title, pitch, chapters, pages, measures))
    _write(source / "launch.md", book_pages.launch(address, chapters, sheets, hub))
    if "exercises/README.md" in pages:
        own = root / "exercises/README.md"
        text = links.rewrite(own.read_text(encoding="utf-8"), "exercises/README.md") if own.is_file() else ""
        _write(source / "exercises/index.md", book_pages.exercises(root, address, text, sheets))
    settings = {"title": title, "repository": address, "branch": BRANCH, "hub": hub}
    _write(source / "book.json", json.dumps(settings, indent=1))
    shutil.copyfile(ROOT / "book/conf.py", source / "conf.py")
    shutil.copytree(ROOT / "book/_static", source / "_static", dirs_exist_ok=True)
    if links.problems:
        raise BookError("\n".join(links.problems))
    return sorted(pages.values())


def mathjax(npm: Path, static: Path) -> None:
    """Put the mathematics renderer into the folder `static`; install it from its npm package into `npm` if needed.

    Raises:
        BookError: if npm is missing or fails.
    """
    recipe = [ROOT / "book" / name for name in ("package.json", "package-lock.json", ".npmrc")]
    stamp, digest = npm / ".done", hashlib.sha256(b"".join(path.read_bytes() for path in recipe)).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        if not shutil.which("npm") and in_ci():
            apt_install("npm")
        program = shutil.which("npm")
        if not program:
            raise BookError("the book needs npm to fetch MathJax once: install Node.js (it brings npm) and try again")
        npm.mkdir(parents=True, exist_ok=True)
        for path in recipe:
            shutil.copyfile(path, npm / path.name)
        run = subprocess.run([program, "ci", "--loglevel=error"], cwd=npm, capture_output=True, text=True)
        if run.returncode:
            raise BookError(f"npm ci failed in {npm}:\n{(run.stdout + run.stderr).strip()}")
        stamp.write_text(digest)
    for name in MATHJAX:
        found, target = npm / "node_modules/mathjax/es5" / name, static / "mathjax" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(found, target)


def build(root: Path, npm: Path, hub: str | None = None) -> int:
    """Build the book of the repository `root` into root/build/book/html; returns the number of source pages."""
    from sphinx.cmd.build import main as sphinx

    place = root / "build/book"
    pages = assemble(root, place / "src", hub)
    mathjax(npm, place / "src/_static")
    for name in ("html", "doctrees"):
        shutil.rmtree(place / name, ignore_errors=True)
    arguments = ["-b", "html", "-W", "--keep-going", "-q", "-d", place / "doctrees", place / "src", place / "html"]
    if sphinx([str(argument) for argument in arguments]):
        raise BookError("the book has the warnings above; each of them is an error")
    return len(pages)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the book, or check the built one.")
    parser.add_argument("command", choices=["build", "check"])
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    parser.add_argument("--npm", type=Path, default=ROOT / "build/book/npm", help="where npm packages are installed")
    parser.add_argument("--hub", help="address of a JupyterHub with nbgitpuller, for its launch buttons")
    args = parser.parse_args(argv)
    root, start = args.root.resolve(), time.perf_counter()
    html = root / "build/book/html"
    try:
        if args.command == "build":
            pages = build(root, args.npm.resolve(), args.hub)
            print(f"book: {pages} pages built in {time.perf_counter() - start:.1f} s: {html / 'index.html'}")
            return 0
        problems = book_check.check(html)
    except (BookError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"book: {book_check.count(html)} pages checked, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
