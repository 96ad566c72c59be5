"""Samplers and loaders; everything at quick size is generated or ships inside a dependency."""

from refimpl.data.cifar import augment, cifar
from refimpl.data.digits import digits
from refimpl.data.earth import earth, repeated
from refimpl.data.molecules import DoubleWell, LennardJones, ParticleSystem, dw4, lj13, lj55
from refimpl.data.monte_carlo import anneal, effective_draws, metropolis, rank_normalise, split_r_hat
from refimpl.data.normal_mixture import NormalMixture
from refimpl.data.patches import dead_leaves, photograph_patches
from refimpl.data.signals import flower, grid, radial_noise, sum_of_sines
from refimpl.data.simulators import SLCP, GaussianLinear, GaussianMixtureTask, TwoMoons
from refimpl.data.sphere import airports, from_degrees, split_points, to_degrees
from refimpl.data.torsions import angles_of, on_torus, torsions
from refimpl.data.toy import GaussianMixture, moons, ring

__all__ = [
    "DoubleWell",
    "GaussianLinear",
    "GaussianMixture",
    "GaussianMixtureTask",
    "LennardJones",
    "NormalMixture",
    "ParticleSystem",
    "SLCP",
    "TwoMoons",
    "airports",
    "angles_of",
    "anneal",
    "augment",
    "cifar",
    "dead_leaves",
    "digits",
    "dw4",
    "earth",
    "effective_draws",
    "flower",
    "from_degrees",
    "grid",
    "lj13",
    "lj55",
    "metropolis",
    "moons",
    "on_torus",
    "photograph_patches",
    "radial_noise",
    "rank_normalise",
    "repeated",
    "ring",
    "split_points",
    "split_r_hat",
    "sum_of_sines",
    "to_degrees",
    "torsions",
]
