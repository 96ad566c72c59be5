"""Systems of particles with known energies: the double well DW4 and the Lennard-Jones clusters LJ13 and LJ55.

The target is p(x) = exp(-U(x)) / Z on configurations of n particles in d dimensions whose mean is the origin, at
temperature 1. U does not change when the particles are moved, turned, mirrored or renamed. Volumes are those of the
(n - 1) d-dimensional space of mean-free configurations.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor

__all__ = ["DoubleWell", "LennardJones", "ParticleSystem", "dw4", "lj13", "lj55"]


class ParticleSystem:
    """U = sum_{i<j} u(r_ij^2) + trap / 2 sum_i |x_i - mean|^2, with a pair energy u that subclasses give.

    Args:
        num_particles: n, >= 2.
        dim: of space.
        trap: strength of the harmonic trap.

    Raises:
        ValueError: if a size is not a whole number, there are fewer than two particles, or `trap` is negative.
    """

    def __init__(self, num_particles: int, dim: int, trap: float):
        check_sizes(num_particles=num_particles, dim=dim)
        if num_particles < 2:
            raise ValueError(f"num_particles: got {num_particles}, expected 2 or more")
        check_numbers("trap", [trap], low=0)
        self.num_particles, self.dim, self.trap = num_particles, dim, trap

    def pair(self, squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """u as a function of the squared distance."""
        raise NotImplementedError

    def at(self, t: float | int) -> "ParticleSystem":
        """The system a part 0 <= t <= 1 of the way from a harmonic trap, where particles are independent, to this."""
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """U(x) in units of the temperature, of coordinates (*batch, n * dim), particle by particle.

        Raises:
            TypeError, ValueError: if `x` has another shape or is not finite.
        """
        check_tensor("x", x, f"(*batch, {self.num_particles * self.dim})")
        x = x.unflatten(-1, (self.num_particles, self.dim))
        i, j = torch.triu_indices(self.num_particles, self.num_particles, 1, device=x.device)
        pairs = self.pair((x.index_select(-2, i) - x.index_select(-2, j)).square().sum(-1)).sum(-1)
        return pairs + self.trap / 2 * (x - x.mean(-2, keepdim=True)).square().sum((-2, -1))


class DoubleWell(ParticleSystem):
    """Pair energy strength * (0.9 (r - 4)^4 - 4 (r - 4)^2): particles like to be 2.5 or 5.5 apart.

    Source: Koehler, Klein, Noe 2020 (arXiv 2006.02425), constants as in the library bgflow.

    >>> dw4()(torch.tensor([[0.0, 0.0, 4.0, 0.0, 0.0, 4.0, 4.0, 4.0]])).item()  # four sides of 4 and two diagonals
    -8.396...
    """

    def __init__(self, num_particles: int = 4, dim: int = 2, *, strength: float | int = 1.0, trap: float | int = 0.0):
        super().__init__(num_particles, dim, trap)
        check_numbers("strength", [strength], low=0)
        self.strength = strength

    def pair(self, squares: Tensor) -> Tensor:
        excess = (squares.sqrt() - 4).square()
        return self.strength * excess * (0.9 * excess - 4)

    def at(self, t: float | int) -> "ParticleSystem":
        """U times t^2, in a trap of strength (1 - t^2) / 2.5^2."""
        return type(self)(self.num_particles, self.dim, strength=t**2, trap=self.trap + (1 - t**2) / 2.5**2)


class LennardJones(ParticleSystem):
    """Pair energy eps ((rm/r)^12 - 2 (rm/r)^6), lowest with -eps at r = rm, in a trap of strength 1.

    Args:
        eps: depth of the well, in units of the temperature. The class of the library bgflow has eps = 1; the entropy
            of the published LJ13 data agrees with 2 (each pair counted twice).
        rm: distance of lowest energy; 0 leaves the trap alone.

    Source: Koehler, Klein, Noe 2020 (arXiv 2006.02425).

    >>> LennardJones(2, eps=2)(torch.tensor([[-0.5, 0.0, 0.0, 0.5, 0.0, 0.0]])).item()  # -2 + 2 * 0.5^2 / 2
    -1.75
    """

    def __init__(
        self,
        num_particles: int,
        dim: int = 3,
        *,
        eps: float | int = 2.0,
        rm: float | int = 1.0,
        trap: float | int = 1.0,
    ):
        super().__init__(num_particles, dim, trap)
        check_positive("trap", trap)  # without, the particles evaporate and Z is infinite
        for name, value in (("eps", eps), ("rm", rm)):
            check_numbers(name, [value], low=0)
        self.eps, self.rm = eps, rm

    def pair(self, squares: Tensor) -> Tensor:
        s = (self.rm**2 / squares) ** 3
        return self.eps * s * (s - 2)

    def at(self, t: float | int) -> "ParticleSystem":
        """Particles that grow from points and begin to attract each other, rm t^(1/2) and t eps, in a trap (2 - t) trap.

        With eps as it is they would condense from a gas all at once while they are small, and chains would not mix.
        """
        return type(self)(self.num_particles, self.dim, eps=t * self.eps, rm=t**0.5 * self.rm, trap=(2 - t) * self.trap)


def dw4() -> DoubleWell:
    """Four particles in the plane: log Z = 29.69, mean energy -22.55, entropy 7.15 nats (each +- 0.01)."""
    return DoubleWell(4, 2)


def lj13(eps: float | int = 2.0) -> LennardJones:
    """Thirteen particles in space. eps = 2: log Z = 59.84 +- 0.05, mean energy -43.05 +- 0.1, entropy 16.8 +- 0.1 nats.

    eps = 1: log Z = 39.25 +- 0.05, mean energy 0.5 +- 0.1.
    """
    return LennardJones(13, eps=eps)


def lj55(eps: float | int = 2.0) -> LennardJones:
    """Fifty-five particles in space. eps = 2: mean energy -325 +- 1, log Z 380 +- 5 (as far as annealings agree)."""
    return LennardJones(55, eps=eps)
