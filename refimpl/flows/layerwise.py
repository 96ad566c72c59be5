"""Affine couplings fitted one after the other, without gradients: the construction behind their universality."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes, check_tensor
from refimpl.flows.bijection import Bijection, Chain
from refimpl.flows.linear import random_rotation
from refimpl.flows.universality import conditional_moments

__all__ = ["BinnedCoupling", "fit_affine_block", "fit_affine_layers"]


class BinnedCoupling(Bijection):
    """(b, a) = Q x, then a -> s(b) a + t(b), with s and t interpolated between bins of the single passive feature b.

    Piecewise linear and constant beyond the outermost bins: s and t are continuous, with slopes that the bins bound.
    The Jacobian's entry s'(b) a + t'(b), and with it the condition number, still grows with |a|.

    Args:
        rotation: Q, shape (dim, dim), orthogonal; its first row gives b.
        position: b at which s and t are known, increasing, shape (bins,), at least 2.
        scale: s > 0, shape (bins, dim - 1).
        shift: t, shape (bins, dim - 1).

    Raises:
        TypeError: if a tensor is not floating-point.
        ValueError: if shapes do not fit, the rotation is not orthogonal to single precision, a scale is not > 0, or
            positions do not increase.
    """

    def __init__(self, rotation: Tensor, position: Tensor, scale: Tensor, shift: Tensor):
        super().__init__()
        check_tensor("rotation", rotation, "(dim, dim)")
        check_tensor("position", position, "(bins)", like=rotation)
        away = (rotation @ rotation.T - torch.eye(len(rotation)).to(rotation)).abs().max().item()
        if not away < 1e-4:
            raise ValueError(
                f"rotation: Q Q^T is up to {away:.2g} away from the identity, expected an orthogonal matrix"
            )
        bins, active = len(position), len(rotation) - 1
        for name, value in (("scale", scale), ("shift", shift)):
            check_tensor(name, value, f"({bins}, {active})", like=rotation)
        if bins < 2 or not (position.diff() > 0).all():
            raise ValueError(f"position: got {bins} values, expected at least 2 that increase")
        if not (scale > 0).all():
            raise ValueError(f"scale: got a smallest value of {scale.min().item():g}, expected all > 0")
        for name, value in dict(rotation=rotation, position=position, scale=scale, shift=shift).items():
            self.register_buffer(name, value.detach().clone())

    def scale_and_shift(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        """s(b) and t(b), each (*batch, dim - 1), for b of shape (*batch,)."""
        right = torch.searchsorted(self.position, passive.detach().contiguous()).clamp(1, len(self.position) - 1)
        left, start = right - 1, self.position[right - 1]
        part = ((passive - start) / (self.position[right] - start)).clamp(0, 1)[..., None]
        return tuple(torch.lerp(v[left], v[right], part) for v in (self.scale, self.shift))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("x", x, f"(*batch, {len(self.rotation)})")
        b, a = (x @ self.rotation.T).split([1, len(self.rotation) - 1], -1)
        s, t = self.scale_and_shift(b[..., 0])
        return torch.cat([b, s * a + t], -1), s.log().sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("z", z, f"(*batch, {len(self.rotation)})")
        b, a = z.split([1, len(self.rotation) - 1], -1)
        s, t = self.scale_and_shift(b[..., 0])
        return torch.cat([b, (a - t) / s], -1) @ self.rotation, -s.log().sum(-1)


def fit_affine_block(
    x: Float[Tensor, "n dim"],
    *,
    num_bins: int = 64,
    step: float | int = 0.5,
    num_rotations: int = 10,
    generator: torch.Generator | None = None,
) -> BinnedCoupling:
    """Of the best affine couplings for some random rotations, the one that lowers the loss most.

    Args:
        x: samples, on which the block is fitted and judged.
        num_bins: bins of the passive feature.
        step: share of the way from the identity to s = 1 / sigma, t = -m / sigma, in (0, 1].
        num_rotations: rotations to try.
        generator: source of the rotations.

    Raises:
        TypeError, ValueError: if `x` is not finite and of that shape, or a setting is out of its range.

    Source: Draxler et al. 2024 (arXiv 2402.06578), Sec. 5 and the authors' code.
    """
    check_tensor("x", x, "(n, dim)")
    if x.shape[1] < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least 2 features")
    check_positive("step", step)
    if step > 1:
        raise ValueError(f"step: got {step!r}, expected a number in (0, 1]")
    check_sizes(num_bins=num_bins, num_rotations=num_rotations)
    if num_bins < 2:
        raise ValueError(f"num_bins: got {num_bins}, expected at least 2")
    best, lowest = None, math.inf
    for _ in range(num_rotations):
        rotation = random_rotation(x.shape[1], generator).to(x)
        y = x @ rotation.T
        position, mean, std = conditional_moments(y[:, 0], y[:, 1:], num_bins)
        if not (position.diff() > 0).all():
            raise ValueError("x: whole bins of samples coincide; take fewer bins, or leave out copies")
        block = BinnedCoupling(rotation, position, 1 + step * (1 / std - 1), -step * mean / std)
        z, log_det = block(x)
        loss = (0.5 * z.square().sum(1) - log_det).mean().item()
        if loss < lowest:
            best, lowest = block, loss
    return best


def fit_affine_layers(x: Float[Tensor, "n dim"], num_layers: int, **settings) -> Chain:
    """Blocks of `fit_affine_block`, each fitted to what those before it make of `x` and then frozen. No gradients.

    Args:
        x: samples, brought to zero mean and unit variances.
        num_layers: number of blocks.
        **settings: of `fit_affine_block`.
    """
    check_sizes(num_layers=num_layers)
    blocks = []
    for _ in range(num_layers):
        blocks.append(fit_affine_block(x, **settings))
        x, _ = blocks[-1](x)
    return Chain(*blocks)
