"""Derivatives of batched maps: Jacobian, products with it, log-determinant and trace, exact and estimated.

Every function takes a map `f` that acts on batches: `f(x)` has the batch dimensions of `x` first and features last,
and treats the samples **independently**, so that row i of the output depends on row i of the input only (no batch
normalisation in training mode). A map may close over tensors of the same batch, such as a context or a time per
sample, because `f` is always called with the whole batch.

All results are differentiable, in `x` and in the parameters of `f`, so that they can stand in a loss.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = [
    "hessian_vector_product",
    "jacobian",
    "jvp",
    "log_det_jacobian",
    "probe_vectors",
    "trace_estimate",
    "trace_jacobian",
    "vjp",
]

KINDS = ("rademacher", "gaussian", "sphere", "orthogonal")


def _check_point(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one feature in its last dimension, got shape {tuple(x.shape)}")


def _check_image(x: Tensor, y: Tensor, square: bool = False) -> None:
    if not isinstance(y, Tensor) or y.shape[:-1] != x.shape[:-1] or y.ndim != x.ndim:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"f must map shape {tuple(x.shape)} to {(*x.shape[:-1], 'dim_out')}, got {got}")
    if square and y.shape[-1] != x.shape[-1]:
        raise ValueError(f"f must keep the number of features ({x.shape[-1]}) for this, got {y.shape[-1]}")


def _check_vector(v: Tensor, like: Tensor, of: str) -> None:
    if not isinstance(v, Tensor) or v.shape != like.shape or v.dtype != like.dtype:
        got = f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
        raise ValueError(f"v must have dtype and shape of {of}, {like.dtype} {tuple(like.shape)}, got {got}")


@functools.cache
def _load_forward_rules() -> None:
    """The first use of forward mode loads rules that still need the deprecated torch.jit, and warns of it."""
    with warnings.catch_warnings(), torch.autograd.forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.autograd.forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def _pushforward(f: Callable, x: Any, v: Any) -> tuple[Any, Any]:
    """f(x) and J v at x."""
    _load_forward_rules()
    return torch.func.jvp(f, (x,), (v,))


def _pullback(f: Callable, x: Tensor, square: bool = False) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """f(x), and the map v -> v^T J at x."""
    _check_point("x", x)
    y, pull = torch.func.vjp(f, x)
    _check_image(x, y, square)
    return y, lambda v: pull(v)[0]


def jvp(f: Callable, x: Shaped[Tensor, "*batch dim"], v: Shaped[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """Exact product J v of each sample's Jacobian with its vector (forward mode, one pass).

    Args:
        f: map from (*batch, dim) to (*batch, dim_out).
        x: points, shape (*batch, dim).
        v: one vector a sample, shape (*batch, dim).
    Returns: f(x) and J v, both (*batch, dim_out).
    Raises: TypeError, ValueError: if `x` is not floating-point or empty, `v` does not match, or `f` changes the batch.

    >>> jvp(torch.square, torch.tensor([3.0]), torch.tensor([1.0]))
    (tensor([9.]), tensor([6.]))
    """
    _check_point("x", x)
    _check_vector(v, x, "x")
    y, product = _pushforward(f, x, v)
    _check_image(x, y)
    return y, product


def vjp(
    f: Callable, x: Shaped[Tensor, "*batch dim"], v: Shaped[Tensor, "..."]
) -> tuple[Tensor, Float[Tensor, "*batch dim"]]:
    """Exact product v^T J of each sample's vector with its Jacobian (reverse mode, one pass).

    Args:
        f: map from (*batch, dim) to (*batch, dim_out).
        x: points, shape (*batch, dim).
        v: one vector a sample, shape (*batch, dim_out).
    Returns: f(x), shape (*batch, dim_out), and v^T J, shape (*batch, dim).
    Raises: TypeError, ValueError: if `x` is not floating-point or empty, `v` does not match, or `f` changes the batch.

    >>> vjp(torch.square, torch.tensor([3.0]), torch.tensor([1.0]))
    (tensor([9.]), tensor([6.]))
    """
    y, pull = _pullback(f, x)
    _check_vector(v, y, "f(x)")
    return y, pull(v)


def jacobian(
    f: Callable, x: Shaped[Tensor, "*batch dim"], mode: str = "reverse"
) -> Float[Tensor, "*batch dim_out dim"]:
    """Exact Jacobian of every sample, J[..., i, j] = d f_i / d x_j.

    One vectorised pass per output feature (`mode="reverse"`) or per input feature (`"forward"`).

    Args:
        f: map from (*batch, dim) to (*batch, dim_out).
        x: points, shape (*batch, dim).
        mode: "reverse" or "forward".
    Returns: Jacobians, shape (*batch, dim_out, dim).
    Raises: TypeError, ValueError: if `x` is not floating-point or empty, `mode` is unknown, or `f` changes the batch.

    >>> jacobian(lambda x: x.flip(-1) * torch.tensor([2.0, 3.0]), torch.ones(2))
    tensor([[0., 2.],
            [3., 0.]])
    """
    if mode not in ("reverse", "forward"):
        raise ValueError(f"mode must be 'reverse' or 'forward', got {mode!r}")
    if mode == "reverse":
        y, pull = _pullback(f, x)
        return _along_axes(pull, y).movedim(0, -2)
    _check_point("x", x)
    columns = _along_axes(lambda v: _pushforward(f, x, v)[1], x)
    _check_image(x, columns[0])
    return columns.movedim(0, -1)


def _along_axes(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """product(e_i) for every unit vector e_i of the features of `like`, stacked in front."""
    dim = like.shape[-1]
    axes = torch.eye(dim, dtype=like.dtype, device=like.device).view(dim, *[1] * (like.ndim - 1), dim)
    # Random layers of f must draw the same numbers for every column of one Jacobian.
    return torch.vmap(product, randomness="same")(axes.expand(dim, *like.shape))


def log_det_jacobian(f: Callable, x: Shaped[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Exact log|det J| of every sample; -inf where J is singular. Costs dim passes and O(dim^3).

    Args:
        f: map from (*batch, dim) to (*batch, dim).
        x: points, shape (*batch, dim).
    Returns: log|det J|, natural logarithm, shape (*batch,).
    Raises: TypeError, ValueError: if `x` is not floating-point or empty, or `f` changes its shape.

    >>> log_det_jacobian(torch.exp, torch.tensor([[1.0, 2.0]]))
    tensor([3.])
    """
    y, pull = _pullback(f, x, square=True)
    return torch.linalg.slogdet(_along_axes(pull, y).movedim(0, -2)).logabsdet


def trace_jacobian(f: Callable, x: Shaped[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Exact trace of every sample's Jacobian (the divergence of f). Costs dim passes.

    Args:
        f: map from (*batch, dim) to (*batch, dim).
        x: points, shape (*batch, dim).
    Returns: tr J, shape (*batch,).
    Raises: TypeError, ValueError: if `x` is not floating-point or empty, or `f` changes its shape.

    >>> trace_jacobian(torch.square, torch.tensor([[1.0, 2.0]]))
    tensor([6.])
    """
    y, pull = _pullback(f, x, square=True)
    return _along_axes(pull, y).diagonal(dim1=0, dim2=-1).sum(-1)


def probe_vectors(
    like: Shaped[Tensor, "*batch dim"],
    num_probes: int = 1,
    kind: str = "rademacher",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "{num_probes} *batch dim"]:
    """Random vectors v with E[v v^T] = I, so that E[v^T A v] = tr A for every matrix A.

    "rademacher": independent signs; "gaussian": standard normal; "sphere": uniform on the sphere of radius sqrt(dim);
    "orthogonal": as "sphere", but the probes of one sample are at right angles to each other (num_probes <= dim).

    Args:
        like: tensor, shape (*batch, dim), whose shape, dtype and device one probe takes.
        num_probes: how many probes a sample.
        kind: one of the four above.
        generator: draws on its own device, so that a seed gives the same probes everywhere; torch's global one if None.
    Returns: Probes, shape (num_probes, *batch, dim).
    Raises: TypeError, ValueError: if `like`, `kind` or `num_probes` do not fit.

    >>> probe_vectors(torch.zeros(5, 3), num_probes=2).abs().unique()
    tensor([1.])
    """
    _check_point("like", like)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    dim = like.shape[-1]
    if num_probes < 1 or (kind == "orthogonal" and num_probes > dim):
        raise ValueError(f"num_probes must be at least 1, and at most dim={dim} if orthogonal, got {num_probes}")
    v = torch.empty((num_probes, *like.shape), dtype=like.dtype, device=generator.device if generator else like.device)
    if kind == "rademacher":
        v = v.bernoulli_(generator=generator) * 2 - 1
    else:
        v.normal_(generator=generator)
    if kind == "sphere":
        v = v * (math.sqrt(dim) / torch.linalg.vector_norm(v, dim=-1, keepdim=True))
    elif kind == "orthogonal":
        q, r = torch.linalg.qr(v.movedim(0, -1))
        # Without the signs of R's diagonal the frame is not uniform over all frames.
        v = (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).movedim(-1, 0) * math.sqrt(dim)
    return v.to(like.device)


def trace_estimate(
    f: Callable,
    x: Shaped[Tensor, "*batch dim"],
    num_probes: int = 1,
    kind: str = "rademacher",
    generator: torch.Generator | None = None,
    probes: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch"]:
    """Unbiased estimate of the trace of every sample's Jacobian: the mean of v^T J v over random probes v.

    With S = (J + J^T) / 2 the variance of the mean over k probes is, by `kind`,

        rademacher   2/k sum_{i != j} S_ij^2
        gaussian     2/k ||S||_F^2
        sphere       2/k dim/(dim + 2) (||S||_F^2 - (tr S)^2 / dim)
        orthogonal   that of sphere times (dim - k) / (dim - 1): exact at k = dim

    so signs win where S is nearly diagonal, the sphere where S is nearly a multiple of the identity.

    Args:
        f: map from (*batch, dim) to (*batch, dim).
        x: points, shape (*batch, dim).
        num_probes: probes a sample; one forward pass and `num_probes` vectorised backward passes.
        kind: distribution of the probes, see `probe_vectors`.
        generator: source of the random numbers; torch's global one if None.
        probes: use these, shape (num_probes, *batch, dim), instead of drawing; an ODE solver needs the same ones at
            every stage.
    Returns: Estimate of tr J, shape (*batch,).
    Raises: TypeError, ValueError: if `x`, `kind`, `num_probes` or `probes` do not fit, or `f` changes the shape.
    Source: Hutchinson 1990 (Communications in Statistics 19(2)); Girard 1989 for Gaussian probes.

    >>> trace_estimate(lambda x: 2 * x, torch.zeros(1, 5))
    tensor([10.])
    """
    _, pull = _pullback(f, x, square=True)
    if probes is None:
        probes = probe_vectors(x, num_probes, kind, generator)
    elif probes.shape[1:] != x.shape or probes.dtype != x.dtype or len(probes) == 0:
        want, got = f"{x.dtype} {('num_probes', *x.shape)}", f"{probes.dtype} {tuple(probes.shape)}"
        raise ValueError(f"probes must have dtype and shape {want}, got {got}")
    return (torch.vmap(pull)(probes) * probes).sum(-1).mean(0)


def hessian_vector_product(loss: Callable, x: Tensor | dict, v: Tensor | dict) -> Tensor | dict:
    """Exact product H v of the Hessian of a scalar function with a vector, without forming H.

    Args:
        loss: map from `x` to a scalar.
        x: a tensor of any shape, or a dict of tensors (such as a network's parameters).
        v: the vector, of the same keys and shapes as `x`.
    Returns: H v, built like `x`.
    Raises: ValueError: if `v` does not match `x`, or `loss` is not scalar.
    Source: Pearlmutter 1994 (Neural Computation 6(1)); here forward mode over reverse mode.

    >>> hessian_vector_product(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """
    if isinstance(x, dict):
        if not isinstance(v, dict) or v.keys() != x.keys():
            raise ValueError(f"v must be a dict with the keys of x, {list(x)}, got {list(v)}")
        for name in x:
            _check_vector(v[name], x[name], f"x[{name!r}]")
    else:
        _check_vector(v, x, "x")

    def scalar(at: Tensor | dict) -> Tensor:
        value = loss(at)
        if not isinstance(value, Tensor) or value.ndim:
            raise ValueError(f"loss must return a scalar tensor, got {getattr(value, 'shape', type(value).__name__)}")
        return value

    return _pushforward(torch.func.grad(scalar), x, v)[1]
