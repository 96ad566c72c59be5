"""One gradient of a whole elastic band: all pivots stacked (NetworkLoss) beside a loop over the pivots.

Both get the same batch and give the same matrix of gradients. They take turns in one process, so that the ratios hold
on a busy machine. The loop is what one would write without stacking: load the pivot into the module, forward, backward,
read the gradient.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from refimpl import runtime
from refimpl.data import digits
from refimpl.landscape import NetworkLoss, value_and_gradient
from refimpl.nets import cnn, mlp

SECONDS, ROUNDS = 0.5, 40  # a cell of the table ends with the first of the two, but not before 5 rounds
PIVOTS, BATCHES, WIDTHS = (5, 15, 31), (16, 32, 64, 256), (1, 2, 4)
NETWORKS = {
    "MLP 64-32-32-10": lambda width=1: mlp(64, 10, width=32 * width, depth=3),
    "CNN 8-16": lambda width=1: cnn(1, 10, channels=[8 * width, 16 * width], image_size=8),
}


def one_after_the_other(module: nn.Module, pivots: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Gradient at every pivot; batch norm uses the batch, as in NetworkLoss."""
    parameters, gradients = list(module.parameters()), torch.empty_like(pivots)
    for pivot, gradient in zip(pivots, gradients, strict=True):
        nn.utils.vector_to_parameters(pivot, parameters)
        parts = torch.autograd.grad(F.cross_entropy(module(x), y), parameters)
        torch.cat([part.flatten() for part in parts], out=gradient)
    return gradients


def milliseconds(work: Callable) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def compare(make: Callable, num_pivots: int, batch: int) -> tuple[int, float, float, float]:
    """Number of parameters, median milliseconds of the loop and of the stack, and median of their ratio."""
    torch.manual_seed(0)
    device = runtime.device()
    module = make().to(device).train()
    loss = NetworkLoss(module, F.cross_entropy)
    pivots = torch.stack([loss.vector(make().to(device)) for _ in range(num_pivots)])
    x, y = (t[:batch].to(device) for t in digits())
    x = x.view(-1, 1, 8, 8) if isinstance(module[0], nn.Conv2d) else x
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats = False  # spares the loop their update

    def loop():
        return one_after_the_other(module, pivots, x, y)

    def stacked():
        return value_and_gradient(loss, pivots, x, y)[1]

    torch.testing.assert_close(loop(), stacked(), atol=1e-4, rtol=1e-3)
    milliseconds(loop), milliseconds(stacked)
    times, start = [], time.perf_counter()
    while len(times) < 5 or (len(times) < ROUNDS and time.perf_counter() - start < SECONDS):
        times.append((milliseconds(loop), milliseconds(stacked)))
    one, all_at_once = (statistics.median(column) for column in zip(*times, strict=True))
    return loss.dim, one, all_at_once, statistics.median(a / b for a, b in times)


def main() -> None:
    print(runtime.describe())
    best = {}
    for name, make in NETWORKS.items():
        print(f"\n{name}: ms a gradient of the band, loop / stacked = ratio")
        print(f"{'pivots':>8}" + "".join(f"{f'batch {batch}':>22}" for batch in BATCHES))
        for num_pivots in PIVOTS:
            cells = []
            for batch in BATCHES:
                _, one, all_at_once, ratio = compare(make, num_pivots, batch)
                best[name] = max(best.get(name, (0, 0, 0)), (ratio, num_pivots, batch))
                cells.append(f"{one:8.1f} /{all_at_once:6.1f} ={ratio:4.1f}")
            print(f"{num_pivots:>8}" + "".join(f"{cell:>22}" for cell in cells))
        print(f"{'width':>8}{'parameters':>12}   (15 pivots, batch 32)")
        for width in WIDTHS:
            dim, one, all_at_once, ratio = compare(lambda make=make, width=width: make(width), 15, 32)
            print(f"{f'x {width}':>8}{dim:>12,}{one:11.1f} /{all_at_once:6.1f} ={ratio:4.1f}")
    print()
    for name, (ratio, num_pivots, batch) in best.items():
        print(f"{name}: at best {ratio:.1f} times as fast, with {num_pivots} pivots and a batch of {batch}")
    print("The gain is the overhead of many small calls. It ends where one network's batch keeps the processor busy.")


if __name__ == "__main__":
    main()
