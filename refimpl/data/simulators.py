"""Four simulators of the benchmark for simulation-based inference, with likelihoods and exact posterior samples.

A task has parameters theta with a prior, and data x that `simulate` draws given theta. Inference sees pairs of both
only; the likelihood, known for these four, serves to judge it.

Source: Lueckmann et al. 2021 (arXiv 2101.04653), Appendix T.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_sizes, check_tensor
from refimpl.data._random import draw

__all__ = ["SLCP", "GaussianLinear", "GaussianMixtureTask", "Simulator", "TwoMoons"]


class Simulator:
    """A task: `sample_prior`, `simulate`, `log_joint`, `sample_posterior`, some of them `log_posterior`.

    Unless a task says otherwise its prior is uniform on the box [-bound, bound]^dim.

    Attributes:
        dim, dim_data: number of parameters and of data.
        bound: of the prior's box.
    """

    dim: int
    dim_data: int
    bound: float

    def sample_prior(
        self, n: int, generator: torch.Generator | None = None, like: Tensor | None = None
    ) -> Float[Tensor, "n dim"]:
        """n parameters, in dtype and on the device of `like`."""
        check_sizes(n=n)
        like = torch.empty(()) if like is None else like
        return self._prior((n, self.dim), like, generator)

    def log_prior(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """log p(theta), -inf outside of the box."""
        check_tensor("theta", theta, f"(*batch, {self.dim})")
        inside = (theta.abs() <= self.bound).all(-1)
        return torch.where(inside, -self.dim * math.log(2 * self.bound), -math.inf).to(theta.dtype)

    def simulate(
        self, theta: Float[Tensor, "*batch dim"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch dim_data"]:
        """One draw of x for each theta."""
        check_tensor("theta", theta, f"(*batch, {self.dim})")
        return self._simulate(theta, generator)

    def log_joint(self, theta: Float[Tensor, "... dim"], x: Float[Tensor, "... dim_data"]) -> Float[Tensor, "..."]:
        """log p(theta) p(x | theta), the posterior but for its constant, of theta and x whose batches broadcast."""
        self._check(theta, x)
        return self.log_prior(theta) + self._log_likelihood(theta, x)

    def sample_posterior(
        self, x: Float[Tensor, " dim_data"], n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n dim"]:
        """n independent draws from p(theta | x) for one x.

        Raises:
            TypeError, ValueError: if `x` is of another shape or not finite, or has hardly any parameters that explain
                it.
        """
        check_tensor("x", x, f"({self.dim_data},)")
        check_sizes(n=n)
        return self._sample_posterior(x, n, generator)

    def _check(self, theta: Tensor, x: Tensor) -> None:
        check_tensor("theta", theta, f"(*batch, {self.dim})")
        check_tensor("x", x, f"(*batch, {self.dim_data})", theta)
        try:
            torch.broadcast_shapes(theta.shape[:-1], x.shape[:-1])
        except RuntimeError:
            got, wanted = tuple(x.shape), tuple(theta.shape)
            raise ValueError(f"x: got shape {got}, expected a batch that broadcasts with theta's {wanted}") from None

    def _prior(self, shape: tuple, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.bound * (2 * draw(torch.rand, shape, like, generator) - 1)

    def _within(self, propose: Callable[[int], Tensor], n: int) -> Tensor:
        """n proposals that lie in the prior's box."""
        kept, tries = [], 0
        while sum(map(len, kept)) < n:
            theta = propose(max(2 * n, 100))
            kept.append(theta[(theta.abs() <= self.bound).all(1)])
            tries += 1
            if tries == 100:
                raise ValueError("x: hardly any parameters within the prior's box explain it")
        return torch.cat(kept)[:n]


def _log_evidence(evidence: Tensor) -> Tensor:
    if not (evidence > 0).all():
        raise ValueError("x: hardly any parameters within the prior's box explain it")
    return evidence.log()


def _log_normal(deviation: Tensor, std: float) -> Tensor:
    return -0.5 * (deviation / std).square() - math.log(math.sqrt(2 * math.pi) * std)


class GaussianLinear(Simulator):
    """theta ~ N(0, 0.1 I), x ~ N(theta, 0.1 I): the posterior is N(x / 2, 0.05 I).

    >>> round(GaussianLinear(1).log_posterior(torch.zeros(1), torch.zeros(1)).item(), 4)  # -log(2 pi 0.05) / 2
    0.5789
    """

    def __init__(self, dim: int = 10):
        check_sizes(dim=dim)
        self.dim = self.dim_data = dim

    def _prior(self, shape: tuple, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return math.sqrt(0.1) * draw(torch.randn, shape, like, generator)

    def log_prior(self, theta: Tensor) -> Tensor:
        check_tensor("theta", theta, f"(*batch, {self.dim})")
        return _log_normal(theta, math.sqrt(0.1)).sum(-1)

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log p(theta | x), shape (*batch,)."""
        self._check(theta, x)
        return _log_normal(theta - x / 2, math.sqrt(0.05)).sum(-1)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        return theta + math.sqrt(0.1) * draw(torch.randn, theta.shape, theta, generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return _log_normal(x - theta, math.sqrt(0.1)).sum(-1)

    def _sample_posterior(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        return x / 2 + math.sqrt(0.05) * draw(torch.randn, (n, self.dim), x, generator)


class GaussianMixtureTask(Simulator):
    """theta ~ U(-10, 10)^2, x ~ N(theta, I) or N(theta, 0.01 I), either with probability 1/2."""

    dim = dim_data = 2
    bound, stds = 10.0, (1.0, 0.1)

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log p(theta | x), shape (*batch,)."""
        self._check(theta, x)
        edges = [
            torch.special.ndtr((self.bound - x) / s) - torch.special.ndtr((-self.bound - x) / s) for s in self.stds
        ]
        in_box = torch.stack(edges).prod(-1).mean(0)
        return self.log_joint(theta, x) - _log_evidence(in_box / (2 * self.bound) ** 2)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        wide = draw(torch.rand, theta.shape[:-1], theta, generator).unsqueeze(-1) < 0.5
        return theta + torch.where(wide, *self.stds) * draw(torch.randn, theta.shape, theta, generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        parts = torch.stack([_log_normal(x - theta, s).sum(-1) for s in self.stds])
        return parts.logsumexp(0) - math.log(2)

    def _sample_posterior(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        return self._within(lambda k: self._simulate(x.expand(k, 2), generator), n)


class TwoMoons(Simulator):
    """theta ~ U(-1, 1)^2; x = (r cos a + 1/4, r sin a) + (-|t1 + t2|, t2 - t1) / sqrt 2, a ~ U(-pi/2, pi/2), r ~ N(0.1, 0.01^2).

    The shift is the isometry (u, w) = (t1 + t2, t2 - t1) / sqrt 2 but for the sign of u. So a posterior draw is a draw
    q of the crescent, |u| = q_1 - x_1 with either sign, w = x_2 - q_2, if that theta exists and is in the box.
    """

    dim = dim_data = 2
    bound = 1.0

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(theta | x), shape (*batch,); the constant by quadrature over r and a, exact for x amid the data."""
        self._check(theta, x)
        r = 0.1 + 0.01 * torch.linspace(-5, 5, 41, dtype=x.dtype, device=x.device)
        a = math.pi * ((torch.arange(800, dtype=x.dtype, device=x.device) + 0.5) / 800 - 0.5)
        weights = (-0.5 * ((r - 0.1) / 0.01).square()).softmax(0) / len(a)
        found = self._solve(x[..., None, None, :], self._crescent(r[:, None], a), torch.ones_like(x[..., :1, None]))
        inside = (found.abs() <= self.bound).all(-1)  # nan is not
        return self.log_joint(theta, x) - _log_evidence(0.5 * (weights[:, None] * inside).sum((-2, -1)))

    def _crescent(self, r: Tensor, a: Tensor) -> Tensor:
        return torch.stack([r * a.cos() + 0.25, r * a.sin()], -1)

    def _noise(self, shape: tuple, like: Tensor, generator: torch.Generator | None) -> Tensor:
        angle = math.pi * (draw(torch.rand, shape, like, generator) - 0.5)
        return self._crescent(0.1 + 0.01 * draw(torch.randn, shape, like, generator), angle)

    def _shift(self, theta: Tensor) -> Tensor:
        t1, t2 = theta.unbind(-1)
        return torch.stack([-(t1 + t2).abs(), t2 - t1], -1) / math.sqrt(2)

    def _solve(self, x: Tensor, q: Tensor, sign: Tensor) -> Tensor:
        """The theta whose shift is x - q, nan if there is none."""
        length, w = (q - x).unbind(-1)
        u = sign * torch.where(length >= 0, length, math.nan)
        return torch.stack([u + w, u - w], -1) / math.sqrt(2)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        return self._noise(theta.shape[:-1], theta, generator) + self._shift(theta)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        p = x - self._shift(theta) - torch.tensor([0.25, 0.0], dtype=x.dtype, device=x.device)
        r = torch.linalg.vector_norm(p, dim=-1)
        return torch.where(p[..., 0] > 0, _log_normal(r - 0.1, 0.01) - (math.pi * r).log(), -math.inf)

    def _sample_posterior(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        def propose(k: int) -> Tensor:
            sign = torch.where(draw(torch.rand, (k,), x, generator) < 0.5, -1.0, 1.0).to(x.dtype)
            return self._solve(x, self._noise((k,), x, generator), sign)

        return self._within(propose, n)


class SLCP(Simulator):
    """Simple likelihood, complex posterior: theta ~ U(-3, 3)^5, x are four points from N((t1, t2), S(t3, t4, t5)).

    S has the standard deviations t3^2 and t4^2 and the correlation tanh t5, so that the signs of t3 and t4 cannot be
    told: the posterior has four modes. Given S, (t1, t2) is normal around the mean of the points; t3, t4, t5 are drawn
    from cells of a grid by their exact density with (t1, t2) integrated out.
    """

    dim, dim_data, bound, cells = 5, 8, 3.0, 40

    def _cholesky(self, shape: Tensor) -> Tensor:
        """Triangular root of S, (*batch, 2, 2)."""
        s1, s2, rho = shape[..., 0].square(), shape[..., 1].square(), shape[..., 2].tanh()
        rest = (1 - rho.square()).sqrt()
        return torch.stack([s1, torch.zeros_like(s1), rho * s2, rest * s2], -1).unflatten(-1, (2, 2))

    def _whiten(self, shape: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """L^-1 points^T, (*batch, 2, number), and log|det L|, for S = L L^T."""
        root = self._cholesky(shape)
        white = torch.linalg.solve_triangular(root, points.mT, upper=False)
        return white, root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = draw(torch.randn, (*theta.shape[:-1], 2, 4), theta, generator)
        return (theta[..., :2].unsqueeze(-1) + self._cholesky(theta[..., 2:]) @ noise).mT.flatten(-2)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        white, log_det = self._whiten(theta[..., 2:], x.unflatten(-1, (4, 2)) - theta[..., None, :2])
        return -0.5 * white.square().sum((-2, -1)) - 4 * (log_det + math.log(2 * math.pi))

    def _log_marginal(self, shape: Tensor, points: Tensor) -> Tensor:
        """log of the integral of the likelihood over all (t1, t2), up to a constant."""
        white, log_det = self._whiten(shape, points - points.mean(0))
        return -0.5 * white.square().sum((-2, -1)) - 3 * log_det

    def _sample_posterior(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        points, side = x.view(4, 2), 2 * self.bound / self.cells
        centres = side * (torch.arange(self.cells, dtype=x.dtype, device=x.device) + 0.5) - self.bound
        grid = torch.cartesian_prod(centres, centres, centres)
        mass = self._log_marginal(grid, points).softmax(0).cumsum(0)

        def fresh(k: int) -> tuple[Tensor, Tensor]:
            """Points of cells drawn by the density at their centres, and by how much the density differs there."""
            which = torch.searchsorted(mass, mass[-1] * draw(torch.rand, (k,), x, generator)).clamp_max(len(grid) - 1)
            shape = grid[which] + side * (draw(torch.rand, (k, 3), x, generator) - 0.5)
            return shape, self._log_marginal(shape, points) - self._log_marginal(grid[which], points)

        def propose(k: int) -> Tensor:
            shape, ratio = fresh(k)
            for _ in range(8):  # of independent Metropolis steps, which correct for the size of the cells
                other, its_ratio = fresh(k)
                better = draw(torch.rand, (k,), x, generator).log() < its_ratio - ratio
                shape, ratio = torch.where(better[:, None], other, shape), torch.where(better, its_ratio, ratio)
            noise = self._cholesky(shape) @ draw(torch.randn, (k, 2, 1), x, generator) / 2
            return torch.cat([points.mean(0) + noise.squeeze(-1), shape], 1)

        return self._within(propose, n)
