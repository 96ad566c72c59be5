"""Cost of the course's training loop: fit() beside a loop written by hand, and a Stack beside separate networks.

All variants take turns in one process, so that the ratios hold on a busy machine.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch

from refimpl import runtime
from refimpl.data import grid, sum_of_sines
from refimpl.nets import Stack, mlp
from refimpl.training import fit

STEPS, ROUNDS, NETWORKS = 200, 7, 8


def by_hand(parameters, loss: Callable) -> None:
    """The bare loop, with the same optimiser that fit() takes by default."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def milliseconds(work: Callable) -> float:
    """Wall time of a step."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / STEPS


def main() -> None:
    device = runtime.device()
    print(runtime.describe())
    x = grid(128, device=device)[:, None]
    y = sum_of_sines(x[:, 0], [2, 4, 6, 8, 10])[0]
    networks = [mlp(1, 1, width=128, depth=5).to(device) for _ in range(NETWORKS)]
    one, stack = networks[0], Stack(copy.deepcopy(networks)).to(device)
    many = x.expand(NETWORKS, -1, -1)

    def loss_of(net: torch.nn.Module) -> Callable:
        return lambda: (net(x)[:, 0] - y).square().mean()

    def loss_of_all() -> torch.Tensor:
        return (stack(many)[..., 0] - y).square().mean(-1).sum()

    variants = {
        "one network, loop by hand": lambda: by_hand(one.parameters(), loss_of(one)),
        "one network, fit()": lambda: fit(one, loss_of(one), num_steps=STEPS, progress=False),
        f"{NETWORKS} networks, one after the other": lambda: [by_hand(n.parameters(), loss_of(n)) for n in networks],
        f"{NETWORKS} networks, Stack": lambda: by_hand(stack.parameters(), loss_of_all),
    }
    times = {name: [] for name in variants}
    for round in range(ROUNDS + 1):
        for name, work in variants.items():
            spent = milliseconds(work)
            if round:  # the first round warms up
                times[name].append(spent)
    print(f"{'5 layers of 128, 128 points':42} ms a step   (median of {ROUNDS})")
    for name, spent in times.items():
        print(f"{name:42} {statistics.median(spent):9.2f}")
    names = list(variants)
    for a, b in ((names[1], names[0]), (names[3], names[2])):
        ratio = statistics.median(s / t for s, t in zip(times[a], times[b], strict=True))
        print(f"{a} / {b}: {ratio:.2f}")


if __name__ == "__main__":
    main()
