"""Increasing maps of single numbers, their parameters predicted by a network: the moving part of couplings and MAF.

A map has `num_params` raw parameters a feature. They come stacked as (num_params * n) along the feature dimension,
parameter by parameter, and all-zero ones give the identity, so that a network whose last layer starts at zero starts
as the identity.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from refimpl._checks import check_positive

__all__ = ["AdditiveMap", "AffineMap", "ElementwiseMap", "GINMap"]

Pair = tuple[Tensor, Tensor]


class ElementwiseMap:
    """z_i = tau(x_i; h_i), increasing in x_i; both directions return the result and the log-derivative of each element.

    Args of both directions: the points; the raw parameters; `dim`, the (negative) dimension of features.
    """

    num_params: int

    def forward(self, x: Tensor, params: Tensor, dim: int = -1) -> Pair:
        """z and log dz_i/dx_i, each of the shape of x."""
        raise NotImplementedError

    def inverse(self, z: Tensor, params: Tensor, dim: int = -1) -> Pair:
        """x and log dx_i/dz_i, each of the shape of z."""
        raise NotImplementedError


def check_map(tau: object) -> None:
    """Raise TypeError unless ``tau`` is an elementwise map."""
    if not isinstance(tau, ElementwiseMap):
        raise TypeError(f"tau: got {tau!r}, expected an ElementwiseMap such as AffineMap()")


class AdditiveMap(ElementwiseMap):
    """z = x + t: NICE. Keeps volumes. Source: Dinh, Krueger, Bengio 2015 (arXiv 1410.8516), Eq. (8)."""

    num_params = 1

    def forward(self, x: Tensor, params: Tensor, dim: int = -1) -> Pair:
        return x + params, torch.zeros_like(x)

    def inverse(self, z: Tensor, params: Tensor, dim: int = -1) -> Pair:
        return z - params, torch.zeros_like(z)


class AffineMap(ElementwiseMap):
    """z = e^s x + t: RealNVP; with `gate="sigmoid"` Glow's scale sigmoid(s + 2), which never exceeds 1.

    Args:
        bound: s is held inside (-bound, bound) by bound * tanh(s / bound), because one wild exponential can end a
            training run; it has no use for the sigmoid.
        gate: "exp" or "sigmoid". All-zero parameters give the identity with "exp" and a scale of 0.88 with "sigmoid".

    Source: Dinh, Sohl-Dickstein, Bengio 2017 (arXiv 1605.08803), Eq. (4); Kingma, Dhariwal 2018 (arXiv 1807.03039).
    """

    num_params = 2

    def __init__(self, bound: float | int = 2.0, gate: str = "exp"):
        check_positive("bound", bound)
        if gate not in ("exp", "sigmoid"):
            raise ValueError(f"gate: got {gate!r}, expected 'exp' or 'sigmoid'")
        self.bound, self.gate = bound, gate

    def _log_scale_and_shift(self, params: Tensor, dim: int) -> Pair:
        s, t = params.chunk(2, dim)
        return (F.logsigmoid(s + 2) if self.gate == "sigmoid" else (s / self.bound).tanh() * self.bound), t

    def forward(self, x: Tensor, params: Tensor, dim: int = -1) -> Pair:
        s, t = self._log_scale_and_shift(params, dim)
        return torch.addcmul(t, x, s.exp()), s

    def inverse(self, z: Tensor, params: Tensor, dim: int = -1) -> Pair:
        s, t = self._log_scale_and_shift(params, dim)
        log_slope = -s
        return (z - t) * log_slope.exp(), log_slope


class GINMap(AffineMap):
    """As `AffineMap`, minus the mean of s over the features of a sample: keeps volumes, stretches one feature at another's cost.

    Source: Sorrenson, Rother, Köthe 2020 (arXiv 2001.04872), Sec. 3.2.
    """

    def _log_scale_and_shift(self, params: Tensor, dim: int) -> Pair:
        s, t = super()._log_scale_and_shift(params, dim)
        return s - s.flatten(dim).mean(-1).view(*s.shape[: s.ndim + dim], *[1] * -dim), t


def check_separate_map(tau: object) -> None:
    """Raise TypeError unless ``tau`` is an elementwise map that moves each feature alone."""
    check_map(tau)
    if isinstance(tau, GINMap):
        raise TypeError("tau: got a GINMap, whose scales depend on all features; expected one that acts on each alone")
