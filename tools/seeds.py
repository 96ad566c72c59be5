"""Run chapters at five seeds and keep what each claim measured: results/seeds/NAME.json.

A criterion is committed only after it held at every seed, so this is run by hand whenever a chapter's method changes:

    python tools/seeds.py --chapter 01
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEEDS = [0, 1, 2, 3, 4]

# Runs a chapter's text twin as a script and dumps the claims it measured.
RUNNER = """
import json, runpy, sys
from refimpl.claims import Claims
made = []
initial = Claims.__init__
def remember(self, *args, **kwargs):
    initial(self, *args, **kwargs)
    made.append(self)
Claims.__init__ = remember
runpy.run_path(sys.argv[1], run_name="__main__")
json.dump([c.as_dict() for c in made if sys.argv[1].endswith(c.chapter + ".py")][-1], open(sys.argv[2], "w"))
"""


def run(chapter: Path, seed: int) -> dict:
    """What the claims of ``chapter`` measured at quick size with ``seed``."""
    environment = os.environ | {
        "REFIMPL_SEED": str(seed),
        "REFIMPL_SIZE": "quick",
        "MPLBACKEND": "Agg",
        "REFIMPL_DEVICE": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "claims.json"
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, str(chapter), str(out)], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{chapter.name} at seed {seed}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chapter", default="", help="number, e.g. 01; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="seeds run side by side")
    arguments = parser.parse_args()
    chapters = sorted((ROOT / "chapters").glob(f"{arguments.chapter or '[0-9][0-9]'}_*.py"))
    if not chapters:
        print(f"no chapter {arguments.chapter}")
        return 1
    failures = 0
    for chapter in chapters:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            runs = list(pool.map(lambda s, c=chapter: run(c, s), SEEDS))
        claims = {
            c["id"]: {
                "criterion": c["criterion"],
                "values": [r["claims"][i]["values"] for r in runs],
                "holds": [r["claims"][i]["holds"] for r in runs],
            }
            for i, c in enumerate(runs[0]["claims"])
        }
        path = ROOT / "results" / "seeds" / f"{chapter.stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"chapter": chapter.stem, "size": "quick", "seeds": SEEDS, "claims": claims}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for id, row in claims.items():
            failures += row["holds"].count(False)
            worst = [f"{min(v):.3g}..{max(v):.3g}" if len(v) > 1 else f"{v[0]:.3g}" for v in row["values"]]
            print(
                f"{id:7} {sum(row['holds'])}/{len(SEEDS)}  {row['criterion']}  measured {'  '.join(worst)}", flush=True
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
