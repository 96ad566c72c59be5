"""Metropolis sampling of particle systems with many chains at once, annealing for log Z, and whether chains mixed."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor
from refimpl.data._random import draw
from refimpl.data.molecules import ParticleSystem

__all__ = ["Annealing", "Chains", "anneal", "effective_draws", "metropolis", "rank_normalise", "split_r_hat"]


class Chains(NamedTuple):
    """What `metropolis` returns: states (draws, chains, n * dim), energies (draws, chains), the step it used, and the
    share of steps of that size that were accepted."""

    states: Tensor
    energies: Tensor
    step: float
    acceptance: float


def metropolis(
    system: ParticleSystem,
    start: Float[Tensor, "chains features"],
    *,
    num_draws: int,
    thin: int = 1,
    burn_in: int = 0,
    step: float | int = 0.3,
    large_step: float | int = 3.0,
    large_share: float | int = 0.0,
    generator: torch.Generator | None = None,
) -> Chains:
    """Metropolis chains that move one particle at a time, all chains at once.

    A sweep proposes a Gaussian displacement of each particle in turn, with standard deviation `step`, or `large_step`
    with probability `large_share` (to cross barriers), and accepts with probability min(1, exp(-change of U)). During
    the burn-in `step` adapts until about 40 % are accepted; afterwards it is fixed, so that U's density is stationary.

    Args:
        system: whose exp(-U) to sample.
        start: first state of every chain.
        num_draws: states kept of each chain.
        thin: sweeps for each state kept.
        burn_in: sweeps before the first.
        step: (first) standard deviation of a coordinate's displacement, in the units of `start`.
        large_step, large_share: of the rare large displacements.
        generator: source of the random numbers; torch's global one if None.

    Returns:
        Mean-free states, energies, step and acceptance.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    >>> from refimpl.data.molecules import LennardJones
    >>> chains = metropolis(LennardJones(2), torch.randn(50, 6), num_draws=20, burn_in=50)
    >>> chains.states.shape, chains.energies.shape
    (torch.Size([20, 50, 6]), torch.Size([20, 50]))
    """
    n, dim = system.num_particles, system.dim
    check_tensor("start", start, f"(chains, {n * dim})")
    if not len(start):
        raise ValueError("start: got no chains, expected one or more")
    check_sizes(num_draws=num_draws, thin=thin)
    check_numbers("burn_in", [burn_in], low=0, whole=True)
    check_positive("step", step)
    _check_jumps(large_step, large_share)
    x = start.detach().T.unflatten(0, (n, dim)).clone()  # (n, dim, chains): the longest dimension last
    x -= x.mean(0)
    settings = (large_step, large_share, generator)
    for _ in range(burn_in):
        step *= math.exp(_sweep(system, x, step, *settings) - 0.4)
    states, accepted = [], 0.0
    for _ in range(num_draws):
        for _ in range(thin):
            accepted += _sweep(system, x, step, *settings)
        x -= x.mean(0)
        states.append(x.flatten(0, 1).T.clone())
    kept = torch.stack(states)
    return Chains(kept, system(kept), float(step), accepted / (num_draws * thin))


def _check_jumps(large_step: float, large_share: float) -> None:
    check_positive("large_step", large_step)
    check_numbers("large_share", [large_share], low=0, high=1)


def _sweep(
    system: ParticleSystem,
    x: Tensor,
    step: float,
    large_step: float,
    large_share: float,
    generator: torch.Generator | None,
) -> float:
    """Propose one move of every particle of x, shape (n, dim, chains), in place; share of small ones accepted."""
    n, _, chains = x.shape
    small = draw(torch.rand, (n, chains), x, generator) >= large_share
    moves = draw(torch.randn, x.shape, x, generator) * torch.where(small, step, large_step).to(x.dtype).unsqueeze(1)
    thresholds = -draw(torch.rand, (n, chains), x, generator).log()
    accepted = torch.empty_like(small)
    mean = x.mean(0)
    for i in range(n):
        old, move = x[i], moves[i]
        others = torch.cat([x[:i], x[i + 1 :]])
        distances = torch.stack([old, old + move]).unsqueeze(1) - others  # (2, n - 1, dim, chains)
        before, after = system.pair(distances.square().sum(2)).sum(1)
        trap = (move * (2 * (old - mean) + (1 - 1 / n) * move)).sum(0) * (system.trap / 2)
        torch.lt(after - before + trap, thresholds[i], out=accepted[i])
        moved = move * accepted[i]
        x[i] += moved
        mean += moved / n
    return float((accepted & small).sum() / small.sum().clamp_min(1))


class Annealing(NamedTuple):
    """What `anneal` returns: states (chains, n * dim), log Z in nats, and the step that the last stage arrived at."""

    states: Tensor
    log_z: float
    step: float


def anneal(
    system: ParticleSystem,
    num_chains: int,
    *,
    num_stages: int = 50,
    sweeps: int = 2,
    large_step: float | int = 3.0,
    large_share: float | int = 0.0,
    generator: torch.Generator | None = None,
    like: Tensor | None = None,
) -> Annealing:
    """Sequential Monte Carlo from independent particles in a trap to `system`: a population to start from, and log Z.

    Between the stages t and t' each state has the weight exp(U_t - U_t'), whose mean estimates Z_t' / Z_t. States are
    drawn anew by their weights once these are worth less than half of the states, and then move by `sweeps` Metropolis
    sweeps. The estimate of Z is unbiased if the moves' step is fixed, and consistent here.

    Args:
        system: with its way `system.at(t)` from a trap.
        num_chains: states.
        num_stages: steps of t.
        sweeps: at each stage.
        large_step, large_share, generator: as in `metropolis`.
        like: tensor whose dtype and device the states take; torch's default if None.

    Returns:
        States, all of equal weight, and log Z.

    Raises:
        ValueError: if an argument does not fit.

    Source: Neal 2001 (Statistics and Computing 11), Del Moral, Doucet, Jasra 2006 (JRSS B 68).

    >>> from refimpl.data.molecules import LennardJones
    >>> g = torch.Generator().manual_seed(0)
    >>> abs(anneal(LennardJones(2, eps=1), 4000, generator=g).log_z - 2.8435) < 0.1  # of a quadrature
    True
    """
    check_sizes(num_chains=num_chains, num_stages=num_stages, sweeps=sweeps)
    _check_jumps(large_step, large_share)
    n, dim = system.num_particles, system.dim
    now, step = system.at(0), 1 / math.sqrt(system.at(0).trap)
    x = step * draw(torch.randn, (n, dim, num_chains), torch.empty(()) if like is None else like, generator)
    log_z = 0.5 * (n - 1) * dim * math.log(2 * math.pi / now.trap)
    log_w = torch.zeros_like(x[0, 0])
    for stage in range(1, num_stages + 1):
        following = system.at(stage / num_stages)
        states = x.flatten(0, 1).T
        log_w += now(states) - following(states)
        now, share = following, log_w.softmax(0)
        if stage == num_stages or 1 / share.square().sum() < num_chains / 2:
            log_z += float(log_w.logsumexp(0)) - math.log(num_chains)
            # One uniform number places num_chains equidistant pointers on the cumulated weights.
            pointers = (torch.arange(num_chains, device=x.device) + draw(torch.rand, (), x, generator)) / num_chains
            x = x[..., torch.searchsorted(share.cumsum(0), pointers).clamp_max(num_chains - 1)]
            log_w.zero_()
        for _ in range(sweeps):
            step *= math.exp(_sweep(now, x, step, large_step, large_share, generator) - 0.4)
    x -= x.mean(0)
    return Annealing(x.flatten(0, 1).T.clone(), log_z, step)


def _halves(draws: Tensor) -> Tensor:
    """First and second half of every chain as two chains, (draws // 2, 2 chains)."""
    check_tensor("draws", draws, "(draws, chains)")
    half = len(draws) // 2
    if half < 2:
        raise ValueError(f"draws: got {len(draws)} a chain, expected 4 or more")
    return torch.cat([draws[:half], draws[-half:]], 1).double()


def _variances(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean variance within a chain, and the estimate of the whole variance that also counts that between chains."""
    within = draws.var(0).mean()
    whole = within * (1 - 1 / len(draws)) + draws.mean(0).var()
    if whole == 0:
        raise ValueError("draws: are all the same, expected some that vary")
    return within, whole


def rank_normalise(draws: Float[Tensor, "draws chains"]) -> Float[Tensor, "draws chains"]:
    """Normal quantiles of the ranks of all draws together: for diagnostics that heavy tails do not upset.

    Source: Vehtari et al. 2021 (Bayesian Analysis 16(2)), Equation 14.
    """
    check_tensor("draws", draws, "(draws, chains)")
    _, which, counts = draws.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2).double()[which]  # the mean rank of equal ones
    return torch.special.ndtri((ranks - 0.375) / (draws.numel() + 0.25))


def split_r_hat(draws: Float[Tensor, "draws chains"]) -> float:
    """Whole standard deviation over that within half chains: 1 if all halves tell the same, above 1.01 they do not.

    Args:
        draws: one scalar, such as the energy, of every state; at least 4 of each chain. Rank-normalise it first if its
            tails are heavy, and its distance from the median as well to see chains of different width.

    Raises:
        TypeError, ValueError: if `draws` has another shape, is too short or not finite.

    Source: Vehtari et al. 2021 (Bayesian Analysis 16(2)), Equations 1 to 4.

    >>> stuck = torch.randn(100, 2) + torch.tensor([0.0, 10.0])
    >>> split_r_hat(stuck) > 3
    True
    """
    within, whole = _variances(_halves(draws))
    return float((whole / within).sqrt())


def effective_draws(draws: Float[Tensor, "draws chains"]) -> float:
    """How many independent draws would give the mean of `draws` as precisely: all of them over 1 + 2 sum rho_t.

    The autocorrelations rho_t combine those within half chains with the variance between them, so that chains that
    disagree count for little; their sum ends where that of two neighbours turns negative (Geyer), made monotone. This
    is not the sample size of importance weights, which `refimpl.flows.effective_sample_size` gives.

    Args:
        draws: one scalar of every state; at least 4 of each chain.

    Raises:
        TypeError, ValueError: if `draws` has another shape, is too short or not finite.

    Source: Vehtari et al. 2021 (Bayesian Analysis 16(2)), Equations 8 to 13.

    >>> g = torch.Generator().manual_seed(0)
    >>> 3500 < effective_draws(torch.randn(1000, 4, generator=g)) < 4500
    True
    """
    draws = _halves(draws)
    n, total = len(draws), draws.numel()
    within, whole = _variances(draws)
    power = torch.fft.rfft(draws - draws.mean(0), 2 * n, dim=0).abs().square()
    covariance = torch.fft.irfft(power, 2 * n, dim=0)[:n].mean(1) / (n - 1)
    rho = 1 - (within - covariance) / whole
    rho[0] = 1
    pairs = rho[: n // 2 * 2].view(-1, 2).sum(1)
    positive = (pairs > 0).cumprod(0)
    tau = 2 * (pairs.cummin(0).values * positive).sum() - 1
    return float(total / tau.clamp_min(1 / math.log10(total)))
