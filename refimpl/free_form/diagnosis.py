"""Is the likelihood of a free-form flow one? What the loss cannot show, measured.

Four measurements betray a pair that is not inverse to each other: the two exact likelihoods part, g'(f(x)) f'(x)
leaves the identity, the reconstruction loses a direction of the data, and the "density" p_Z(f(x)) |det f'(x)| does not
integrate to 1. The last has a meaning: by the area formula it is the mean number of points that share a latent,
E #{x: f(x) = z} over draws z of p_Z. A fold counts mass twice. If its layers are copies of each other, as where two
modes both cover the whole latent distribution, the first two see nothing; in many dimensions, where no integral is at
hand, only the reconstruction does, and only in the folded direction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes, check_tensor
from refimpl.autodiff import jacobian
from refimpl.free_form.flow import FreeFormFlow, spread_context

__all__ = ["Diagnosis", "diagnose", "grid_integral", "importance_integral"]

AGREE, AGREE_IN_ALL = 0.05, 2.0  # nats a feature, and nats, between the two likelihoods that may pass
TOO_MUCH = 0.05  # mass beyond 1 that may pass
JACOBIAN = 2.0  # |g'f' - I| that may pass, if it is below that of g' = 0, sqrt(dim)
LOST = 0.1  # share of the data's variance along a direction that a reconstruction may lose


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` measured on held-out data; `print` it.

    Attributes:
        nll_encoder: mean of -log p_Z(f(x)) - log|det f'(x)|, nats.
        nll_decoder: mean of -log p_Z(f(x)) + log|det g'(f(x))|, nats.
        reconstruction: mean of ||x - g(f(x))||^2, squared units of the data.
        lost: the same as a share of the data's variance along the direction in which that share is largest; of a
            fold about 1, in however many dimensions.
        jacobian_error: median of the Frobenius norm of g'(f(x)) f'(x) - I.
        integral: of the encoder's "density"; nan if it was not asked for.
        integral_error: its standard error.
        dim: number of features.
        curved: whether the encoder has second derivatives; a ReLU network has not.
    """

    nll_encoder: float
    nll_decoder: float
    reconstruction: float
    lost: float
    jacobian_error: float
    integral: float
    integral_error: float
    dim: int
    curved: bool

    @property
    def signs(self) -> list[str]:
        """What speaks against the likelihood, in words; empty if nothing does."""
        found = []
        numbers = (self.nll_encoder, self.nll_decoder, self.reconstruction, self.jacobian_error)
        if not all(map(math.isfinite, numbers)):
            return ["a measurement is not finite: a network diverged, or its Jacobian is singular on data"]
        if self.integral - 3 * self.integral_error > 1 + TOO_MUCH:
            found.append(f"the encoder folds: {self.integral:.2f} points share a latent on average, where 1 should")
        if abs(self.nll_encoder - self.nll_decoder) > min(AGREE * self.dim, AGREE_IN_ALL):
            found.append(f"the two likelihoods are {abs(self.nll_encoder - self.nll_decoder):.2f} nats apart")
        if self.jacobian_error > min(math.sqrt(self.dim), JACOBIAN):
            found.append(
                f"g' f' is {self.jacobian_error:.2f} from the identity (the zero matrix is {math.sqrt(self.dim):.2f})"
            )
        if self.lost > LOST:
            found.append(f"reconstruction loses {100 * self.lost:.0f} % of the data's variance along some direction")
        return found

    @property
    def trustworthy(self) -> bool:
        """Whether nothing speaks against reading the likelihoods as such."""
        return not self.signs and self.curved

    @property
    def verdict(self) -> str:
        """What it means and what to do, in one or two sentences."""
        curve = (
            ""
            if self.curved
            else " The encoder is linear wherever it was looked at: the gradient of log|det f'| misses every bias and"
            " activation. Take a smooth activation (SiLU, sine)."
        )
        if self.signs:
            return f"Spurious: {'; '.join(self.signs)}. Raise beta; if that does not help, train longer.{curve}"
        if curve:
            return f"Consistent, but hardly trained.{curve}"
        return (
            "Consistent: read the likelihood as one. If it is worse than you hoped, networks are too small, steps too"
            " few, or beta is far above 1 / (2 sigma^2) for the finest scale sigma of the data: lower it."
        )

    def __str__(self) -> str:
        mass = "not asked for" if math.isnan(self.integral) else f"{self.integral:.3f} +- {self.integral_error:.3f}"
        return (
            f"NLL {self.nll_encoder:.3f} (encoder), {self.nll_decoder:.3f} (decoder) nats; reconstruction"
            f" {self.reconstruction:.2e}, at most {100 * self.lost:.2g} % of the variance along any direction; |g'f' - I| {self.jacobian_error:.2f};"
            f" integral {mass}\n{self.verdict}"
        )


def grid_integral(log_density: Callable, low: Float[Tensor, "2"], high: Float[Tensor, "2"], steps: int = 200) -> Tensor:
    """Integral of exp(log_density) over a rectangle of the plane, by the midpoint rule on steps x steps cells.

    Args:
        log_density: from points (n, 2) to logarithms (n,).
        low, high: two opposite corners.

    Raises:
        ValueError, TypeError: if the corners do not fit, or `steps` is not a whole number >= 1.

    >>> low = torch.tensor([-8.0, -8.0])
    >>> log_normal = lambda x: -x.square().sum(1) / 2 - math.log(2 * math.pi)
    >>> round(grid_integral(log_normal, low, -low).item(), 4)
    1.0
    """
    check_sizes(steps=steps)
    check_tensor("low", low, "(2)")
    check_tensor("high", high, "(2)", like=low)
    if not (high > low).all():
        raise ValueError(f"high: got {high.tolist()}, expected more than low, {low.tolist()}")
    middle = (torch.arange(steps, dtype=low.dtype, device=low.device) + 0.5) / steps
    ticks = [a + (b - a) * middle for a, b in zip(low, high, strict=True)]
    points = torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1).view(-1, 2)
    return _numbers(log_density, points).exp().sum() * (high - low).prod() / steps**2


def _numbers(log_density: Callable, points: Tensor) -> Tensor:
    values = log_density(points)
    if not isinstance(values, Tensor) or values.shape != points.shape[:1]:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"log_density: returned {got}, expected one number for each of {len(points)} points")
    return values


def importance_integral(
    log_density: Callable,
    x: Float[Tensor, "n dim"],
    num_draws: int = 4000,
    *,
    spread: float | int = 1.5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Integral of exp(log_density) and its standard error, by draws from a broad Student-t around the data.

    The proposal has the data's mean, `spread` times its standard deviations along the principal axes, and 5 degrees of
    freedom. In more than about ten dimensions weights degenerate: look at the standard error, and do not trust it if
    the density is much narrower than the data's covariance.

    Args:
        log_density: from points (n, dim) to logarithms (n,).
        x: data, n > dim.
        num_draws: points to draw.
        spread: of the proposal, in standard deviations of the data.

    Raises:
        ValueError, TypeError: if an argument does not fit, or the data have no spread in some direction.
    """
    check_tensor("x", x, "(n, dim)")
    check_sizes(num_draws=num_draws)
    if num_draws < 2:
        raise ValueError(f"num_draws: got {num_draws}, expected 2 or more, for a standard error")
    check_positive("spread", spread)
    dim, df = x.shape[1], 5.0
    covariance = torch.cov(x.T).view(dim, dim) if len(x) > dim else x.new_zeros(dim, dim)
    root, fails = torch.linalg.cholesky_ex(covariance)
    if fails:
        raise ValueError(f"x: got {len(x)} points whose covariance is singular in {dim} dimensions: pass a basis of it")
    where = generator.device if generator else x.device
    noise = torch.randn(num_draws, dim + int(df), dtype=x.dtype, device=where, generator=generator).to(x.device)
    t = noise[:, :dim] * (df / noise[:, dim:].square().sum(1, keepdim=True)).sqrt()
    constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - dim / 2 * math.log(math.pi * df)
    log_proposal = constant - (df + dim) / 2 * torch.log1p(t.square().sum(1) / df)
    log_proposal = log_proposal - root.diagonal().log().sum() - dim * math.log(spread)
    weights = (_numbers(log_density, x.mean(0) + spread * t @ root.T) - log_proposal).exp()
    return weights.mean(), weights.std() / math.sqrt(num_draws)


@torch.no_grad()
def diagnose(
    flow: FreeFormFlow,
    x: Float[Tensor, "n dim"],
    context: Float[Tensor, "..."] | None = None,
    *,
    integrate: bool = True,
    steps: int = 200,
    generator: torch.Generator | None = None,
) -> Diagnosis:
    """Exact likelihoods of both sides, reconstruction, g'f' - I, and the integral, on data that were held out.

    The integral is over a grid in the plane (three data ranges wide), by importance sampling else. With a context it
    is left out, as each context has its own; pass `integrate=False` where data lie in a subspace.

    Args:
        flow: the pair and its base.
        x: held-out data, at least two points; several times as many as features, for the loss along directions.
        context: of each point, shape (n, dim_context) or (dim_context,).
        integrate: whether to integrate.
        steps: of the grid along each axis; the importance sampler draws a tenth of steps^2 points.
        generator: source of the importance sampler's random numbers.

    Raises:
        TypeError, ValueError: if `flow` is no `FreeFormFlow` or `x` does not fit.
    """
    if not isinstance(flow, FreeFormFlow):
        raise TypeError(f"flow: got {type(flow).__name__}, expected a FreeFormFlow")
    check_tensor("x", x, f"(n, {flow.base.event_shape[0]})")
    flow.check_point(x)
    if len(x) < 2:
        raise ValueError(f"x: got {len(x)} points, expected two or more")
    check_sizes(steps=steps)
    context = spread_context(context, x)
    encode, decode = flow.given(context)
    z = encode(x)
    in_x, in_z = jacobian(encode, x), jacobian(decode, z)
    log_base = flow.base.log_prob(z)
    error_of_x = x - decode(z)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    mass, error = torch.tensor(math.nan), torch.tensor(math.nan)
    if integrate and context is None:

        def log_density(points: Tensor) -> Tensor:
            return torch.cat([flow.log_prob(part, side="encoder") for part in points.split(10_000)])

        if x.shape[1] == 2:
            low, high = x.min(0).values, x.max(0).values
            mass = grid_integral(log_density, 2 * low - high, 2 * high - low, steps)
            error = torch.zeros(())
        else:
            mass, error = importance_integral(log_density, x, max(2, steps**2 // 10), generator=generator)
    return Diagnosis(
        nll_encoder=-(log_base + torch.linalg.slogdet(in_x).logabsdet).mean().item(),
        nll_decoder=-(log_base - torch.linalg.slogdet(in_z).logabsdet).mean().item(),
        reconstruction=error_of_x.square().sum(1).mean().item(),
        lost=_largest_loss(x, error_of_x),
        jacobian_error=(in_z @ in_x - identity).flatten(1).norm(dim=1).median().item(),
        integral=mass.item(),
        integral_error=error.item(),
        dim=x.shape[1],
        curved=_is_curved(encode, x),
    )


def _largest_loss(x: Tensor, error: Tensor) -> float:
    """Largest ratio of mean squared error to variance over all directions in which the data vary."""
    values, axes = torch.linalg.eigh(torch.cov(x.T).view(x.shape[1], x.shape[1]))
    keep = values > 1e-6 * values[-1]
    if not keep.any():
        raise ValueError("x: all points are the same, expected data that vary")
    white = error @ axes[:, keep] / values[keep].sqrt()
    ratios = white.T @ white / len(x)
    return torch.linalg.eigvalsh(ratios)[-1].item() if ratios.isfinite().all() else math.nan


def _is_curved(encode: Callable, x: Tensor) -> bool:
    """Whether f' changes along x, by the derivative of v^T f'(x) for one v, at any of the points."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = torch.arange(x.shape[1], dtype=x.dtype, device=x.device).add(1).cos()  # no sum, which may be conserved
        (row,) = torch.autograd.grad((encode(x) * v).sum(), x, create_graph=True)
        if not row.requires_grad:
            return False
        (second,) = torch.autograd.grad(row.square().sum(), x, allow_unused=True)
    return second is not None and bool((second != 0).any())
