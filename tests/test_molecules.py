"""Particle systems: energies by loops, quadrature and finite differences; samplers by exact means; diagnostics by AR(1)."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from refimpl.data import DoubleWell, LennardJones, ParticleSystem, dw4, lj13, lj55
from refimpl.data.monte_carlo import anneal, effective_draws, metropolis, rank_normalise, split_r_hat

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def configurations(system, n=5, seed=0, spread=2.0):
    return spread * torch.randn(n, system.num_particles * system.dim, dtype=F64, generator=generator(seed))


def by_loops(system, pair, trap):
    def energy(x):
        x = x.reshape(system.num_particles, system.dim).numpy()
        u = sum(pair(math.dist(x[i], x[j])) for i in range(len(x)) for j in range(i))
        return u + trap / 2 * ((x - x.mean(0)) ** 2).sum()

    return energy


def lennard_jones(eps, rm=1.0):
    return lambda r: eps * ((rm / r) ** 12 - 2 * (rm / r) ** 6)


@pytest.mark.parametrize(
    ("system", "pair", "trap"),
    [
        (dw4(), lambda r: 0.9 * (r - 4) ** 4 - 4 * (r - 4) ** 2, 0.0),
        (DoubleWell(3, 1, strength=0.5, trap=2.0), lambda r: 0.45 * (r - 4) ** 4 - 2 * (r - 4) ** 2, 2.0),
        (lj13(), lennard_jones(2.0), 1.0),
        (lj13(eps=1), lennard_jones(1.0), 1.0),
        (LennardJones(4, 2, eps=3, rm=0.5, trap=0.3), lennard_jones(3.0, 0.5), 0.3),
    ],
    ids=["DW4", "wells", "LJ13", "LJ13 eps=1", "LJ4"],
)
def test_energies_are_those_of_two_loops(system, pair, trap):
    x = configurations(system)
    expected = torch.tensor([by_loops(system, pair, trap)(one) for one in x], dtype=F64)
    torch.testing.assert_close(system(x), expected)
    assert system(x[None]).shape == (1, 5) and system(x[0]).shape == () and system(x.float()).dtype == torch.float32


def test_wells_and_minima_are_where_they_should_be():
    r = torch.linspace(0.5, 8, 20001, dtype=F64)
    well = DoubleWell().pair(r**2)
    inside, outside = r[well.where(r < 4, torch.inf).argmin()], r[well.where(r > 4, torch.inf).argmin()]
    depth = math.sqrt(4 / 1.8)  # d/ds of 0.9 s^4 - 4 s^2 is zero
    torch.testing.assert_close(
        torch.stack([inside, outside]), 4 + torch.tensor([-depth, depth], dtype=F64), atol=1e-3, rtol=0
    )
    lj = LennardJones(2, eps=1.5).pair(r**2)
    assert r[lj.argmin()].item() == pytest.approx(1, abs=1e-3) and lj.min().item() == pytest.approx(-1.5, abs=1e-5)
    assert lj55().num_particles == 55 and lj55().eps == 2


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from([dw4(), lj13(), LennardJones(3, 2)]), st.integers(0, 99))
def test_energies_do_not_change_when_all_are_moved_turned_mirrored_or_renamed(system, seed):
    x, g = configurations(system, seed=seed), generator(seed)
    turn, _ = torch.linalg.qr(torch.randn(system.dim, system.dim, dtype=F64, generator=g))
    order = torch.randperm(system.num_particles, generator=g)
    moved = x.unflatten(1, (system.num_particles, system.dim))[:, order] @ turn + 5
    torch.testing.assert_close(system(moved.flatten(1)), system(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("system", [dw4(), LennardJones(4, eps=2)], ids=["DW", "LJ"])
def test_forces_are_those_of_finite_differences(system):
    x = configurations(system, 3).requires_grad_()
    torch.autograd.gradcheck(system, x)
    torch.autograd.gradgradcheck(system, x)


@pytest.mark.parametrize("system", [dw4(), lj13(), DoubleWell(3, 2, trap=0.5)], ids=["DW4", "LJ13", "trapped"])
def test_the_way_begins_with_independent_particles_and_ends_with_the_system(system):
    x = configurations(system)
    torch.testing.assert_close(system.at(1)(x), system(x))
    start = system.at(0)
    centred = x.unflatten(1, (system.num_particles, system.dim))
    centred = centred - centred.mean(1, keepdim=True)
    torch.testing.assert_close(start(x), start.trap / 2 * centred.square().sum((1, 2)))
    assert start.trap > 0


def two_particles(eps):
    """log Z and mean energy of LJ2, by quadrature over the distance: relative coordinate y = r / sqrt 2."""

    def energy(r):
        return lennard_jones(eps)(r) + r**2 / 4

    def integral(value):
        def density(r):
            return 4 * math.pi * r**2 / 2**1.5 * math.exp(-energy(r)) * value(r)

        return integrate.quad(density, 0.5, 3)[0] + integrate.quad(density, 3, 15)[0]

    z = integral(lambda r: 1.0)
    return math.log(z), integral(energy) / z


@pytest.mark.parametrize(("eps", "log_z", "mean"), [(1, 2.8435, 1.2470), (2, 3.0716, 0.6313)])
def test_two_lennard_jones_particles_agree_with_quadrature(eps, log_z, mean):
    assert two_particles(eps) == pytest.approx((log_z, mean), abs=1e-4)
    system, g = LennardJones(2, eps=eps), generator()
    found = anneal(system, 4000, num_stages=40, generator=g)
    assert found.log_z == pytest.approx(log_z, abs=0.05)
    chains = metropolis(system, found.states, num_draws=40, thin=2, step=found.step, large_share=0.1, generator=g)
    error = chains.energies.std() / math.sqrt(effective_draws(chains.energies))
    assert chains.energies.mean().item() == pytest.approx(mean, abs=4.5 * error.item())
    assert error < 0.02


@pytest.mark.parametrize("settings", [{}, {"step": 2.0}, {"large_share": 0.5, "large_step": 2.0}], ids=str)
def test_the_energy_of_a_trap_is_gamma_distributed(settings):
    system, g = LennardJones(5, 2, rm=0, trap=3.0), generator()  # 8 degrees of freedom
    start = torch.randn(2000, 10, generator=g) / math.sqrt(3)
    chains = metropolis(system, start, num_draws=2, thin=10, generator=g, **settings)
    assert stats.kstest(chains.energies[-1].numpy(), stats.gamma(4).cdf).pvalue > 0.005
    far = metropolis(system, 3 * start + 7, num_draws=1, thin=1, burn_in=300, generator=g)
    assert stats.kstest(far.energies[-1].numpy(), stats.gamma(4).cdf).pvalue > 0.005


def test_flows_between_bins_of_the_distance_balance_in_detail():
    """Two particles on a line: each move is the same reversible kernel of their distance, hence so is a sweep."""
    system, g = DoubleWell(2, 1, trap=0.1), generator()
    r = torch.linspace(0.01, 8, 4000)
    mass = torch.exp(-system(torch.stack([-r / 2, r / 2], 1)))
    before = r[torch.multinomial(mass, 200_000, replacement=True, generator=g)]
    start = torch.stack([-before / 2, before / 2], 1)
    after = metropolis(system, start, num_draws=1, step=0.5, large_step=3.0, large_share=0.3, generator=g).states[0]
    edges = torch.tensor([2.3, 2.7, 5.2, 5.6])
    i, j = torch.bucketize(before, edges), torch.bucketize((after[:, 1] - after[:, 0]).abs(), edges)
    flows = torch.bincount(5 * i + j, minlength=25).view(5, 5).float()
    assert ((flows - flows.T).abs() <= 4.5 * (flows + flows.T).sqrt()).all()
    assert (flows.sum(0) - flows.sum(1)).abs().max() < 4.5 * math.sqrt(200_000 / 2)
    assert flows[:2, 3:].sum() > 1000  # large moves cross the barrier


def test_dw4_has_its_known_log_z_and_mean_energy():
    g = generator()
    found = anneal(dw4(), 1000, num_stages=100, sweeps=4, large_share=0.2, generator=g)
    assert found.log_z == pytest.approx(29.69, abs=0.12)
    chains = metropolis(dw4(), found.states, num_draws=40, thin=10, step=found.step, large_share=0.2, generator=g)
    assert chains.energies.mean().item() == pytest.approx(-22.55, abs=0.04)
    torch.testing.assert_close(chains.energies, dw4()(chains.states))
    assert effective_draws(chains.energies) > 8000 and split_r_hat(chains.energies) < 1.05
    assert chains.states.square().mean().item() * 4 / 3 == pytest.approx(2.128**2, rel=0.01)


def test_lj13_anneals_to_its_log_z_and_mean_energy():
    found = anneal(lj13(), 400, num_stages=80, sweeps=3, generator=generator())
    assert found.log_z == pytest.approx(59.85, abs=0.7)
    assert lj13()(found.states).mean().item() == pytest.approx(-43.0, abs=1.5)


def test_states_have_no_mean_whatever_the_start_and_seeds_repeat():
    runs = [metropolis(dw4(), configurations(dw4(), 6) + 9, num_draws=3, generator=generator(5)) for _ in range(2)]
    assert runs[0].states.dtype == F64 and runs[0].states.shape == (3, 6, 8) and runs[0].energies.shape == (3, 6)
    assert runs[0].states.unflatten(-1, (4, 2)).mean(-2).abs().max() < 1e-12
    assert torch.equal(runs[0].states, runs[1].states)
    like = torch.zeros((), dtype=F64)
    populations = [anneal(dw4(), 20, num_stages=5, generator=generator(5), like=like) for _ in range(2)]
    assert populations[0].states.dtype == F64 and populations[0].log_z == populations[1].log_z
    assert populations[0].states.unflatten(-1, (4, 2)).mean(-2).abs().max() < 1e-12


def test_the_step_adapts_while_burning_in_and_never_after():
    start = configurations(lj13(), 100)
    chains = metropolis(lj13(), start, num_draws=10, burn_in=150, step=2.0, generator=generator())
    assert chains.step < 0.5 and chains.acceptance == pytest.approx(0.4, abs=0.06)
    assert metropolis(lj13(), start, num_draws=2, step=0.7).step == 0.7
    assert torch.equal(start, configurations(lj13(), 100))  # not moved in place


def autoregression(rho, draws=4000, chains=4, seed=0):
    noise = np.random.default_rng(seed).standard_normal((draws, chains))
    x = np.empty_like(noise)
    x[0] = noise[0]
    for t in range(1, draws):
        x[t] = rho * x[t - 1] + math.sqrt(1 - rho**2) * noise[t]
    return torch.from_numpy(x)


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.5, 0.9])
def test_effective_draws_of_an_autoregression(rho):
    x = autoregression(rho, seed=1)
    assert effective_draws(x) == pytest.approx(16000 * (1 - rho) / (1 + rho), rel=0.15)
    assert effective_draws(3 * x - 7) == pytest.approx(effective_draws(x), rel=1e-9)
    assert split_r_hat(x) < 1.01


def test_split_r_hat_is_the_ratio_of_textbooks():
    x = autoregression(0.8, draws=50, chains=3)
    halves = np.concatenate([x[:25].numpy(), x[25:].numpy()], 1)
    between, within = 25 * halves.mean(0).var(ddof=1), halves.var(0, ddof=1).mean()
    assert split_r_hat(x) == pytest.approx(math.sqrt((24 / 25 * within + between / 25) / within), rel=1e-12)


def test_chains_that_disagree_are_seen():
    x = autoregression(0.0, draws=2000)
    apart = x + torch.tensor([0.0, 0.0, 0.0, 2.0])
    # Means 0, 0, 0, 2: the whole variance is 1 plus that of eight half chains' means.
    assert split_r_hat(apart) == pytest.approx(math.sqrt(1 + 6 / 7), abs=0.03)
    assert effective_draws(apart) < 40
    drift = x + torch.linspace(0, 3, 2000).unsqueeze(1)  # a trend that all share is seen by splitting alone
    assert split_r_hat(drift) == pytest.approx(math.sqrt(1 + 0.75**2 * 8 / 7 / (1 + 1.5**2 / 12)), abs=0.02)
    wider = x * torch.tensor([1.0, 1.0, 1.0, 5.0])  # same means: only folding shows it
    assert split_r_hat(wider) < 1.01 < 1.1 < split_r_hat(rank_normalise((wider - wider.median()).abs()))


def test_ranks_are_normal_whatever_the_tails():
    x = torch.from_numpy(np.random.default_rng(0).standard_cauchy((500, 4)))
    ranks = rank_normalise(x)
    assert stats.kstest(ranks.flatten().numpy(), "norm").pvalue > 0.99
    torch.testing.assert_close(rank_normalise(x.atan()), ranks)
    torch.testing.assert_close(rank_normalise(-x), -ranks)
    oracle = stats.norm.ppf((stats.rankdata(x[:9].round().numpy()) - 0.375) / (36 + 0.25)).reshape(9, 4)
    np.testing.assert_allclose(rank_normalise(x[:9].round()).numpy(), oracle)


small, start = LennardJones(2), torch.randn(3, 6)
CALLS = [
    ("num_particles", lambda: DoubleWell(1, 2)),
    ("num_particles", lambda: ParticleSystem(0, 2, 1.0)),
    ("dim", lambda: LennardJones(3, 1.5)),
    ("eps", lambda: LennardJones(3, eps=-1)),
    ("eps", lambda: lj13(eps=math.inf)),
    ("rm", lambda: LennardJones(3, rm=-0.1)),
    ("trap", lambda: LennardJones(3, trap=0)),
    ("trap", lambda: DoubleWell(trap=-1)),
    ("strength", lambda: DoubleWell(strength=math.nan)),
    ("x", lambda: dw4()(torch.zeros(5, 7))),
    ("x", lambda: dw4()(torch.zeros(5, 4, 2))),
    ("x", lambda: dw4()(torch.zeros(8, dtype=torch.long))),
    ("x", lambda: dw4()(torch.full((8,), math.nan))),
    ("start", lambda: metropolis(small, torch.zeros(3, 5), num_draws=1)),
    ("start", lambda: metropolis(small, torch.zeros(6), num_draws=1)),
    ("start", lambda: metropolis(small, start * math.nan, num_draws=1)),
    ("start", lambda: metropolis(small, start[:0], num_draws=1)),
    ("num_draws", lambda: metropolis(small, start, num_draws=0)),
    ("thin", lambda: metropolis(small, start, num_draws=1, thin=0)),
    ("burn_in", lambda: metropolis(small, start, num_draws=1, burn_in=-1)),
    ("step", lambda: metropolis(small, start, num_draws=1, step=0)),
    ("large_step", lambda: metropolis(small, start, num_draws=1, large_step=-1.0)),
    ("large_share", lambda: metropolis(small, start, num_draws=1, large_share=1.0)),
    ("num_chains", lambda: anneal(small, 0)),
    ("num_stages", lambda: anneal(small, 5, num_stages=2.5)),
    ("sweeps", lambda: anneal(small, 5, sweeps=0)),
    ("large_share", lambda: anneal(small, 5, large_share=2)),
    ("large_step", lambda: anneal(small, 5, large_step=-1)),
    ("large_step", lambda: anneal(small, 5, large_step=math.nan)),
    ("draws", lambda: split_r_hat(torch.randn(100))),
    ("draws", lambda: split_r_hat(torch.randn(3, 4))),
    ("draws", lambda: split_r_hat(torch.ones(10, 4))),
    ("draws", lambda: effective_draws(torch.full((10, 4), math.nan))),
    ("draws", lambda: effective_draws(torch.ones(10, 4))),
    ("draws", lambda: rank_normalise(torch.arange(10))),
]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_bad_input_is_named(name, call, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: "):
        call()
