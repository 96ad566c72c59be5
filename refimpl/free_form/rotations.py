"""The group of rotations of space, SO(3), as a manifold of matrices."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from refimpl.free_form.manifolds import Euclidean, full_turns, normal_like

__all__ = ["SO3"]

# Generators of rotations about the three axes, flattened; their Frobenius norm is sqrt(2).
SKEW = [[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0, 0]]


class SO3(Euclidean):
    """Rotations as flattened matrices in R^9, row by row. The metric is that of the angle: volume 8 pi^2.

    The projection is Gram and Schmidt's: the first column of a matrix normalised, the second made orthogonal to it, the
    third their cross product. It is smooth wherever the first two columns are independent. The nearest rotation would do
    as well, but the gradient of a singular value decomposition is not finite at rotations, whose singular values are equal.

    >>> SO3().project(torch.tensor([2.0, 1, 0, 0, 1, 0, 0, 0, -7])).view(3, 3)
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """

    def __init__(self):
        self.dim, self.ambient_dim, self.volume = 3, 9, 8 * math.pi**2

    def __repr__(self) -> str:
        return "SO3()"

    def project(self, y: Tensor) -> Tensor:
        tiny = torch.finfo(y.dtype).tiny
        first, second, _ = y.unflatten(-1, (3, 3)).unbind(-1)
        first = normalize(first, dim=-1, eps=tiny)
        second = normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1, eps=tiny)
        return torch.stack([first, second, torch.linalg.cross(first, second)], -1).flatten(-2)

    def tangent(self, x: Tensor, u: Tensor) -> Tensor:
        x, u = x.unflatten(-1, (3, 3)), u.unflatten(-1, (3, 3))
        turned = x.mT @ u
        return (x @ (turned - turned.mT) / 2).flatten(-2)

    def frame(self, x: Tensor) -> Tensor:
        skew = torch.tensor(SKEW, dtype=x.dtype, device=x.device).view(3, 3, 3) / math.sqrt(2)
        return (x.unflatten(-1, (3, 3)).unsqueeze(-3) @ skew).flatten(-2).mT

    def metric_log_scale(self, x: Tensor) -> Tensor:
        return x.new_full(x.shape[:-1], -1.5 * math.log(2))  # a turn by 1 has Frobenius length sqrt(2)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        x, v = x.unflatten(-1, (3, 3)), v.unflatten(-1, (3, 3))
        skew = x.mT @ v
        angle = torch.linalg.matrix_norm(skew, keepdim=True) / math.sqrt(2)
        one, two = torch.sinc(angle / math.pi), 0.5 * torch.sinc(angle / (2 * math.pi)).square()
        return (x + x @ (one * skew + two * skew @ skew)).flatten(-2)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        angle = self.radii(x, y).unsqueeze(-1)
        x, turn = x.unflatten(-1, (3, 3)), x.unflatten(-1, (3, 3)).mT @ y.unflatten(-1, (3, 3))
        sinc = torch.sinc(angle / math.pi).clamp_min(torch.finfo(x.dtype).eps)
        return (x @ ((turn - turn.mT) / (2 * sinc))).flatten(-2)

    def radii(self, x: Tensor, y: Tensor) -> Tensor:
        turn = x.unflatten(-1, (3, 3)).mT @ y.unflatten(-1, (3, 3))
        sine = torch.linalg.matrix_norm(turn - turn.mT) / math.sqrt(8)
        return torch.atan2(sine, (turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).unsqueeze(-1)

    def uniform(self, shape=(), generator=None, like=None) -> Tensor:
        # Unit quaternions (w, x, y, z) that are uniform on S^3.
        w, *axis = normalize(normal_like(shape, 4, generator, like), dim=-1).unbind(-1)
        axis = torch.stack(axis, -1)
        skew = (axis @ torch.tensor(SKEW, dtype=axis.dtype, device=axis.device)).unflatten(-1, (3, 3))
        return (torch.eye(3).to(axis) + 2 * (w[..., None, None] * skew + skew @ skew)).flatten(-2)

    def _turns(self, like: Tensor, std: Tensor) -> Tensor:
        return full_turns(like, std)

    def _log_exp_volume(self, radius: Tensor, n: int) -> Tensor:
        return 2 * torch.sinc(radius / (2 * math.pi)).abs().clamp_min(torch.finfo(radius.dtype).tiny).log()
