"""Residual flows: z = x + g(x) with a contraction g, the inverse by iteration, the log-determinant by a power series."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from refimpl._checks import check_numbers, check_positive, check_sizes
from refimpl.autodiff import jacobian, probe_vectors
from refimpl.flows.bijection import Bijection, Chain, Diagonal, Pair, check_shape
from refimpl.flows.conditioners import join

__all__ = ["LipSwish", "LipschitzLinear", "Residual", "residual_flow", "roulette_weights", "unit_probes"]

METHODS = ("exact", "series", "roulette")


class LipSwish(nn.Module):
    """x sigmoid(b x) / 1.1 with a learned b > 0; its slope never exceeds 1.

    Source: Chen, Behrmann, Duvenaud, Jacobsen 2019 (arXiv 1906.02735).
    """

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.softplus(self.raw) * x) / 1.1


class LipschitzLinear(nn.Linear):
    """Linear layer whose matrix is divided by max(1, sigma / lipschitz), sigma its estimated spectral norm.

    sigma = u^T W v with singular vectors kept in buffers: exact at first, then followed by `refresh`. The estimate never
    exceeds the norm, so weights that move fast can break the bound: see `Residual.lipschitz_bound`.

    Args:
        dim_in: input features.
        dim_out: output features.
        lipschitz: the bound.
        num_iterations: power iterations of a refresh.
    """

    def __init__(self, dim_in: int, dim_out: int, lipschitz: float | int, num_iterations: int = 5):
        check_sizes(dim_in=dim_in, dim_out=dim_out, num_iterations=num_iterations)
        check_positive("lipschitz", lipschitz)
        super().__init__(dim_in, dim_out)
        self.lipschitz, self.num_iterations = lipschitz, num_iterations
        left, _, right = torch.linalg.svd(self.weight.detach(), full_matrices=False)
        self.register_buffer("u", left[:, 0].clone())
        self.register_buffer("v", right[0].clone())

    @torch.no_grad()
    def refresh(self) -> None:
        """Power iterations from the vectors in the buffers."""
        u, v = self.u, self.v
        for _ in range(self.num_iterations):
            v = F.normalize(self.weight.T @ u, dim=0)
            u = F.normalize(self.weight @ v, dim=0)
        self.u.copy_(u)
        self.v.copy_(v)

    def scaled(self) -> Tensor:
        """The matrix that is used."""
        # Copies, because a refresh may come between this pass and its gradient.
        return self.weight / (self.u.clone() @ self.weight @ self.v.clone() / self.lipschitz).clamp_min(1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scaled(), self.bias)


def unit_probes(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "dim *batch dim"]:
    """sqrt(dim) e_1, ..., sqrt(dim) e_dim: probes over which the mean of v^T A v is the trace of A exactly."""
    dim = x.shape[-1]
    axes = math.sqrt(dim) * torch.eye(dim, dtype=x.dtype, device=x.device)
    return axes.view(dim, *[1] * (x.ndim - 1), dim).expand(dim, *x.shape)


def roulette_weights(
    num_exact: int, tail: str = "geometric", rate: float | int = 0.5, generator: torch.Generator | None = None
) -> list[float]:
    """Random weights of the terms of a series, each of mean 1, and all but finitely many 0.

    num_exact + N terms take part; the first num_exact have weight 1, term k of the others 1 / P(N >= k - num_exact).
    Terms that fall like L^k have a sum of finite variance if L^2 < 1 - rate (geometric); the tail of a Poisson law is
    always too thin for that, although one sees it only if L is near 1.

    Args:
        num_exact: terms that always take part.
        tail: "geometric" (N >= 1, P(N >= j) = (1 - rate)^(j - 1)) or "poisson" (N >= 0 of mean `rate`).
        rate: parameter of N.
        generator: source of N.

    Returns: The weights that are not 0.
    Raises: ValueError: if a number is out of its range or `tail` is unknown.
    Source: Chen, Behrmann, Duvenaud, Jacobsen 2019 (arXiv 1906.02735), Theorem 1.

    >>> len(roulette_weights(2)) > 2
    True
    """
    check_numbers("num_exact", [num_exact], low=0, whole=True)
    if tail not in ("geometric", "poisson"):
        raise ValueError(f"tail: got {tail!r}, expected 'geometric' or 'poisson'")
    if not (0 < rate < 1 or (tail == "poisson" and 0 < rate < math.inf)):
        raise ValueError(f"rate: got {rate!r}, expected a number > 0, and < 1 if geometric")
    mean = torch.full((), rate, dtype=torch.float64, device=generator.device if generator else None)
    if tail == "geometric":
        n = int(torch.empty_like(mean).geometric_(rate, generator=generator))
        survival = [(1 - rate) ** (j - 1) for j in range(1, n + 1)]
    else:
        n = int(torch.poisson(mean, generator=generator))
        survival = torch.special.gammainc(torch.arange(1.0, n + 1).double(), mean.cpu()).tolist()
    return [1.0] * num_exact + [1 / s for s in survival]


class Residual(Bijection):
    """z = x + g(x), g a network with Lipschitz constant < 1, so that the map has one inverse.

    The log-determinant, by `method`:
        "exact": from the Jacobian; `dim` backward passes.
        "series": sum_{k <= num_terms} (-1)^(k + 1) tr(J^k) / k, J = dg/dx, an error of at most
            dim L^(n + 1) / ((n + 1) (1 - L)) for n terms and a constant L; exact traces, or `num_probes` random probes.
        "roulette": the series with the weights of `roulette_weights` and random probes: unbiased at finite cost. Its
            gradient is unbiased too, by the Neumann series sum_k (-1)^k J^k dJ, whose memory does not grow with the
            number of terms; it cannot be differentiated twice.

    In training mode each `forward` refreshes the spectral norms first. With gradients enabled `inverse` needs the
    Jacobians of all samples, `dim` backward passes and batch * dim^2 numbers, whatever the `method`.

    Args:
        dim: number of features.
        width: units of each hidden layer.
        depth: number of linear layers.
        lipschitz: bound on the constant of g, in (0, 1); each layer takes the depth-th root.
        num_iterations: power iterations a refresh.
        method: of the log-determinant; may be changed later.
        num_terms: of "series".
        num_exact: terms of "roulette" that always take part, in training and in evaluation mode.
        num_probes: random probes a sample, None for exact traces ("series") or one probe ("roulette").
        tail: distribution of the number of further terms, see `roulette_weights`.
        rate: its parameter.
        max_iterations: of the inverse.
        dim_context: features of the context, which g receives beside x.
        generator: of probes and roulette; its state is no part of the module. Give the same one to
            `fit(generator=...)`: then a run that is resumed from its checkpoint continues exactly.

    Raises:
        ValueError: if an argument is out of its range.
        RuntimeError: in `inverse`, if the iteration does not converge, which means that g is no contraction.

    Source: Behrmann et al. 2019 (arXiv 1811.00995); Chen, Behrmann, Duvenaud, Jacobsen 2019 (arXiv 1906.02735).
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 64,
        depth: int = 3,
        lipschitz: float | int = 0.9,
        num_iterations: int = 5,
        method: str = "exact",
        num_terms: int = 20,
        num_exact: tuple[int, int] = (2, 20),
        num_probes: int | None = None,
        tail: str = "geometric",
        rate: float | int = 0.5,
        max_iterations: int = 1000,
        dim_context: int = 0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_sizes(dim=dim, width=width, depth=depth, num_iterations=num_iterations, max_iterations=max_iterations)
        if not 0 < lipschitz < 1:
            raise ValueError(f"lipschitz: got {lipschitz!r}, expected a number in (0, 1)")
        if method not in METHODS:
            raise ValueError(f"method: got {method!r}, expected one of {METHODS}")
        check_sizes(num_terms=num_terms, **{} if num_probes is None else {"num_probes": num_probes})
        check_shape("num_exact", num_exact)
        if len(num_exact) != 2:
            raise ValueError(f"num_exact: got {num_exact}, expected two numbers, for training and evaluation")
        roulette_weights(1, tail, rate, torch.Generator())  # complains if they do not fit
        self.method, self.num_terms, self.num_exact, self.num_probes = method, num_terms, num_exact, num_probes
        self.tail, self.rate, self.max_iterations = tail, rate, max_iterations
        self.dim, self.lipschitz, self.dim_context, self.generator = dim, lipschitz, dim_context, generator
        sizes = [dim + dim_context, *[width] * (depth - 1), dim]
        layers: list[nn.Module] = []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [LipSwish(), LipschitzLinear(a, b, lipschitz ** (1 / depth), num_iterations)]
        self.net = nn.Sequential(*layers[1:])

    def g(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The contraction, shape of x."""
        return self.net(join(x, context, self.dim_context))

    def lipschitz_bound(self) -> float:
        """Product of the exact spectral norms of g's matrices."""
        layers = [layer for layer in self.net if isinstance(layer, LipschitzLinear)]
        return math.prod(torch.linalg.matrix_norm(layer.scaled().detach(), 2).item() for layer in layers)

    def log_det(self, x: Tensor, context: Tensor | None = None) -> Float[Tensor, "*batch"]:
        """log det(I + J) at x by `method`, without the rest of the map."""
        return self._value_and_log_det(x, context)[1]

    def _value_and_log_det(self, x: Tensor, context: Tensor | None) -> Pair:
        if x.numel() == 0:
            return x, self.zeros(x)
        if self.method not in METHODS:
            raise ValueError(f"method: got {self.method!r}, expected one of {METHODS}")
        y, pull = torch.func.vjp(lambda x: self.g(x, context), x)
        product = torch.vmap(lambda w: pull(w)[0])
        if self.method == "exact":
            axes = (unit_probes(x) != 0).to(x)
            return y, torch.linalg.slogdet((axes + product(axes)).movedim(0, -2)).logabsdet
        roulette = self.method == "roulette"
        if roulette:
            weights = roulette_weights(self.num_exact[not self.training], self.tail, self.rate, self.generator)
        else:
            weights = [1.0] * self.num_terms
        exact_traces = self.num_probes is None and not roulette
        v = unit_probes(x) if exact_traces else probe_vectors(x, self.num_probes or 1, generator=self.generator)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not roulette):
            total, power, neumann = self.zeros(x), v, v * 0
            for k, weight in enumerate(weights):
                neumann = neumann + (-1) ** k * weight * power
                power = product(power)  # v^T J^(k + 1)
                total = total + (-1) ** k * weight / (k + 1) * (power * v).sum(-1).mean(0)
        if roulette and torch.is_grad_enabled():
            surrogate = (product(neumann.detach()) * v).sum(-1).mean(0)
            total = total.detach() + surrogate - surrogate.detach()
        return y, total

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, self.dim)
        # Buffers cannot change inside a function that torch.func transforms.
        if self.training and not torch._C._are_functorch_transforms_active():
            for layer in self.net:
                if isinstance(layer, LipschitzLinear):
                    layer.refresh()
        g, log_det = self._value_and_log_det(x, context)
        return x + g, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, self.dim)
        if z.numel() == 0:
            return z, self.zeros(z)
        differentiable = torch.is_grad_enabled()
        with torch.no_grad():
            x, tolerance = z, 50 * torch.finfo(z.dtype).eps
            for _ in range(self.max_iterations):
                last, x = x, z - self.g(x, context)
                if ((x - last).abs() <= tolerance * (1 + x.abs().amax(-1, keepdim=True))).all():
                    break
            else:
                change = (x - last).abs().max().item()
                raise RuntimeError(
                    f"inverse: still changing by {change:.1e} after {self.max_iterations} iterations; the Lipschitz bound "
                    f"is {self.lipschitz_bound():.4f}: below 1 allow more iterations, else refresh the spectral norms"
                )
            # The error is up to L / (1 - L) times the change. Newton's step below mends that; without it, further steps.
            further = 0 if differentiable else math.ceil(math.log(1 - self.lipschitz) / math.log(self.lipschitz))
            for _ in range(further):
                x = z - self.g(x, context)
        if differentiable:
            # One step of Newton's method with the Jacobian held fixed: its derivative is the implicit function theorem's.
            slope = jacobian(lambda x: x + self.g(x, context), x.detach()).detach()
            x = x.detach()
            x = x - torch.linalg.solve(slope, (x + self.g(x, context) - z).unsqueeze(-1)).squeeze(-1)
        return x, -self.log_det(x, context)


def residual_flow(dim: int, num_layers: int, **settings) -> Chain:
    """`num_layers` residual blocks, each after a learned scaling, because a block alone stretches by less than 2.

    Args:
        dim: number of features.
        num_layers: number of blocks.
        **settings: of `Residual`.
    """
    check_sizes(num_layers=num_layers)
    return Chain(*(layer for _ in range(num_layers) for layer in (Diagonal(dim), Residual(dim, **settings))))
