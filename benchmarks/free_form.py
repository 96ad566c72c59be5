"""Cost of a training step of free-form flows, here, written naively, and with the exact determinant, as data grow.

    python benchmarks/free_form.py                 # all cells, a few minutes on two cores
    python benchmarks/free_form.py --quick         # a few seconds: does everything run
    python benchmarks/free_form.py --json out.json --device cuda

A step is a loss and its backward pass, without the optimiser. All variants take turns within every round, in one
process, so that a busy machine slows all of them alike. Printed are medians over the rounds, and the medians of ratios
within a round. The variants have the same networks and the same data:

* autoencoder: latent log-density and reconstruction error, no volume term: no free-form step can cost less;
* refimpl: `fff_loss`, which pushes tangents through the decoder as the pullback of its pullback;
* dual numbers: tangents by forward mode without gradient (`torch.autograd.forward_ad`), after a decoder pass with;
* torch.func: as one writes it first: `torch.func.jvp` of the decoder with gradients, of which the tangent's are thrown
  away, and a `create_graph` VJP of the encoder;
* loop over probes / loop over samples: the same in a Python loop over probe vectors (where there are several), or over
  the batch;
* exact: the full Jacobian and `slogdet`: of the encoder, or det(J^T J)^(1/2) of the decoder if the latent space is smaller.

Before the first round all stochastic variants are compared: with the same probes they must have the same gradients.
"""

import argparse
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from flows import keep_memory, measure, ratio
from torch import Tensor, nn
from torch.autograd import forward_ad

from refimpl import autodiff, runtime
from refimpl.free_form import fff_loss
from refimpl.nets import egnn, mlp, residual_mlp

BETA = 10.0
VARIANTS = ["autoencoder", "refimpl", "dual numbers", "torch.func", "loop over probes", "loop over samples", "exact"]


def log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


def combine(x: Tensor, z: Tensor, x1: Tensor, volume: Tensor | float) -> Tensor:
    """The loss from its parts."""
    return (BETA * (x - x1).square().sum(-1) - log_normal(z) - volume).mean()


def of_dual_numbers(encode: nn.Module, decode: nn.Module, x: Tensor, probes: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    z = encode(x)
    x1, volume = decode(z), 0.0
    for v in probes:
        with torch.no_grad(), forward_ad.dual_level():
            pushed = forward_ad.unpack_dual(decode(forward_ad.make_dual(z.detach(), v))).tangent
        (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
        volume = volume + (pulled * pushed).sum(-1) / len(probes)
    return combine(x, z, x1, volume)


def of_torch_func(encode: nn.Module, decode: nn.Module, x: Tensor, probes: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    z, volume = encode(x), 0.0
    for v in probes:
        x1, pushed = torch.func.jvp(decode, (z,), (v,))
        (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
        volume = volume + (pulled * pushed.detach()).sum(-1) / len(probes)
    return combine(x, z, x1, volume)


def of_samples(encode: nn.Module, decode: nn.Module, x: Tensor, probes: Tensor) -> Tensor:
    return torch.stack(
        [of_torch_func(encode, decode, x[i : i + 1], probes[:, i : i + 1]) for i in range(len(x))]
    ).mean()


def of_refimpl(encode: nn.Module, decode: nn.Module, x: Tensor, probes: Tensor) -> Tensor:
    return fff_loss(encode, decode, x, beta=BETA, probes=probes)[0]


def of_determinant(encode: nn.Module, decode: nn.Module, x: Tensor, probes: Tensor) -> Tensor:
    z = encode(x)
    if z.shape == x.shape:
        return combine(x, z, decode(z), autodiff.log_det_jacobian(encode, x))
    jacobian = autodiff.jacobian(decode, z, mode="forward")
    return combine(x, z, decode(z), -0.5 * torch.logdet(jacobian.mT @ jacobian))


def of_autoencoder(encode: nn.Module, decode: nn.Module, x: Tensor, probes: Tensor) -> Tensor:
    z = encode(x)
    return combine(x, z, decode(z), 0.0)


class Cell(NamedTuple):
    """Networks of one kind and size, and how many samples and probes a step has."""

    kind: str
    dim: int
    latents: int
    batch: int
    probes: int
    encoder: Callable[[], nn.Module]
    decoder: Callable[[], nn.Module]


def cells(quick: bool) -> Iterator[Cell]:
    width, batch = (8, 4) if quick else (128, 256)
    dims, several, injective, particles = (
        ([2, 4], 4, (6, 2), [(3, 2)])
        if quick
        else (
            [2, 8, 32, 128],
            32,
            (64, 8),
            [(4, 2), (13, 3)],
        )
    )
    for dim, probes in [*((dim, 1) for dim in dims), (several, 4)]:
        make = functools.partial(residual_mlp, dim, width=width, depth=3, blocks=2)
        yield Cell("residual", dim, dim, batch, probes, make, make)
    deep = functools.partial(mlp, width=width, depth=5, activation=nn.SiLU)
    dim, latents = injective
    make = functools.partial(deep, dim, latents), functools.partial(deep, latents, dim)
    yield Cell("injective", dim, latents, batch, 1, *make)
    for n, d in particles:
        make = functools.partial(egnn, n, d, width=8 if quick else 32, blocks=2, rounds=1, divisor=1)
        yield Cell("E(n)", n * d, n * d, batch if n < 10 else batch // 8, 1, make, make)


def variants(encode: nn.Module, decode: nn.Module, x: Tensor, num_probes: int) -> dict[str, Callable[[], None]]:
    """Variant -> one step; those that would be the same as another are left out."""
    losses = {
        "autoencoder": of_autoencoder,
        "refimpl": of_refimpl,
        "dual numbers": of_dual_numbers,
        "torch.func": of_torch_func,
        "loop over samples": of_samples,
        "exact": of_determinant,
    }
    if num_probes > 1:  # the three that loop over probes would take as many turns
        losses["loop over probes"] = losses.pop("torch.func")
        del losses["dual numbers"], losses["loop over samples"]
    parameters = [*encode.parameters(), *decode.parameters()]
    with torch.no_grad():
        z = encode(x)

    def step(loss: Callable, probes: Tensor | None = None) -> None:
        for p in parameters:
            p.grad = None
        if probes is None:
            probes = autodiff.probe_vectors(z, num_probes, "sphere")
        loss(encode, decode, x, probes).backward()

    def gradient(loss: Callable) -> Tensor:
        step(loss, autodiff.probe_vectors(z, num_probes, "sphere", torch.Generator().manual_seed(0)))
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    ours = gradient(of_refimpl)
    for name, loss in losses.items():
        if name not in ("autoencoder", "exact"):
            error = (gradient(loss) - ours).norm() / ours.norm()
            if not error < 1e-3:
                raise AssertionError(f"{name} has another gradient than refimpl: relative difference {error:.1e}")
    return {name: lambda loss=loss: step(loss) for name, loss in losses.items()}


def slope(dims: list[int], values: list[float]) -> float:
    """Of the regression line in logarithmic axes."""
    x, y = torch.tensor(dims).double().log(), torch.tensor(values).double().log()
    return float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of small cells")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", metavar="PATH", help="write the numbers here as well")
    parser.add_argument("--cpu-time", action="store_true", help="of the process, for busy machines; use one thread")
    parser.add_argument("--fresh-memory", action="store_true", help="leave the C library's memory settings alone")
    options = parser.parse_args()
    if not options.fresh_memory:
        keep_memory()
    rounds = 1 if options.quick else options.rounds
    clock = time.process_time if options.cpu_time else time.perf_counter
    autodiff.jvp(torch.sin, torch.zeros(1), torch.zeros(1))  # loads the rules of forward mode, and their warning

    print(runtime.describe())
    kind_of_time = "CPU time" if options.cpu_time else "wall time"
    print(f"{torch.get_num_threads()} threads, {options.device}; ms of {kind_of_time}, median of {rounds} rounds")
    heads = ["networks", "D", "latents", "batch", "probes", *VARIANTS]
    heads += ["ours / autoencoder", "fastest naive / ours", "exact / ours"]
    print("\n|", " | ".join(heads), "|\n" + "|---" * len(heads) + "|")
    table = []
    for cell in cells(options.quick):
        torch.manual_seed(0)
        encode, decode = cell.encoder().to(options.device), cell.decoder().to(options.device)
        x = torch.randn(cell.batch, cell.dim, device=options.device)
        times = measure(variants(encode, decode, x, cell.probes), rounds, options.device, clock)
        medians = {name: statistics.median(spent) for name, spent in times.items()}
        ours = times["refimpl"]
        naive = [name for name in times if name not in ("autoencoder", "refimpl", "exact")]
        ratios = dict(
            ours_to_autoencoder=ratio(ours, times["autoencoder"]),
            fastest_naive_to_ours=min(ratio(times[name], ours) for name in naive),
            exact_to_ours=ratio(times["exact"], ours),
        )
        columns = [f"{medians[name]:.1f}" if name in medians else "-" for name in VARIANTS]
        row = [*cell[:5], *columns, *(f"{r:.2f}" for r in ratios.values())]
        print("|", " | ".join(map(str, row)), "|", flush=True)
        every = {name: ratio(spent, ours) for name, spent in times.items()}
        shape = dict(zip(Cell._fields[:5], cell, strict=False))
        table.append(dict(shape, milliseconds=medians, ratio_to_ours=every, **ratios))

    grown = [cell for cell in table if cell["kind"] == "residual" and cell["probes"] == 1]
    dims = [cell["dim"] for cell in grown]
    slopes = {name: slope(dims, [cell["milliseconds"][name] for cell in grown]) for name in grown[0]["milliseconds"]}
    print(f"\nGrowth with D from {dims[0]} to {dims[-1]}, exponent of the step's time:")
    print(", ".join(f"{name} {value:.2f}" for name, value in slopes.items()))
    if options.json:
        with open(options.json, "w") as file:
            setting = dict(torch=torch.__version__, threads=torch.get_num_threads(), device=str(options.device))
            json.dump(dict(setting, time=kind_of_time, rounds=rounds, cells=table, exponents=slopes), file, indent=1)


if __name__ == "__main__":
    main()
