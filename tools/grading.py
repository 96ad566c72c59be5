"""What coursework.py does with nbgrader: make the release, read a sheet's tasks, grade one submission in a course of its own.

Each submission gets its own copy of the gradebook, so that any number of them can be graded at a time.
"""

import html
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

SOLUTION = ("BEGIN SOLUTION", "END SOLUTION")
HIDDEN = ("BEGIN HIDDEN TESTS", "END HIDDEN TESTS")
MARKERS = (*SOLUTION, *HIDDEN, "BEGIN MARK SCHEME", "END MARK SCHEME")
ENVIRONMENT = {"REFIMPL_SIZE": "quick", "REFIMPL_DEVICE": "cpu", "REFIMPL_SEED": "0", "MPLBACKEND": "Agg"}


@dataclass
class Task:
    """An automatically graded task: one solution cell and the points of the test cells that belong to it."""

    id: str
    tests: dict[str, float] = field(default_factory=dict)

    @property
    def points(self) -> float:
        """Points of all its tests."""
        return sum(self.tests.values())


@dataclass
class Sheet:
    """One exercise sheet: its tasks, its manual points, the sources of its solution cells, and what must stay hidden."""

    name: str
    tasks: dict[str, Task]
    manual: dict[str, float]
    solutions: dict[str, str]
    secrets: set[str]
    hidden_tests: set[str]
    problems: list[str]

    @property
    def automatic(self) -> float:
        """Points that the autograder gives."""
        return sum(task.points for task in self.tasks.values())


@dataclass
class Graded:
    """What the autograder made of one submission; ``trouble`` is empty unless it could not grade it."""

    student: str
    scores: dict[str, float] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    feedback: str = ""
    trouble: str = ""
    seconds: float = 0.0


def grader_metadata(cell) -> dict:
    """The cell's nbgrader metadata; empty for a plain cell."""
    return cell.metadata.get("nbgrader", {})


def read_sheet(notebook: Path) -> Sheet:
    """Tasks of a source notebook.

    A test cell belongs to the solution cell whose grade_id begins its own (``score`` and ``score_test``), else to the
    nearest solution cell before it.
    """
    nb = nbformat.read(notebook, as_version=4)
    sheet = Sheet(notebook.stem, {}, {}, {}, set(), set(), [])
    latest, visible, secret, tests = None, set(), set(), set()
    for cell in nb.cells:
        meta = grader_metadata(cell)
        name, solution, grade = meta.get("grade_id"), meta.get("solution"), meta.get("grade")
        shown, solved, hidden = _regions(cell.source)
        if solution:
            sheet.solutions[name] = cell.source
            if not solved:
                shown, solved = [], shown
        visible |= {line.strip() for line in shown}
        secret |= {line.strip() for line in solved + hidden}
        tests |= {line.strip() for line in hidden}
        if (solution and grade) or meta.get("task"):
            sheet.manual[name] = float(meta["points"])
        elif solution and cell.cell_type == "code":
            latest = name
            sheet.tasks[name] = Task(name)
        elif grade:
            owners = [t for t in sheet.tasks if name.startswith((f"{t}_", f"{t}-"))]
            owner = max(owners, key=len, default=latest)
            if owner is None:
                sheet.problems.append(f"test {name} comes before any solution cell")
            else:
                sheet.tasks[owner].tests[name] = float(meta["points"])
    sheet.problems += [f"task {t.id} has no test with points" for t in sheet.tasks.values() if not t.points]
    sheet.secrets = {line for line in secret - visible if len(line) >= 20}
    sheet.hidden_tests = {line for line in tests - visible if len(line) >= 20}
    return sheet


def _regions(source: str) -> tuple[list[str], list[str], list[str]]:
    """Lines that a learner sees, lines of the solution, lines of hidden tests; the markers belong to none."""
    lines: dict[str, list[str]] = {"": [], SOLUTION[1]: [], HIDDEN[1]: []}
    until = ""
    for line in source.splitlines():
        begun = next((end for begin, end in (SOLUTION, HIDDEN) if begin in line), None)
        if begun:
            until = begun
        elif until and until in line:
            until = ""
        else:
            lines[until].append(line)
    return lines[""], lines[SOLUTION[1]], lines[HIDDEN[1]]


def prepare_process(log: Path | None = None) -> None:
    """Set this process up for nbgrader: its tools on the path, this environment's kernel, quiet, errors into ``log``."""
    warnings.simplefilter("ignore")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["PYTHONWARNINGS"] = "ignore"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.update(ENVIRONMENT)
    if log is not None:
        os.environ["IPYTHONDIR"] = str(log.parent / "ipython")
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)


def configuration(repository: Path, **course: object):
    """The repository's nbgrader configuration with some settings of the course directory replaced."""
    from traitlets.config import Config
    from traitlets.config.loader import PyFileConfigLoader

    config = Config(PyFileConfigLoader("nbgrader_config.py", path=str(repository)).load_config())
    for name, value in course.items():
        config.CourseDirectory[name] = str(value)
    return config


def start(converter: str, config, **traits: object) -> None:
    """Run one of nbgrader's converters.

    Raises:
        RuntimeError: with nbgrader's log, if it fails.
    """
    from nbgrader import converters
    from nbgrader.coursedir import CourseDirectory

    records: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: records.append(record.getMessage())
    log = logging.Logger("grading", logging.ERROR)
    log.addHandler(handler)
    app = getattr(converters, converter)(coursedir=CourseDirectory(config=config), config=config)
    app.log = log
    for name, value in traits.items():
        setattr(app, name, value)
    try:
        app.start()
    except Exception as error:
        raise RuntimeError("\n".join([*records, f"{type(error).__name__}: {error}"])) from error


def generate(root: Path, into: Path, name: str, database: Path | None = None) -> None:
    """Make the release of one sheet below ``into``; with ``database``, record it in that gradebook."""
    course = {"root": root, "release_directory": into, "assignment_id": name}
    config = configuration(root, **course, **({"db_url": f"sqlite:///{database}"} if database else {}))
    if database is None:
        config.GenerateAssignment.no_database = True
        config.SaveCells.enabled = False
    start("GenerateAssignment", config, force=True)


def grade(
    root: Path, base: Path, name: str, student: str, notebook: str, timeout: int, feedback: bool = True
) -> Graded:
    """Grade one submission with nbgrader's autograder in a scratch course.

    Args:
        root: the repository.
        base: folder with the ``gradebook.db`` in which ``generate`` recorded the sheet.
        name: the sheet's name.
        student: a name for the submission.
        notebook: the submitted notebook, as JSON.
        timeout: seconds that a cell may take.
        feedback: whether to make the feedback page, too.
    """
    begun, graded = time.perf_counter(), Graded(student)
    with tempfile.TemporaryDirectory(dir=base) as scratch:
        course = Path(scratch)
        shutil.copy(base / "gradebook.db", course / "gradebook.db")
        submitted = course / "submitted" / "student" / name / f"{name}.ipynb"
        submitted.parent.mkdir(parents=True)
        submitted.write_text(notebook, encoding="utf-8")
        url = f"sqlite:///{course / 'gradebook.db'}"
        config = configuration(
            root, root=course, source_directory=root / "solutions", assignment_id=name, db_url=url, student_id="student"
        )
        config.Execute.timeout = timeout
        try:
            try:
                start("Autograde", config)
            except RuntimeError as error:
                # Kernels that start at the same time may pick the same port; then one of them dies at birth.
                if "Kernel died before replying to kernel_info" not in str(error):
                    raise
                start("Autograde", config, force=True)
            _read_scores(graded, course, name, url)
            if feedback:
                start("GenerateFeedback", config)
                page = course / "feedback" / "student" / name / f"{name}.html"
                graded.feedback = page.read_text(encoding="utf-8")
        except RuntimeError as error:
            graded.trouble = str(error)
    graded.seconds = time.perf_counter() - begun
    return graded


def _read_scores(graded: Graded, course: Path, name: str, url: str) -> None:
    from nbgrader.api import Gradebook

    with Gradebook(url) as book:
        for sheet in book.find_submission(name, "student").notebooks:
            for mark in sheet.grades:
                graded.scores[mark.name] = mark.auto_score or 0.0
    done = nbformat.read(course / "autograded" / "student" / name / f"{name}.ipynb", as_version=4)
    for cell in done.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                graded.messages[grader_metadata(cell).get("grade_id", "")] = f"{output.ename}: {output.evalue}"
            elif output.output_type == "stream" and output.name == "stderr" and grader_metadata(cell).get("grade"):
                graded.messages.setdefault(cell.metadata.nbgrader.grade_id, f"standard error: {output.text.strip()}")


def leaked(page: str, secrets: set[str]) -> list[str]:
    """Lines among ``secrets`` that an HTML page shows."""
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    shown = {line.strip() for line in text.splitlines()}
    return sorted(secret for secret in secrets if secret in shown or secret in text)
