"""Stochastic normalizing flows: bijections and random steps in turn; weights of whole paths correct what is left.

An energy u is a map from (*batch, dim) to (*batch,) with density proportional to exp(-u). A path z_0, ..., x_T starts
in the base density p_Z and ends where one wants samples of exp(-u_X). Its weight

    log w = -u_X(x_T) - log p_Z(z_0) + sum_t Delta S_t

has the mean E[w] = Z_X, the integral of exp(-u_X), and E[w h(x_T)] / E[w] is the mean of h under the target, however
bad the layers are. Delta S of a layer is the log-ratio of the probabilities of its step backwards and forwards: the
log-determinant of a bijection.

This is no `Bijection`: the density of x_T alone is out of reach, and is not needed.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes
from refimpl.flows.bases import Base
from refimpl.flows.bijection import Bijection

__all__ = [
    "HMC",
    "Kernel",
    "Langevin",
    "Metropolis",
    "StochasticFlow",
    "effective_sample_size",
    "interpolate",
    "log_mean_weight",
]

Energy = Callable[[Tensor], Tensor]


def interpolate(start: Energy, end: Energy, weight: float | int) -> Energy:
    """The energy (1 - weight) start + weight end."""
    return lambda x: (1 - weight) * start(x) + weight * end(x)


def _check_energy(name: str, energy: object) -> None:
    if not callable(energy):
        raise TypeError(f"{name}: got {type(energy).__name__}, expected a function of points")


def _values(energy: Energy, x: Tensor) -> Tensor:
    """energy(x), if it has the shape of the batch: others would be broadcast, and give wrong weights without a word."""
    values = energy(x)
    if values.shape != x.shape[:-1]:
        raise ValueError(f"energy: returned shape {tuple(values.shape)}, expected {tuple(x.shape[:-1])}, one a point")
    return values


def _check_weights(log_w: object) -> None:
    if not isinstance(log_w, Tensor) or log_w.ndim != 1 or not len(log_w):
        got = tuple(log_w.shape) if isinstance(log_w, Tensor) else type(log_w).__name__
        raise ValueError(f"log_w: got {got}, expected a tensor of shape (paths,), one path or more")


def log_mean_weight(log_w: Float[Tensor, " paths"]) -> Float[Tensor, ""]:
    """log of the mean of w: an estimate of log Z_X if p_Z is normalised.

    >>> log_mean_weight(torch.tensor([0.0, math.log(3)]))
    tensor(0.6931)
    """
    _check_weights(log_w)
    return log_w.logsumexp(0) - math.log(len(log_w))


def effective_sample_size(log_w: Float[Tensor, " paths"]) -> Float[Tensor, ""]:
    """(sum w)^2 / (n sum w^2): the share of n weighted samples that as many equal weights are worth, 1/n to 1.

    >>> effective_sample_size(torch.zeros(5))
    tensor(1.)
    """
    _check_weights(log_w)
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp() / len(log_w)


def _normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    where = generator.device if generator else x.device
    return torch.randn(x.shape, dtype=x.dtype, device=where, generator=generator).to(x.device)


class Kernel(nn.Module):
    """Random step x -> x', repeated `num_steps` times.

    Args:
        energy: u, whose density exp(-u) the step keeps, exactly or nearly.
        step: size of a step.
        num_steps: how many.
    """

    def __init__(self, energy: Energy, step: float | int, num_steps: int = 1):
        super().__init__()
        _check_energy("energy", energy)
        check_positive("step", step)
        check_sizes(num_steps=num_steps)
        self.energy, self.step, self.num_steps = energy, step, num_steps

    def forward(
        self, x: Float[Tensor, "*batch dim"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x' and Delta S, shape (*batch,)."""
        total = x.new_zeros(x.shape[:-1])
        for _ in range(self.num_steps):
            x, delta = self.move(x, generator)
            total = total + delta
        return x, total

    def move(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """One step."""
        raise NotImplementedError

    def force(self, x: Tensor) -> Tensor:
        """-grad u, differentiable."""
        return -torch.func.grad(lambda x: _values(self.energy, x).sum())(x)

    def accept(
        self, x: Tensor, proposal: Tensor, growth: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The proposal with probability min(1, exp(-growth)), growth that of the (total) energy; then x' and Delta S.

        A kernel in detailed balance with exp(-u) has Delta S = u(x') - u(x), and so 0 where it stays.
        """
        where = generator.device if generator else x.device
        uniform = torch.rand(growth.shape, dtype=x.dtype, device=where, generator=generator).to(x.device)
        new = torch.where((uniform.log() < -growth).unsqueeze(-1), proposal, x)
        return new, _values(self.energy, new) - _values(self.energy, x)


class Langevin(Kernel):
    """x' = x - step grad u(x) + sqrt(2 step) eps: overdamped, without correction; the path's weight accounts for its error.

    Delta S = (|eps|^2 - |eps'|^2) / 2 with the noise eps' that would lead from x' back to x.

    Source: Wu, Köhler, Noé 2020 (arXiv 2002.06707), Sec. 4.
    """

    def move(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        noise, scale = _normal(x, generator), math.sqrt(2 * self.step)
        new = x + self.step * self.force(x) + scale * noise
        back = (x - new - self.step * self.force(new)) / scale
        return new, 0.5 * (noise.square() - back.square()).sum(-1)


class Metropolis(Kernel):
    """Random walk of normal steps with standard deviation `step`, accepted so that exp(-u) is kept exactly."""

    def move(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        proposal = x + self.step * _normal(x, generator)
        return self.accept(x, proposal, _values(self.energy, proposal) - _values(self.energy, x), generator)


class HMC(Kernel):
    """Hamiltonian Monte Carlo: fresh momenta, `num_leapfrog` leapfrog steps of length `step`, accepted or not.

    Args:
        energy: u.
        step: time of a leapfrog step.
        num_steps: how many trajectories.
        num_leapfrog: leapfrog steps in each.
    """

    def __init__(self, energy: Energy, step: float | int, num_steps: int = 1, num_leapfrog: int = 5):
        super().__init__(energy, step, num_steps)
        check_sizes(num_leapfrog=num_leapfrog)
        self.num_leapfrog = num_leapfrog

    def move(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        start = _normal(x, generator)
        new, momentum = x, start + 0.5 * self.step * self.force(x)
        for i in range(self.num_leapfrog):
            new = new + self.step * momentum
            momentum = momentum + self.step * self.force(new) * (0.5 if i == self.num_leapfrog - 1 else 1)
        kinetic = 0.5 * (momentum.square() - start.square()).sum(-1)
        growth = _values(self.energy, new) - _values(self.energy, x) + kinetic
        return self.accept(x, new, growth, generator)


class StochasticFlow(nn.Module):
    """Layers from latent to data, each a `Kernel` or a `Bijection`, whose `inverse` is the way from latent to data.

    The path's gradient passes through bijections and Langevin steps: minimise -E[log w] of `sample`, or E[log w] of
    `log_weight` on data.

    Args:
        layers: in the order of sampling.
        base: p_Z.
        energy: u_X.

    Raises:
        TypeError: if a layer is of another kind.

    Source: Wu, Köhler, Noé 2020 (arXiv 2002.06707), Sec. 3.
    """

    def __init__(self, layers: Sequence[nn.Module], base: Base, energy: Energy):
        super().__init__()
        _check_energy("energy", energy)
        if not isinstance(base, Base):
            raise TypeError(f"base: got {type(base).__name__}, expected a Base such as StandardNormal")
        if not isinstance(layers, Iterable):
            raise TypeError(f"layers: got {type(layers).__name__}, expected a list of kernels and bijections")
        for layer in layers:
            if not isinstance(layer, Kernel | Bijection):
                raise TypeError(f"layers: got {type(layer).__name__}, expected kernels and bijections")
        self.layers, self.base, self.energy = nn.ModuleList(layers), base, energy

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """End points, shape (*shape, dim), and log w of their paths, shape (*shape,)."""
        x = self.base.sample(shape, generator)
        log_w = -self.base.log_prob(x)
        for layer in self.layers:
            x, delta = layer(x, generator) if isinstance(layer, Kernel) else layer.inverse(x)
            log_w = log_w + delta
        return x, log_w - _values(self.energy, x)

    def log_weight(
        self, x: Float[Tensor, "*batch dim"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch"]:
        """log w of a path drawn backwards from data x, by the same kernels; E[1 / w] = 1 / Z_X on data of the target."""
        log_w = -_values(self.energy, x)
        for layer in reversed(self.layers):
            x, delta = layer(x, generator) if isinstance(layer, Kernel) else layer(x)
            log_w = log_w - delta
        return log_w - self.base.log_prob(x)
