"""The tools for exercise sheets and the grading in a container, on a small course of their own.

nbgrader and its database warn on their own account, so that everything runs in subprocesses.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import coursework
import grading
import notebook_store

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "01_demo"
SHEET = """\
# %% [markdown]
# # Demo

# %% nbgrader={"grade": false, "grade_id": "double", "locked": false, "schema_version": 3, "solution": true, "task": false}
def double(x):
    ### BEGIN SOLUTION
    twice_the_number = x + x
    return twice_the_number
    ### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "double_test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
assert double(0) == 0, "the double of 0 is 0"
### BEGIN HIDDEN TESTS
assert double(21.5) == 43.0, "wrong for a positive number"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "double_sign", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
assert double(-3) < 0, "the sign is lost"

# %% nbgrader={"grade": false, "grade_id": "cubed", "locked": false, "schema_version": 3, "solution": true, "task": false}
def cubed(x):
    ### BEGIN SOLUTION
    return double(x) * x * x / 2
    ### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_power", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
assert cubed(2) == 8, "the cube of 2 is 8"

# %% [markdown] nbgrader={"grade": true, "grade_id": "why", "locked": false, "points": 4, "schema_version": 3, "solution": true, "task": false}
# Because it is so.
"""
WRONG = {
    "double__zero": "# loses: 2, cubed=all\ndef double(x):\n    return 0 if x >= 0 else -1",
    "double__right": "def double(x):\n    return 2 * x",
    "cubed__half": "# loses: 1\ndef cubed(x):\n    return x * x * x / 2",
}
RIGHT = {"double__times": "def double(x):\n    return 2 * x"}


def call(root: Path, *arguments: str, script: str = "coursework.py", **env: str) -> subprocess.CompletedProcess:
    """Run a tool on ``root`` from another folder, with the environment not activated."""
    command = [sys.executable, str(REPOSITORY / "tools" / script), "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root.parent, env=os.environ | env)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A course with one sheet, its release and the answers above."""
    root = tmp_path_factory.mktemp("made")
    shutil.copy(REPOSITORY / "nbgrader_config.py", root)
    (root / "solutions" / NAME).mkdir(parents=True)
    (root / "solutions" / NAME / f"{NAME}.py").write_text(SHEET)
    nbformat.write(notebook_store.build(SHEET), root / "solutions" / NAME / f"{NAME}.ipynb")
    for kind, answers in (("wrong", WRONG), ("right", RIGHT)):
        folder = root / "tests" / "coursework" / NAME / kind
        folder.mkdir(parents=True)
        for name, text in answers.items():
            (folder / f"{name}.py").write_text(text + "\n")
    (root / "exercises").mkdir()
    (root / "exercises" / "README.md").write_text("For learners.\n")
    done = call(root, "release", PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture
def course(made, tmp_path) -> Path:
    """A copy of that course to spoil."""
    return Path(shutil.copytree(made, tmp_path / "course"))


def test_release_holds_no_solution_and_no_twin(made):
    assert [p.name for p in (made / "exercises" / NAME).iterdir()] == [f"{NAME}.ipynb"]
    text = (made / "exercises" / NAME / f"{NAME}.ipynb").read_text()
    for secret in ("BEGIN", "twice_the_number", "21.5", "Because it is so"):
        assert secret not in text
    assert "the sign is lost" in text and "YOUR CODE HERE" in text and "Your answer here" in text


def test_check_accepts_the_release(made):
    done = call(made, "check")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines() == [f"{NAME}: 6 automatic points, 4 points by hand", "1 release files, 0 problems"]


def test_a_release_that_differs_or_leaks_is_found(course):
    wanted = {k: v for k, v in coursework.files(course / "exercises").items() if "/" in k}
    sheet = course / "exercises" / NAME / f"{NAME}.ipynb"
    shutil.copy(course / "solutions" / NAME / f"{NAME}.py", sheet.parent)
    nb = nbformat.read(sheet, as_version=4)
    nb.cells[1].source += "\n    twice_the_number = x + x"
    nbformat.write(nb, sheet)
    problems = coursework.released(course, wanted)
    for line in (
        f"exercises/{NAME}/{NAME}.ipynb: differs: run release",
        f"exercises/{NAME}/{NAME}.ipynb: LEAK: 'twice_the_number = x + x'",
        f"exercises/{NAME}/{NAME}.py: not made from solutions/: remove it",
        f"exercises/{NAME}/{NAME}.py: LEAK: holds 'BEGIN SOLUTION'",
    ):
        assert line in problems
    sheet.unlink()
    assert f"exercises/{NAME}/{NAME}.ipynb: missing: run release" in coursework.released(course, wanted)


def test_round_trip_tells_right_from_wrong_and_reports_what_does_not_fit(made):
    done = call(made, "roundtrip", "--each", PATH="/usr/bin:/bin")
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stdout + done.stderr
    table = {line[2:23].strip(): line[23:].split()[:2] for line in lines[2:] if line.startswith("  ")}
    assert table == {
        "solved": ["3", "3"],
        "untouched": ["0", "0"],
        "tests removed": ["0", "0"],
        "tests skipped": ["0", "0"],
        "right double: times": ["3", "3"],
        "wrong double: right": ["3!", "3"],
        "wrong double: zero": ["1", "0"],
        "wrong cubed: half": ["3", "0!"],
    }
    problems = [line.removeprefix(f"{NAME}: ") for line in lines if line.startswith(f"{NAME}: ")][1:]
    assert problems == [
        "task cubed: 0 right answers, at least 1 needed",
        "task double: 2 wrong answers, at least 3 needed",
        "task cubed: 1 wrong answers, at least 3 needed",
        "wrong cubed: half: task cubed got 0 of 3, expected 2 (check_power: AssertionError: the cube of 2 is 8)",
        "wrong double: right: task double got 3 of 3, expected some points lost",
    ]


def test_answer_files_need_names_that_the_sheet_knows(course):
    folder = course / "tests" / "coursework" / NAME / "wrong"
    (folder / "halve__x.py").write_text("pass\n")
    (folder / "cubed__x.py").write_text("# loses: 1, halve=2\npass\n")
    (folder / "cubed__y.py").write_text("# loses: much\npass\n")
    sheet = grading.read_sheet(course / "solutions" / NAME / f"{NAME}.ipynb")
    blank = (course / "exercises" / NAME / f"{NAME}.ipynb").read_text()
    found, problems = coursework.submissions(course, sheet, blank, each=True)
    assert len(found) == 4 + len(RIGHT) + len(WRONG)
    assert "wrong/halve__x.py: no automatic task 'halve', expected TASK__label.py" in problems
    assert "wrong/cubed__x.py: '# loses:' names 'halve', tasks are double, cubed" in problems
    assert any(line.startswith("wrong/cubed__y.py: ") for line in problems)


def test_answers_to_different_tasks_share_a_submission_unless_one_costs_points_elsewhere(course):
    sheet = grading.read_sheet(course / "solutions" / NAME / f"{NAME}.ipynb")
    blank = (course / "exercises" / NAME / f"{NAME}.ipynb").read_text()
    shared = {s.student: s for s in coursework.submissions(course, sheet, blank)[0][4:]}
    assert {name: (s.answers, s.loses) for name, s in shared.items()} == {
        "right 1": ({"double": "times"}, {}),
        "wrong double: zero": ({"double": "zero"}, {"double": 2.0, "cubed": 3.0}),
        "wrong 1": ({"cubed": "half", "double": "right"}, {"cubed": 1.0, "double": None}),
    }
    both = nbformat.reads(shared["wrong 1"].notebook, as_version=4)
    code = {cell.metadata.get("nbgrader", {}).get("grade_id"): cell.source for cell in both.cells}
    assert code["double"] == WRONG["double__right"] and code["cubed"] == WRONG["cubed__half"]
    graded = grading.Graded("wrong 1", {"double_test": 2.0, "double_sign": 1.0, "check_power": 2.0})
    assert coursework.judge(sheet, shared["wrong 1"], graded) == (
        ["3!", "2"],
        ["wrong 1: task double (right) got 3 of 3, expected some points lost"],
    )


def test_points_that_another_task_loses_are_reported(course):
    sheet = grading.read_sheet(course / "solutions" / NAME / f"{NAME}.ipynb")
    assert {t.id: t.tests for t in sheet.tasks.values()} == {
        "double": {"double_test": 2.0, "double_sign": 1.0},
        "cubed": {"check_power": 3.0},
    }
    wrong = coursework.Submission("wrong double: x", "", {"double": None})
    graded = grading.Graded(wrong.student, {"double_test": 2.0}, {"check_power": "NameError: y"})
    row, problems = coursework.judge(sheet, wrong, graded)
    assert row == ["2", "0!"]
    assert problems == ["wrong double: x: task cubed got 0 of 3, expected 3 (check_power: NameError: y)"]
    graded.feedback = "<pre>assert double(21.5) <span>==</span> 43.0, &quot;wrong for a positive number&quot;</pre>"
    assert any("the feedback shows the hidden test" in line for line in coursework.judge(sheet, wrong, graded)[1])
    row, problems = coursework.judge(sheet, wrong, grading.Graded(wrong.student, trouble="no kernel"))
    assert problems == ["wrong double: x: could not be graded: no kernel"]


def test_grade_shows_points_and_messages_but_no_hidden_test(course):
    mine = course / "exercises" / NAME / "mine.ipynb"
    nb = nbformat.read(mine.with_name(f"{NAME}.ipynb"), as_version=4)
    nb.cells[1].source = "def double(x):\n    print('seen', x)\n    return -abs(x)"
    nbformat.write(nb, mine)
    done = call(course, "grade", str(mine))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "double_test                     0 of 2  AssertionError: wrong for a positive number" in done.stdout
    assert "double_sign                     1 of 1\n" in done.stdout
    assert "automatic points: 1 of 6" in done.stdout
    assert "for a person to grade: why (4 points)" in done.stdout
    page = (course / "build" / "feedback" / f"{NAME}.html").read_text()
    assert "wrong for a positive number" in page
    assert "43.0" not in page and "seen 21.5" not in page and "BEGIN HIDDEN" not in page


DOCKER = """\
#!/bin/sh
# Stands in for a container: executes the notebook of the folder mounted at /in into the one mounted at /out.
echo "$@" >> "$CALLS"
while [ $# -gt 2 ]; do
    if [ "$1" = --volume ]; then
        case $2 in *:/in:ro) source=${2%:/in:ro} ;; *:/out) target=${2%:/out} ;; esac
    fi
    shift
done
exec jupyter nbconvert --to notebook --execute --allow-errors --output-dir="$target" "$source${2#/in}"
"""


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_grading_in_a_container(course, tmp_path):
    shim = tmp_path / "bin" / "docker"
    shim.parent.mkdir()
    shim.write_text(DOCKER)
    shim.chmod(0o755)
    path = os.pathsep.join([str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {
        "PATH": path,
        "CALLS": str(tmp_path / "calls"),
        "HOME": str(tmp_path),
        "PYTHONWARNINGS": "ignore",
    }
    generate = ["nbgrader", "generate_assignment", NAME, "--force"]
    subprocess.run(generate, cwd=course, env=env, check=True, capture_output=True)
    nb = nbformat.read(course / "exercises" / NAME / f"{NAME}.ipynb", as_version=4)
    nb.cells[1].source = "def double(x):\n    return 2 * x"
    nb.cells[2].source = "pass"
    nb.cells[-2].metadata.tags = ["skip-execution"]
    for student, text in (("ann lee", nbformat.writes(nb)), ("bob", "{")):
        folder = course / "submitted" / student / NAME
        folder.mkdir(parents=True)
        (folder / f"{NAME}.ipynb").write_text(text)
    script = ["sh", str(REPOSITORY / "teaching" / "autograde.sh"), NAME]
    done = subprocess.run(script, cwd=course, env=env, capture_output=True, text=True)
    log = course / "isolated" / "executed" / "ann lee" / f"{NAME}.log"
    assert done.stdout.splitlines()[0] == "ann lee: graded", log.read_text()
    assert done.stdout.splitlines()[1].startswith("bob: NOT GRADED, see ")
    assert done.returncode == 1
    run = (tmp_path / "calls").read_text()
    for limit in (
        "--network=none",
        "--read-only",
        "--memory=4g",
        "--cpus=1",
        "--pids-limit=256",
        "/in:ro",
        "--cap-drop=ALL",
    ):
        assert limit in run
    assert "--user 0:" not in run and "gradebook" not in run and "solutions" not in run
    marks = (
        "from nbgrader.api import Gradebook\n"
        "with Gradebook('sqlite:///gradebook.db') as book:\n"
        "    print([(s.student.id, s.score) for s in book.assignment_submissions('01_demo')])"
    )
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", marks], cwd=course, env=env, capture_output=True, text=True
    )
    assert said.stdout.strip() == "[('ann lee', 3.0)]", said.stdout + said.stderr
