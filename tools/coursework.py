"""Make the exercise sheets, check them, and prove that the autograder tells right answers from wrong ones.

    python tools/coursework.py release               write exercises/ from solutions/
    python tools/coursework.py check                 is exercises/ exactly that, and does it show no solution?
    python tools/coursework.py roundtrip [NN ...]    grade made-up submissions of each sheet (or of the sheets NN)
    python tools/coursework.py grade FILE            grade one notebook: points and messages a task, a feedback page

``roundtrip`` hands in, through nbgrader's own autograder: the solved sheet (all automatic points), the untouched one
(none), untouched ones whose tests were replaced by ``pass`` or tagged to be skipped (none), and the answers in
tests/coursework/NN_name/:

    right/TASK__label.py    a correct answer written differently: all automatic points
    wrong/TASK__label.py    a plausible wrong answer: loses points of its task (some or all) and of no other task

The file replaces the code of the solution cell with grade_id TASK in the solved sheet. A first line ``# loses: 2``
says exactly how many points go; ``# loses: all, other=1`` also names another task that must lose some, where one task
builds on another. Each automatic task needs at least three wrong answers and one right one.

A submission costs seconds, so answers to different tasks share one: the first answer of each task, the second of each,
and so on. Points are still compared task by task. ``--each`` hands in every answer by itself, to see which one it was
if a shared submission does not get the points that it should.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from grading import MARKERS, Graded, Sheet, generate, grade, grader_metadata, leaked, prepare_process, read_sheet

ROOT = Path(__file__).resolve().parents[1]
WRONG_ANSWERS, RIGHT_ANSWERS = 3, 1


@dataclass
class Submission:
    """A submission to hand in and what it must lose: task -> points, or None for any points at all.

    ``answers`` are the labels of the answers that take the place of the solution, by task.
    """

    student: str
    notebook: str
    loses: dict[str, float | None] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)


def sheets(root: Path, numbers: list[str] | None = None) -> list[str]:
    """Names of the sheets that have a source notebook, or of those with the numbers given."""
    names = sorted(p.stem for p in (root / "solutions").glob("*/*.ipynb") if p.stem == p.parent.name)
    if numbers:
        names = [n for n in names if n[:2] in {f"{int(number):02d}" for number in numbers}]
        if not names:
            raise SystemExit(f"no exercise sheet {' '.join(numbers)}")
    return names


def files(folder: Path) -> dict[str, bytes]:
    """Content of each file below a folder, by its path in it."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and ".ipynb_checkpoints" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def made(root: Path) -> dict[str, bytes]:
    """What exercises/ must hold beside its README, by path."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in sheets(root):
            generate(root, Path(scratch), name)
        return files(Path(scratch))


def release(args: argparse.Namespace) -> int:
    """Write exercises/."""
    wanted = made(args.root)
    for name, content in wanted.items():
        path = args.root / "exercises" / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"exercises/{name}: written")
    return report(released(args.root, wanted), f"{len(wanted)} release files")


def check(args: argparse.Namespace) -> int:
    """Compare exercises/ with what solutions/ makes; print the points of each sheet."""
    wanted = made(args.root)
    for sheet in (read_sheet(args.root / "solutions" / name / f"{name}.ipynb") for name in sheets(args.root)):
        print(f"{sheet.name}: {sheet.automatic:g} automatic points, {sum(sheet.manual.values()):g} points by hand")
    return report(released(args.root, wanted), f"{len(wanted)} release files")


def released(root: Path, wanted: dict[str, bytes]) -> list[str]:
    """Differences between exercises/ and what it must hold, and what either shows of a solution."""
    have = {n: content for n, content in files(root / "exercises").items() if "/" in n}
    problems = [f"exercises/{n}: missing: run release" for n in sorted(wanted.keys() - have.keys())]
    problems += [f"exercises/{n}: not made from solutions/: remove it" for n in sorted(have.keys() - wanted.keys())]
    problems += [f"exercises/{n}: differs: run release" for n in wanted if n in have and have[n] != wanted[n]]
    for name, content in sorted((wanted | have).items()):
        text = content.decode("utf-8", errors="ignore")
        problems += [f"exercises/{name}: LEAK: holds {marker!r}" for marker in MARKERS if marker in text]
        source = root / "solutions" / name
        if name.endswith(".ipynb") and source.exists():
            lines = {x.strip() for cell in nbformat.reads(text, 4).cells for x in cell.source.splitlines()}
            problems += [f"exercises/{name}: LEAK: {x!r}" for x in sorted(lines & read_sheet(source).secrets)]
    return problems


def report(problems: list[str], what: str) -> int:
    """Print the problems and a summary; returns the exit status."""
    print(*problems, f"{what}, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


def replaced(notebook, sources: dict[str, str]) -> str:
    """The notebook, as JSON, with the sources of some cells replaced by grade_id."""
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        cell.source = sources.get(grader_metadata(cell).get("grade_id"), cell.source)
    return nbformat.writes(copy)


def submissions(root: Path, sheet: Sheet, blank: str, each: bool = False) -> tuple[list[Submission], list[str]]:
    """All submissions for one sheet (``blank`` is the released notebook) and what is wrong with the answer files.

    Answers to different tasks share a submission, unless ``each`` is to have its own or an answer costs points elsewhere.
    """
    problems, everything = [], {t.id: t.points for t in sheet.tasks.values()}
    notebook = nbformat.reads(blank, 4)
    nothing = {test: "pass" for task in sheet.tasks.values() for test in task.tests}
    skipped = nbformat.from_dict(notebook)
    for cell in skipped.cells:
        cell.metadata.tags = ["skip-execution"]
    found = [
        Submission("solved", replaced(notebook, sheet.solutions)),
        Submission("untouched", blank, everything),
        Submission("tests removed", replaced(notebook, nothing), everything),
        Submission("tests skipped", nbformat.writes(skipped), everything),
    ]
    for kind, needed in (("right", RIGHT_ANSWERS), ("wrong", WRONG_ANSWERS)):
        folder = root / "tests" / "coursework" / sheet.name / kind
        answers = dict.fromkeys(sheet.tasks, 0)
        rounds: dict[tuple[bool, int], list[tuple[str, str, str, dict]]] = {}
        for path in sorted(folder.glob("*.py")):
            task, _, label = path.stem.partition("__")
            text = path.read_text(encoding="utf-8").rstrip("\n")
            if task not in sheet.tasks or not label:
                problems.append(f"{kind}/{path.name}: no automatic task {task!r}, expected TASK__label.py")
                continue
            try:
                loses = losses(text, task, sheet) if kind == "wrong" else {}
            except ValueError as error:
                problems.append(f"{kind}/{path.name}: {error}")
                continue
            answers[task] += 1
            alone = each or not set(loses) <= {task}
            key = (not alone, sum(answers.values()) if alone else answers[task])
            rounds.setdefault(key, []).append((task, label, text, loses))
        for (shared, number), members in sorted(rounds.items()):
            student = f"{kind} {number}" if shared else f"{kind} {members[0][0]}: {members[0][1]}"
            texts, labels = {t: text for t, _, text, _ in members}, {t: label for t, label, _, _ in members}
            due = {name: points for *_, loses in members for name, points in loses.items()}
            found.append(Submission(student, replaced(notebook, sheet.solutions | texts), due, labels))
        problems += [
            f"task {t}: {n} {kind} answers, at least {needed} needed" for t, n in answers.items() if n < needed
        ]
    return found, problems


def losses(text: str, task: str, sheet: Sheet) -> dict[str, float | None]:
    """What a wrong answer to ``task`` must lose, from its first line.

    Raises:
        ValueError: if the declaration is malformed or names an unknown task.
    """
    declared = re.match(r"#\s*loses:(.*)", text)
    if not declared:
        return {task: None}
    loses: dict[str, float | None] = {}
    for item in declared[1].split(","):
        name, equals, amount = item.strip().rpartition("=")
        name = name if equals else task
        if name not in sheet.tasks:
            raise ValueError(f"'# loses:' names {name!r}, tasks are {', '.join(sheet.tasks)}")
        loses[name] = sheet.tasks[name].points if amount == "all" else float(amount)
    return loses


def judge(sheet: Sheet, submission: Submission, graded: Graded) -> tuple[list[str], list[str]]:
    """One table cell a task (points, with a ``!`` where they are not as expected) and the problems in words."""
    if graded.trouble:
        return ["-"] * len(sheet.tasks), [f"{submission.student}: could not be graded: {graded.trouble}"]
    row, problems = [], []
    for task in sheet.tasks.values():
        score = sum(graded.scores.get(test, 0.0) for test in task.tests)
        lost, due = task.points - score, submission.loses.get(task.id, 0.0)
        good = lost > 0 if due is None else lost == due
        row.append(f"{score:g}{'' if good else '!'}")
        if not good:
            shared = len(submission.answers) > 1 and task.id in submission.answers
            which = f" ({submission.answers[task.id]})" if shared else ""
            expected = "some points lost" if due is None else f"{task.points - due:g}"
            said = "; ".join(f"{t}: {graded.messages[t]}" for t in task.tests if t in graded.messages)
            problems.append(
                f"{submission.student}: task {task.id}{which} got {score:g} of {task.points:g}, expected {expected}"
                + (f" ({said})" if said else "")
            )
    shown = leaked(graded.feedback, sheet.hidden_tests)
    return row, problems + [f"{submission.student}: the feedback shows the hidden test {line!r}" for line in shown]


def pool(jobs: int, scratch: Path) -> concurrent.futures.Executor:
    """Fresh processes, each set up for nbgrader."""
    fresh = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(jobs, fresh, prepare_process, (scratch / "errors.log",))


def blank_sheet(root: Path, scratch: Path, name: str) -> str:
    """Record a sheet in ``scratch/gradebook.db``; returns its release notebook."""
    scratch.mkdir(parents=True, exist_ok=True)
    generate(root, scratch / "release", name, scratch / "gradebook.db")
    return (scratch / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8")


def roundtrip(args: argparse.Namespace) -> int:
    """Grade the made-up submissions of the sheets, print a table a sheet and what is not as it must be."""
    problems, plans = [], []
    with tempfile.TemporaryDirectory() as folder, pool(args.jobs, Path(folder)) as workers:
        for name in sheets(args.root, args.numbers):
            base = Path(folder) / name
            sheet = read_sheet(args.root / "solutions" / name / f"{name}.ipynb")
            todo, found = submissions(args.root, sheet, blank_sheet(args.root, base, name), args.each)
            one = functools.partial(workers.submit, grade, args.root, base, name, timeout=args.timeout)
            plans.append((sheet, todo, sheet.problems + found, [one(s.student, s.notebook) for s in todo]))
        for sheet, todo, found, done in plans:
            head = [f"{t.id}/{t.points:g}" for t in sheet.tasks.values()]
            widths = [max(8, len(h)) for h in head]
            first = max(len(s.student) for s in todo)
            print(f"{sheet.name}: {sheet.automatic:g} automatic points")
            print(line("", head, widths, first, "seconds"))
            for submission, future in zip(todo, done, strict=True):
                graded = future.result()
                row, wrong = judge(sheet, submission, graded)
                print(line(submission.student, row, widths, first, f"{graded.seconds:.1f}"), flush=True)
                found += wrong
            problems += [f"{sheet.name}: {x}" for x in found]
    return report(problems, "round trip")


def line(first: str, cells: list[str], widths: list[int], width: int, last: str) -> str:
    """One line of the table."""
    return f"  {first:{width}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)) + f"  {last:>7}"


def grade_file(args: argparse.Namespace) -> int:
    """Grade one notebook and write its feedback page to build/feedback/."""
    known = sheets(args.root, [args.chapter] if args.chapter else None)
    fitting = [n for n in known if args.chapter or n in (args.file.stem, args.file.resolve().parent.name)]
    if not args.file.is_file() or len(fitting) != 1:
        raise SystemExit(f"{args.file}: no such file, or unclear which sheet it answers: give --chapter NN")
    name = fitting[0]
    sheet = read_sheet(args.root / "solutions" / name / f"{name}.ipynb")
    with tempfile.TemporaryDirectory() as folder, pool(1, Path(folder)) as workers:
        blank_sheet(args.root, Path(folder) / name, name)
        text = args.file.read_text(encoding="utf-8")
        graded = workers.submit(grade, args.root, Path(folder) / name, name, "you", text, args.timeout).result()
    if graded.trouble:
        raise SystemExit(f"{args.file}: could not be graded: {graded.trouble}")
    total = 0.0
    for task in sheet.tasks.values():
        for test, points in task.tests.items():
            score = graded.scores.get(test, 0.0)
            total += score
            message = graded.messages.get(test, "").partition("\n")[0] if score < points else ""
            print(f"{test:30}  {score:g} of {points:g}  {message}".rstrip())
    page = args.root / "build" / "feedback" / f"{name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(graded.feedback, encoding="utf-8")
    print(f"automatic points: {total:g} of {sheet.automatic:g}")
    if sheet.manual:
        print(f"for a person to grade: {', '.join(sheet.manual)} ({sum(sheet.manual.values()):g} points)")
    print(f"feedback: {page}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=lambda p: Path(p).resolve(), default=ROOT, help="another repository's folder")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("release", help="write exercises/ from solutions/").set_defaults(call=release)
    commands.add_parser("check", help="compare exercises/ with solutions/").set_defaults(call=check)
    one = commands.add_parser("roundtrip", help="grade made-up submissions of each sheet")
    one.add_argument("numbers", nargs="*", metavar="NN")
    one.add_argument("--each", action="store_true", help="a submission of its own for every answer")
    one.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="submissions at a time")
    one.add_argument("--timeout", type=int, default=60, help="seconds a cell may take")
    one.set_defaults(call=roundtrip)
    one = commands.add_parser("grade", help="grade one notebook")
    one.add_argument("file", type=Path)
    one.add_argument("--chapter", metavar="NN", help="the sheet that it answers, if its name does not tell")
    one.add_argument("--timeout", type=int, default=120, help="seconds a cell may take")
    one.set_defaults(call=grade_file)
    args = parser.parse_args(argv)
    prepare_process()
    return args.call(args)


if __name__ == "__main__":
    sys.exit(main())
