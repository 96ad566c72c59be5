"""What `import refimpl` and each of its modules cost beyond `import torch`: medians over fresh processes.

Run it with ``python benchmarks/import_time.py [repeats]``. Each repeat is a new process that imports torch and then
forks one child a module, so that every module finds torch loaded and nothing of refimpl. A first run, which may write
bytecode, does not count. The aim is at most 0.2 s for ``import refimpl``; no test checks it, because the time is the
machine's as much as the package's.
"""

import pkgutil
import statistics
import subprocess
import sys

import refimpl

AIM = 0.2
CODE = """
import os, sys, time
start = time.perf_counter()
import torch
print("torch", time.perf_counter() - start, flush=True)
for name in sys.argv[1:]:
    if os.fork() == 0:
        start = time.perf_counter()
        __import__(name)
        print(name, time.perf_counter() - start, flush=True)
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(f"import {name} failed")
"""


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    names = ["refimpl", *(m.name for m in pkgutil.walk_packages(refimpl.__path__, "refimpl."))]
    seconds: dict[str, list[float]] = {}
    for i in range(repeats + 1):
        run = subprocess.run([sys.executable, "-c", CODE, *names], stdout=subprocess.PIPE, text=True, check=True)
        for name, value in (line.split() for line in run.stdout.splitlines()):
            if i > 0:
                seconds.setdefault(name, []).append(float(value))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"import torch: {median['torch']:.2f} s (median of {repeats})")
    print(f"{'beyond it':24} {'ms':>8} {'ratio':>8}")
    for name in names:
        print(f"{name:24} {1000 * median[name]:8.1f} {median[name] / median['torch']:8.4f}")
    print(f"import refimpl uses {median['refimpl'] / AIM:.1%} of its {AIM} s")


if __name__ == "__main__":
    main()
