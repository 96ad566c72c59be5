"""E(n)-equivariant network: particles that talk about their distances, and move along their differences.

Messages depend on squared distances only, so that they do not change when the particles are moved, turned or mirrored
together; a particle then moves along the differences to the others, weighted by such messages, so that its motion
turns with them. Sums over the others make the order of the particles irrelevant. All of it is dense, (*batch, n, n)
tensors with the diagonal masked, and infinitely often differentiable, also where particles coincide: a free-form flow
differentiates twice.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from refimpl._checks import check_positive, check_sizes
from refimpl.nets.mlp import mlp

__all__ = ["egnn"]


class _Edges(nn.Module):
    """silu(W [h_i, h_j, a_ij] + b) for all pairs, without forming the triples: W acts on each part by itself."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.linear = width, nn.Linear(2 * width + 2, width)

    def forward(self, h: Float[Tensor, "*batch n w"], a: Float[Tensor, "*batch n n 2"]) -> Tensor:
        of_i, of_j, of_edge = self.linear.weight.split([self.width, self.width, 2], 1)
        here = functional.linear(h, of_i, self.linear.bias).unsqueeze(-2)
        there = functional.linear(h, of_j).unsqueeze(-3)
        return functional.silu(here + there + functional.linear(a, of_edge))


class _Round(nn.Module):
    """One round of gated messages: h_i + MLP([h_i, sum_{j != i} m_ij / divisor])."""

    def __init__(self, width: int, divisor: float):
        super().__init__()
        self.divisor, self.edges = divisor, _Edges(width)
        self.message = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.gate = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())
        self.update = mlp(2 * width, width, width=width, depth=2, activation=nn.SiLU)

    def forward(self, h: Tensor, a: Tensor, others: Tensor) -> Tensor:
        m = self.message(self.edges(h, a))
        heard = (m * self.gate(m) * others).sum(-2) / self.divisor
        return h + self.update(torch.cat([h, heard], -1))


class _Block(nn.Module):
    """Rounds of messages, then x_i + sum_j (x_i - x_j) / sqrt(1 + r_ij^2) * MLP([h_i, h_j, a_ij]) / divisor."""

    def __init__(self, width: int, rounds: int, divisor: float):
        super().__init__()
        self.divisor, self.edges = divisor, _Edges(width)
        self.rounds = nn.ModuleList(_Round(width, divisor) for _ in range(rounds))
        self.pull = mlp(width, 1, width=width, depth=2, activation=nn.SiLU)
        last = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=0.001)  # the network starts near the identity
        self.pull[-1] = last

    def forward(self, h: Tensor, x: Tensor, start: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        differences, squares = _pairs(x)
        a = torch.cat([squares, start], -1)
        for listen in self.rounds:
            h = listen(h, a, others)
        weights = self.pull(self.edges(h, a)) * (1 + squares).rsqrt()
        return h, x + (differences * weights).sum(-2) / self.divisor


class _EGNN(nn.Module):
    def __init__(self, num_particles: int, dim: int, width: int, blocks: int, rounds: int, divisor: float):
        super().__init__()
        self.shape = (num_particles, dim)
        self.feature = nn.Parameter(torch.randn(width))  # of every particle: they are all alike
        self.blocks = nn.ModuleList(_Block(width, rounds, divisor) for _ in range(blocks))
        self.register_buffer("others", 1 - torch.eye(num_particles).unsqueeze(-1), persistent=False)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        n, dim = self.shape
        if x.shape[-1:] != (n * dim,):
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*batch, {n * dim}), {n} particles x {dim}")
        at = x.unflatten(-1, self.shape)
        h, y, start = self.feature.expand(*at.shape[:-1], -1), at, _pairs(at)[1]
        for block in self.blocks:
            h, y = block(h, y, start, self.others)
        moved = y - at
        return x + (moved - moved.mean(-2, keepdim=True)).flatten(-2)


def _pairs(x: Float[Tensor, "*batch n dim"]) -> tuple[Tensor, Tensor]:
    """x_i - x_j, shape (*batch, n, n, dim), and squared distances, shape (*batch, n, n, 1)."""
    differences = x.unsqueeze(-2) - x.unsqueeze(-3)
    return differences, differences.square().sum(-1, keepdim=True)


def egnn(
    num_particles: int, dim: int, *, width: int, blocks: int, rounds: int = 2, divisor: float | int = 100.0
) -> nn.Module:
    """E(n)-equivariant network on configurations of identical particles.

    It commutes with translations, rotations, reflections and permutations of the particles, and leaves their centre of
    mass where it is. Therefore the determinant of its full Jacobian is that on mean-free configurations, and a
    free-form flow needs no projection of its probes.

    Args:
        num_particles: n, >= 2 to do anything: one particle alone stays.
        dim: of space.
        width: features of a particle and of a message.
        blocks: each ends in one update of the positions.
        rounds: of messages in each block.
        divisor: of sums over the other particles. 100 suits training with many blocks; small networks that train for
            few steps learn faster with 1.

    Returns:
        Module from coordinates (*batch, num_particles * dim), particle by particle, to the same shape.

    Raises:
        ValueError: if a size is not a whole number >= 1 or `divisor` is not positive; when called, if the last
            dimension does not hold all coordinates.

    Source: Satorras, Hoogeboom, Welling 2021 (arXiv 2102.09844), as Draxler et al. 2024 (arXiv 2310.16624) use it for
    Boltzmann generators, except that differences are divided by sqrt(1 + r^2), not 1 + r, which has no second
    derivative at r = 0.

    >>> net = egnn(4, 2, width=8, blocks=1)
    >>> x = torch.randn(5, 8)
    >>> net(x).shape, torch.allclose(net(x + 3), net(x) + 3, atol=1e-5)
    (torch.Size([5, 8]), True)
    """
    check_sizes(num_particles=num_particles, dim=dim, width=width, blocks=blocks, rounds=rounds)
    check_positive("divisor", divisor)
    return _EGNN(num_particles, dim, width, blocks, rounds, float(divisor))
