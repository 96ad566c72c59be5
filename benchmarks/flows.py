"""Cost of coupling flows here and in zuko, normflows, nflows and FrEIA, beside that of their bare networks.

    python benchmarks/flows.py                 # all cells, a few minutes on two cores
    python benchmarks/flows.py --quick         # a few seconds: does everything run
    python benchmarks/flows.py --json out.json --device cuda

Two things are timed: a training step without the optimiser (log_prob and backward), and sampling without gradients.
All libraries take turns within every round, in one process, so that a busy machine slows all of them alike. Printed are
medians over the rounds, and the medians of two ratios within a round: ours to the bare networks, and the fastest other
library to ours.

What is the same: 8 one-sided couplings that move one half of the features each, a ReLU network of 128-128 hidden units
for each of them that predicts all its parameters at once, splines of 8 bins with linear tails, a standard normal base.
What differs, because the libraries offer no more:

* scales: e^s with s soft-clamped by tanh (here), by atan (FrEIA), by s / (1 + |s| / c) (zuko), not clamped (normflows);
  sigmoid(s + 2) + 0.001 (nflows);
* halves: contiguous (here, normflows, FrEIA), by mask and index (zuko, nflows, normflows' splines);
* FrEIA's GLOWCouplingBlock is two-sided, so that 4 of them make 8 couplings; FrEIA 0.2 has no splines;
* normflows takes z -> x as forward, so that its log_prob runs the couplings' inverses: for splines the dearer direction,
  and its sampling the cheaper one. Its CoupledRationalQuadraticSpline would bring residual networks along, so the
  coupling inside it is used, with the networks of the others;
* zuko's splines are those of its NSF, in its plain coupling instead of a masked network.
"""

import argparse
import ctypes
import json
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from refimpl import runtime
from refimpl.flows import AffineMap, Chain, Coupling, Flow, SplineMap, StandardNormal
from refimpl.nets import mlp

LAYERS, WIDTH, BINS, BOUND = 8, 128, 8, 5.0


class Net(nn.Module):
    """The network of every library: (passive, context) -> raw parameters."""

    hidden_features = WIDTH  # nflows and normflows divide raw widths and heights by its root

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.net = mlp(dim_in, dim_out, width=WIDTH, depth=3)

    def forward(self, passive: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.net(passive)


class Bare(nn.Module):
    """The networks and nothing else: no coupling can cost less."""

    def __init__(self, kind: str, dim: int):
        super().__init__()
        outputs = (2 if kind == "affine" else 3 * BINS - 1) * dim // 2
        self.nets = nn.ModuleList(Net(dim // 2, outputs) for _ in range(LAYERS))

    def run(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [net(x) for net in self.nets]


def masks(dim: int) -> list[torch.Tensor]:
    """Which features each layer moves."""
    return [torch.arange(dim) % 2 == i % 2 for i in range(LAYERS)]


def ours(kind: str, dim: int) -> tuple[nn.Module, Callable, Callable]:
    tau = AffineMap() if kind == "affine" else SplineMap(BINS, BOUND)
    flow = Flow(Chain(*[Coupling(dim, tau, Net, swap=i % 2 == 1) for i in range(LAYERS)]), StandardNormal([dim]))
    return flow, flow.log_prob, lambda n: flow.sample([n])


def of_zuko(kind: str, dim: int) -> tuple[nn.Module, Callable, Callable]:
    import zuko

    spline = dict(univariate=zuko.transforms.MonotonicRQSTransform, shapes=[(BINS,), (BINS,), (BINS - 1,)])
    settings = spline if kind == "spline" else {}
    flow = zuko.flows.RealNVP(dim, transforms=LAYERS, hidden_features=[WIDTH, WIDTH], **settings)
    return flow, lambda x: flow().log_prob(x), lambda n: flow().sample([n])


def of_normflows(kind: str, dim: int) -> tuple[nn.Module, Callable, Callable]:
    import normflows
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    if kind == "spline":
        layers = [
            PiecewiseRationalQuadraticCoupling(mask.int(), Net, num_bins=BINS, tails="linear", tail_bound=BOUND)
            for mask in masks(dim)
        ]
    else:
        halves = [normflows.flows.AffineCouplingBlock(Net(dim // 2, dim)) for _ in range(LAYERS)]
        layers = [layer for half in halves for layer in (half, normflows.flows.Permute(dim, mode="swap"))]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dim, trainable=False), layers)
    return flow, flow.log_prob, lambda n: flow.sample(n)[0]


def of_nflows(kind: str, dim: int) -> tuple[nn.Module, Callable, Callable]:
    from nflows import distributions, flows, transforms

    if kind == "affine":
        layers = [transforms.AffineCouplingTransform(mask.int(), Net) for mask in masks(dim)]
    else:
        spline, settings = transforms.PiecewiseRationalQuadraticCouplingTransform, dict(tails="linear")
        layers = [spline(mask.int(), Net, num_bins=BINS, tail_bound=BOUND, **settings) for mask in masks(dim)]
    flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([dim]))
    return flow, flow.log_prob, flow.sample


def of_freia(kind: str, dim: int) -> tuple[nn.Module, Callable, Callable] | None:
    if kind == "spline":
        return None
    from FrEIA import framework, modules

    flow = framework.SequenceINN(dim)
    for _ in range(LAYERS // 2):
        flow.append(modules.GLOWCouplingBlock, subnet_constructor=Net)
    base = StandardNormal([dim])
    flow.add_module("base", base)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        z, log_det = flow(x)
        return base.log_prob(z) + log_det

    return flow, log_prob, lambda n: flow(base.sample([n]), rev=True)[0]


def bare(kind: str, dim: int) -> tuple[nn.Module, Callable, Callable]:
    nets = Bare(kind, dim)
    return nets, nets.run, lambda n: nets.run(torch.randn(n, dim // 2, device=next(nets.parameters()).device))


LIBRARIES = {
    "bare": bare,
    "refimpl": ours,
    "zuko": of_zuko,
    "normflows": of_normflows,
    "nflows": of_nflows,
    "FrEIA": of_freia,
}


def variants(kind: str, dim: int, batch: int, device: torch.device) -> dict[str, dict[str, Callable]]:
    """What to time: task -> library -> work."""
    torch.manual_seed(0)
    x = torch.randn(batch, dim, device=device)
    tasks: dict[str, dict[str, Callable]] = {"train": {}, "sample": {}}
    for name, make in LIBRARIES.items():
        made = make(kind, dim)
        if made is None:
            continue
        flow, log_prob, sample = made
        flow.to(device)

        def train(flow: nn.Module = flow, log_prob: Callable = log_prob) -> None:
            flow.zero_grad()
            if isinstance(flow, Bare):
                # Inside a flow all networks but the first also pass a gradient on to their input.
                outputs = flow.run(x[:, : dim // 2].requires_grad_())
                torch.autograd.backward(outputs, outputs)
            else:
                (-log_prob(x).mean()).backward()

        def draw(sample: Callable = sample) -> None:
            with torch.no_grad():
                sample(batch)

        tasks["train"][name], tasks["sample"][name] = train, draw
    return tasks


def keep_memory() -> None:
    """Ask glibc to keep what is freed: fetching it anew costs page faults, at random, of more time than the arithmetic."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another system
        return
    for name, value in ((-1, 2**31 - 1), (-4, 0)):  # M_TRIM_THRESHOLD, M_MMAP_MAX
        libc.mallopt(name, value)


def milliseconds(work: Callable, device: torch.device, clock: Callable[[], float]) -> float:
    """Time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (clock() - start)


def measure(works: dict[str, Callable], rounds: int, *how) -> dict[str, list[float]]:
    """Milliseconds of every library in every round; they take turns, and a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            spent = milliseconds(work, *how)
            if i:
                times[name].append(spent)
    return times


def ratio(a: list[float], b: list[float]) -> float:
    """Median of the ratios within a round, in which a busy machine was equally busy for both."""
    return statistics.median(s / t for s, t in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of small cells")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", metavar="PATH", help="write the numbers here as well")
    parser.add_argument("--cpu-time", action="store_true", help="of the process, for busy machines; use one thread")
    parser.add_argument("--fresh-memory", action="store_true", help="leave the C library's memory settings alone")
    parser.add_argument("--only", nargs="+", default=["affine", "spline"], choices=["affine", "spline"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the other libraries
    if not options.fresh_memory:
        keep_memory()
    rounds, batches, dims = (1, [32], [2, 4]) if options.quick else (options.rounds, [256, 8192], [2, 64])

    clock = time.process_time if options.cpu_time else time.perf_counter

    print(runtime.describe())
    kind_of_time = "CPU time" if options.cpu_time else "wall time"
    print(f"{torch.get_num_threads()} threads, {options.device}; ms of {kind_of_time}, median of {rounds} rounds")
    print(f"({5 * rounds} for small batches)\n")
    print("| task | maps | D | batch |", " | ".join(LIBRARIES), "| ours / bare | fastest other / ours |")
    print("|---" * (6 + len(LIBRARIES)) + "|")
    cells = []
    for kind in options.only:
        for dim in dims:
            for batch in batches:
                for task, works in variants(kind, dim, batch, options.device).items():
                    times = measure(works, rounds if batch > 1000 else 5 * rounds, options.device, clock)
                    medians = {name: statistics.median(spent) for name, spent in times.items()}
                    columns = [f"{medians[name]:.1f}" if name in medians else "-" for name in LIBRARIES]
                    ours = times["refimpl"]
                    to_bare = ratio(ours, times["bare"])
                    ahead = min(ratio(t, ours) for name, t in times.items() if name not in ("bare", "refimpl"))
                    row = [task, kind, str(dim), str(batch), *columns, f"{to_bare:.2f}", f"{ahead:.2f}"]
                    print("|", " | ".join(row), "|", flush=True)
                    cell = dict(task=task, maps=kind, dim=dim, batch=batch, milliseconds=medians)
                    cells.append(dict(cell, ours_to_bare=to_bare, fastest_other_to_ours=ahead))
    if options.json:
        with open(options.json, "w") as file:
            setting = dict(torch=torch.__version__, threads=torch.get_num_threads(), device=str(options.device))
            json.dump(dict(setting, rounds=rounds, cells=cells), file, indent=1)


if __name__ == "__main__":
    main()
