"""Time of one layer of Gaussianization: all coordinates at once, beside a Python loop over them and scikit-learn.

    python benchmarks/gaussianization.py                 # D = 16 to 1024, about two minutes on one core
    python benchmarks/gaussianization.py --quick         # seconds: does everything run
    python benchmarks/gaussianization.py --json out.json --device cuda

A layer is: draw a rotation and turn the data, fit the coordinate maps, apply them (with the log-determinant). The loop
fits and applies the same map to each coordinate alone. scikit-learn's QuantileTransformer (with as many quantiles as we
have knots) fits and transforms; it gives no derivative, so that it can't serve a likelihood. All take turns within every
round, so that a busy machine slows all of them alike; printed are medians over the rounds.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.preprocessing import QuantileTransformer

from refimpl import runtime
from refimpl.flows.gaussian_recursion import haar
from refimpl.flows.gaussianization import MarginalGaussianization

STEPS = ("rotate", "fit", "apply", "loop: fit", "loop: apply", "sklearn: fit", "sklearn: apply")


def milliseconds(work: Callable, device: torch.device) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start), result


@torch.no_grad()
def one_round(dim: int, num_points: int, device: torch.device, compare: bool) -> dict[str, float]:
    """Milliseconds of each step; the maps of all three are checked against each other."""
    source, took = runtime.generator(dim), {}
    data = torch.rand(num_points, dim, generator=source).to(device)

    def rotate() -> torch.Tensor:
        return data @ haar(dim, generator=source, dtype=torch.float32).to(device).T

    def each(f: list[MarginalGaussianization]) -> tuple[torch.Tensor, torch.Tensor]:
        images, log_dets = zip(*(f[i](x[:, i : i + 1]) for i in range(dim)), strict=True)
        return torch.cat(images, 1), torch.stack(log_dets).sum(0)

    took["rotate"], x = milliseconds(rotate, device)
    took["fit"], ours = milliseconds(lambda: MarginalGaussianization(dim).fit(x), device)
    took["apply"], (z, log_det) = milliseconds(lambda: ours(x), device)
    if not compare:
        return took
    loop = [MarginalGaussianization(1) for _ in range(dim)]
    took["loop: fit"], _ = milliseconds(lambda: [f.fit(x[:, i : i + 1]) for i, f in enumerate(loop)], device)
    took["loop: apply"], (again, log_det_again) = milliseconds(lambda: each(loop), device)
    torch.testing.assert_close(z, again, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(log_det, log_det_again, atol=1e-2, rtol=1e-2)
    points = x.cpu().numpy()
    transform = QuantileTransformer(n_quantiles=65, output_distribution="normal", subsample=None)
    took["sklearn: fit"], _ = milliseconds(lambda: transform.fit(points), device)
    took["sklearn: apply"], theirs = milliseconds(lambda: transform.transform(points), device)
    inner = z.abs() < 1.5
    assert (z.cpu() - torch.from_numpy(theirs))[inner.cpu()].abs().mean() < 0.05
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--device", help="default: the GPU if there is one")
    arguments = parser.parse_args()
    device = torch.device(arguments.device) if arguments.device else runtime.device()
    dims, num_points, rounds = ([4, 16], 2000, 1) if arguments.quick else ([16, 64, 256, 1024], 20_000, 3)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    print(f"{num_points:,} points, {where}, PyTorch {torch.__version__}; milliseconds, medians of {rounds} round(s)\n")
    print("| D | " + " | ".join(STEPS) + " | ours: layer | loop / ours |\n|" + "---|" * (len(STEPS) + 3))
    rows = []
    warnings.simplefilter("ignore", UserWarning)
    one_round(16, 1000, device, True)  # warm up
    for dim in dims:
        times = [one_round(dim, num_points, device, compare=True) for _ in range(rounds)]
        row = {step: statistics.median(t[step] for t in times) for step in STEPS}
        layer = row["rotate"] + row["fit"] + row["apply"]
        ratio = (row["loop: fit"] + row["loop: apply"]) / (row["fit"] + row["apply"])
        print(f"| {dim} | " + " | ".join(f"{row[step]:.1f}" for step in STEPS) + f" | {layer:.1f} | {ratio:.1f} |")
        rows.append({"dim": dim, **row, "layer": layer, "loop over ours": ratio})
    if arguments.json:
        facts = {"points": num_points, "device": where, "torch": torch.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
