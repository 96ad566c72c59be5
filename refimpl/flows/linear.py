"""Linear bijections: normalise features, rotate them, mix them; the features of images are the channels of a pixel."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_sizes, check_tensor
from refimpl.flows.bijection import Bijection, Pair

__all__ = ["ActNorm", "BlockTriangularLinear", "InvertibleLinear", "Rotation", "random_rotation"]


def random_rotation(
    dim: int, generator: torch.Generator | None = None, batch: tuple[int, ...] = ()
) -> Float[Tensor, "*batch dim dim"]:
    """Orthogonal matrices from the Haar distribution on O(dim), reflections included, float64.

    Without the signs the QR of a normal matrix would give a distribution that depends on the algorithm.

    Source: Mezzadri 2007 (arXiv math-ph/0609050), Sec. 5.
    """
    check_sizes(dim=dim)
    where = generator.device if generator else None
    q, r = torch.linalg.qr(torch.randn(*batch, dim, dim, dtype=torch.float64, device=where, generator=generator))
    return (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).contiguous()  # a file takes no other layout


def _positions(x: Tensor, event_ndim: int) -> int:
    """Pixels of an image, over which a map of channels is repeated; 1 for vectors."""
    return math.prod(x.shape[x.ndim - event_ndim + 1 :])


class ActNorm(Bijection):
    """z = (x - mean) / sigma for each feature; log-determinant -rows * columns * sum(log sigma).

    The first non-empty batch that `forward` sees in training mode sets both so that z has mean 0 and standard deviation
    1; then they are learned. A feature that does not vary there keeps sigma = 1. Before that, and so when one samples
    from a fresh flow, the map is the identity.

    Args:
        dim: number of features, or of channels.
        event_ndim: 1, or 3 for images.

    Attributes:
        initialised: whether the data have been seen; saved with the parameters.

    Source: Kingma, Dhariwal 2018 (arXiv 1807.03039), Sec. 3.1.
    """

    def __init__(self, dim: int, event_ndim: int = 1):
        super().__init__()
        check_sizes(dim=dim, event_ndim=event_ndim)
        self.event_ndim = event_ndim
        self.mean = nn.Parameter(torch.zeros(dim, *[1] * (event_ndim - 1)))
        self.log_sigma = nn.Parameter(torch.zeros_like(self.mean))
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set mean and sigma from `x`, shape (*batch, *event)."""
        rows = x.movedim(-self.event_ndim, -1).reshape(-1, len(self.mean))
        mean, sigma = rows.mean(0), rows.std(0, correction=0)
        constant = sigma <= 1e-6 * rows.abs().amax(0)  # what is left there is rounding
        self.mean.copy_(mean.view_as(self.mean))
        self.log_sigma.copy_(sigma.masked_fill(constant, 1).log().view_as(self.mean))
        self.initialised.fill_(True)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.zeros(x) - _positions(x, self.event_ndim) * self.log_sigma.sum()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, len(self.mean))
        if self.training and not self.initialised and x.numel():
            self.initialise(x)
        return (x - self.mean) * (-self.log_sigma).exp(), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, len(self.mean))
        return z * self.log_sigma.exp() + self.mean, -self._log_det(z)


class InvertibleLinear(Bijection):
    """z = W x with W = P L U learned: P a fixed permutation, L unit lower, U upper triangular with fixed signs.

    For images W mixes the channels of every pixel, as Glow's invertible 1x1 convolution. W starts as a random rotation,
    and can never become singular: log|det W| = sum(log|u_ii|), times rows * columns for images.

    Args:
        dim: number of features, or of channels.
        event_ndim: 1, or 3 for images.
        generator: source of the rotation; torch's global one if None.

    Attributes:
        lu: L below the diagonal, U above it, log|u_ii| on it.

    Source: Kingma, Dhariwal 2018 (arXiv 1807.03039), Sec. 3.2.
    """

    def __init__(self, dim: int, event_ndim: int = 1, generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(dim=dim, event_ndim=event_ndim)
        self.event_ndim, dtype = event_ndim, torch.get_default_dtype()
        where = torch.get_default_device()
        p, lower, upper = (a.to(where, dtype) for a in torch.linalg.lu(random_rotation(dim, generator)))
        self.register_buffer("permutation", p)
        self.register_buffer("sign", upper.diagonal().sign())
        self.lu = nn.Parameter(lower.tril(-1) + upper.triu(1) + upper.diagonal().abs().log().diag())

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """P, L and U, whose product is W."""
        diagonal = self.lu.diagonal()
        lower = self.lu.tril(-1) + torch.eye(len(self.lu), dtype=self.lu.dtype, device=self.lu.device)
        return self.permutation, lower, self.lu.triu(1) + (self.sign * diagonal.exp()).diag()

    def weight(self) -> Float[Tensor, "dim dim"]:
        """W."""
        p, lower, upper = self.factors()
        return p @ lower @ upper

    def _apply_matrix(self, matrix: Tensor, x: Tensor) -> Tensor:
        return (x.movedim(-self.event_ndim, -1) @ matrix.T).movedim(-1, -self.event_ndim)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.zeros(x) + _positions(x, self.event_ndim) * self.lu.trace()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, len(self.lu))
        return self._apply_matrix(self.weight(), x), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, len(self.lu))
        p, lower, upper = self.factors()
        back = torch.linalg.solve_triangular(lower, p.T, upper=False, unitriangular=True)
        return self._apply_matrix(torch.linalg.solve_triangular(upper, back, upper=True), z), -self._log_det(z)


class Rotation(Bijection):
    """z = R x with a fixed orthogonal R; keeps volumes, and leaves a standard normal density as it is.

    Args:
        dim: number of features.
        generator: draws R from the Haar distribution; torch's global one if None.
        matrix: R instead, shape (dim, dim); its rounding errors are removed (the nearest orthogonal matrix is kept).

    Raises:
        ValueError: if `matrix` has another shape, or is not orthogonal.

    Attributes:
        matrix: R, kept in float64 until the module is converted, so that a module turned to float64 stays exact.

    >>> quarter = Rotation(2, matrix=torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    >>> quarter(torch.tensor([1.0, 2.0]))[0]
    tensor([-2.,  1.])
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None, matrix: Tensor | None = None):
        super().__init__()
        check_sizes(dim=dim)
        if matrix is None:
            matrix = random_rotation(dim, generator).to(torch.get_default_device())
        else:
            check_tensor("matrix", matrix, f"({dim}, {dim})")
            u, s, vh = torch.linalg.svd(matrix.detach().double())
            if (s - 1).abs().max() > 1e-4:
                raise ValueError(f"matrix: got singular values {s.min():g} to {s.max():g}, expected an orthogonal one")
            matrix = u @ vh
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, len(self.matrix))
        return x @ self.matrix.to(x.dtype).T, self.zeros(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, len(self.matrix))
        return z @ self.matrix.to(z.dtype), self.zeros(z)


class BlockTriangularLinear(Bijection):
    """z = W x with W = [[W1, 0], [W2, W3]] learned: the last, heavy-tailed features never feed the first, light ones.

    W1 and W3 are of the kind of `InvertibleLinear`, W2 is free and starts at zero; log|det W| is the sum of both.

    Args:
        dim_light: number of light-tailed features, which come first.
        dim_heavy: number of heavy-tailed features.
        generator: source of the initial rotations of W1 and W3; torch's global one if None.

    Source: Laszkiewicz, Lederer, Fischer 2022 (marginal tail-adaptive flows).
    """

    def __init__(self, dim_light: int, dim_heavy: int, generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(dim_light=dim_light, dim_heavy=dim_heavy)
        self.light = InvertibleLinear(dim_light, generator=generator)
        self.heavy = InvertibleLinear(dim_heavy, generator=generator)
        self.mix = nn.Parameter(torch.zeros(dim_heavy, dim_light))

    def _split(self, name: str, x: Tensor) -> tuple[Tensor, ...]:
        self.check_width(name, x, sum(self.mix.shape))
        return x.split(self.mix.shape[::-1], -1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        light, heavy = self._split("x", x)
        z_light, log_light = self.light(light)
        z_heavy, log_heavy = self.heavy(heavy)
        return torch.cat([z_light, z_heavy + light @ self.mix.T], -1), log_light + log_heavy

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        z_light, z_heavy = self._split("z", z)
        light, log_light = self.light.inverse(z_light)
        heavy, log_heavy = self.heavy.inverse(z_heavy - light @ self.mix.T)
        return torch.cat([light, heavy], -1), log_light + log_heavy
