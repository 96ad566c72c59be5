"""Trains one small network in a process of its own, so that a test can kill it.

Reads pairs of lines from standard input. At a folder's name it forks a child that trains there, resuming from the
folder's checkpoint, and prints the child's process id; at "wait" it awaits the child and prints its exit status.
Forking saves importing torch again.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from refimpl.training import fit

NUM_STEPS = 100


def train(folder: Path) -> None:
    """Everything that a resumed run could get wrong: shuffling, noise, dropout, schedule, clipping, average, buffers."""
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(4)
    data = torch.randn(50, 2, generator=generator)
    net = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))

    def loss(x):
        noise = torch.randn(len(x), 1, generator=generator)
        error = (net(x) - x.prod(-1, keepdim=True) + 0.1 * noise).square().mean()
        penalty = 1e-3 * sum(p.square().sum() for p in net.parameters())
        return error + penalty, {"error": error, "penalty": penalty}

    def evaluate(step, net):
        return {"probe": net(data[:3]).squeeze(-1), "draw": torch.rand((), generator=generator)}

    history = fit(
        net,
        loss,
        num_steps=NUM_STEPS,
        data=data,
        batch_size=16,
        generator=generator,
        lr=1e-2,
        schedule="warmup_cosine",
        clip_norm=0.5,
        ema=0.9,
        evaluate=evaluate,
        evaluate_every=7,
        checkpoint=folder / "run.pt",
        checkpoint_every=4,
        progress=False,
    )
    torch.save({"net": net.state_dict(), **vars(history)}, folder / "result.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # The first optimiser and the first progress bar import much: let them do it before forking.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    tqdm(disable=True).close()
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            train(Path(line.strip()))
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitpid(child, 0)[1], flush=True)
