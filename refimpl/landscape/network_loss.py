"""The loss of many parameter vectors of one network at once: what a path through the loss landscape is evaluated with.

A point of the landscape is the vector of all trainable parameters of a network. `NetworkLoss` maps a whole stack of such
points to losses in one vectorised pass, so that the pivots of a band cost one batched product a layer instead of a
Python loop over networks.

Buffers are not coordinates. Those of batch normalisation are a special case, because running statistics belong to one
set of weights: at any other point they are either replaced by the statistics of the batch at hand (for gradients),
estimated anew from training data (`batch_norm_statistics`), or given by the caller (for instance interpolated, to see
what goes wrong then).
"""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from refimpl._checks import check_sizes, check_tensor
from refimpl.nets import Stack

__all__ = ["NetworkLoss"]


class NetworkLoss:
    """Loss L(theta) of a network as a function of stacked parameter vectors theta, shape (points, dim).

    Calling it, ``loss(points, x, y)``, gives one loss a point, differentiable in ``points``. Batch normalisation uses
    the statistics of the batch ``x`` itself then, as in training; every other layer is in evaluation mode (no dropout),
    so that all points see the same function.

    Args:
        network: any module; its trainable parameters are the coordinates, in the order of ``named_parameters()``.
        loss_fn: maps (output, target) to the mean loss over the batch, such as ``F.cross_entropy``.
        chunk_size: points evaluated at once, to bound memory; None: all.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    Source: Draxler et al. 2018 (arXiv 1803.00885), Sec. 3; batch-norm statistics as in the code of Garipov et al. 2018
    (arXiv 1802.10026).

    >>> loss = NetworkLoss(nn.Linear(2, 1), nn.functional.mse_loss)
    >>> loss(torch.zeros(5, loss.dim), torch.ones(4, 2), torch.ones(4, 1))
    tensor([1., 1., 1., 1., 1.])
    """

    def __init__(self, network: nn.Module, loss_fn: Callable, *, chunk_size: int | None = None):
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: got {type(network).__name__}, expected a module")
        if not callable(loss_fn):
            raise TypeError(f"loss_fn: got {type(loss_fn).__name__}, expected a function of (output, target)")
        if chunk_size is not None:
            check_sizes(chunk_size=chunk_size)
        self._shapes = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
        if not self._shapes:
            raise ValueError("network: has no trainable parameter, expected at least one")
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self._original = copy.deepcopy(network).eval()
        # The norms of this one are switched to and fro.
        self._template = copy.deepcopy(self._original)
        self._norms = {
            name: module
            for name, module in self._template.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        self._buffers = {name for name, _ in self._template.named_buffers()}
        self._statistics = {f"{name}.{key}" for name in self._norms for key in ("running_mean", "running_var")}
        self.loss_fn, self.chunk_size = loss_fn, chunk_size
        #: Number of coordinates.
        self.dim = sum(self._sizes)

    @property
    def has_batch_norm(self) -> bool:
        """Whether a layer keeps running statistics."""
        return bool(self._norms)

    def vector(self, state: nn.Module | dict[str, Tensor]) -> Float[Tensor, "*points dim"]:
        """Coordinates of a network, (dim,), or of a `Stack`, (points, dim), from the module or from its state by name.

        Raises:
            ValueError: if a parameter is missing or has another shape.

        >>> NetworkLoss(nn.Linear(2, 1), nn.functional.mse_loss).vector(nn.Linear(2, 1)).shape
        torch.Size([3])
        """
        if isinstance(state, nn.Module):
            state = state.state() if isinstance(state, Stack) else dict(state.named_parameters())
        parts = []
        for name, shape in self._shapes.items():
            if name not in state or state[name].shape[state[name].ndim - len(shape) :] != shape:
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(
                    f"state: got {got} for {name!r}, expected shape (*points, {', '.join(map(str, shape))})"
                )
            value = state[name].detach()
            parts.append(value.reshape(*value.shape[: value.ndim - len(shape)], -1))
        return torch.cat(parts, dim=-1)

    def state(self, points: Float[Tensor, "*points dim"]) -> dict[str, Tensor]:
        """Named parameters, each of shape (*points, ...): the inverse of `vector`."""
        self._check_points(points, batched=False)
        parts = points.split(self._sizes, dim=-1)
        return {
            name: part.reshape((*points.shape[:-1], *shape))
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def network(self, point: Float[Tensor, " dim"], buffers: dict[str, Tensor] | None = None) -> nn.Module:
        """A copy of the network, in evaluation mode, with these parameters (and these buffers, one network's)."""
        check_tensor("point", point, f"({self.dim},)")
        network = copy.deepcopy(self._original).to(point)
        # By name, because a state dict lists a shared parameter under all of its names.
        targets = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        with torch.no_grad():
            for name, value in {**self.state(point), **(buffers or {})}.items():
                if name not in targets or value.shape != targets[name].shape:
                    raise ValueError(
                        f"buffers: got {name!r} of shape {tuple(value.shape)}, expected those of one network"
                    )
                targets[name].copy_(value)
        return network

    def __call__(
        self, points: Float[Tensor, "points dim"], x: Shaped[Tensor, "batch ..."], y: Shaped[Tensor, "batch ..."]
    ) -> Float[Tensor, " points"]:
        return vmap(self.loss_fn, in_dims=(0, None))(self.outputs(points, x), y)

    def outputs(
        self,
        points: Float[Tensor, "points dim"],
        x: Shaped[Tensor, "batch ..."],
        buffers: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "points batch ..."]:
        """Outputs of the network at every point.

        Args:
            points: parameter vectors.
            x: inputs, the same for all points.
            buffers: stacked running statistics, as `batch_norm_statistics` gives them; None: batch normalisation uses
                the statistics of ``x``.
        """
        self._check_points(points)
        if buffers is not None:
            self._check_buffers(points, buffers)
        for module in self._norms.values():
            module.train(buffers is None)
            module.track_running_stats = buffers is not None
        return self._forward({**self.state(points), **(buffers or {})}, x)

    def batch_norm_statistics(
        self, points: Float[Tensor, "points dim"], x: Shaped[Tensor, "n ..."], batch_size: int | None = None
    ) -> dict[str, Tensor]:
        """Running means and variances of every batch-norm layer at every point, estimated anew from data.

        One pass over ``x`` in batches of ``batch_size`` (None: all at once), with cumulative averages. Empty if the
        network keeps no such statistics.
        """
        self._check_points(points)
        if batch_size is not None:
            check_sizes(batch_size=batch_size)
        shapes = {name: value.shape for name, value in self._template.named_buffers() if name in self._statistics}
        buffers = {name: points.new_zeros(len(points), *shape) for name, shape in shapes.items()}
        if not buffers:
            return {}
        state = self.state(points.detach())
        with torch.no_grad():
            for count, batch in enumerate(x.split(batch_size or len(x)), start=1):
                for module in self._norms.values():
                    module.train()
                    module.track_running_stats, module.momentum = True, 1.0
                fresh = {name: value.clone() for name, value in buffers.items()}
                self._forward({**state, **fresh}, batch)
                for name, value in buffers.items():  # the mean over the batches seen so far
                    value += (fresh[name] - value) / count
        return buffers

    def evaluate(
        self,
        points: Float[Tensor, "points dim"],
        x: Shaped[Tensor, "n ..."],
        y: Shaped[Tensor, " n ..."],
        buffers: dict[str, Tensor] | None = None,
        batch_size: int | None = None,
    ) -> dict[str, Float[Tensor, " points"]]:
        """Mean loss over a data set at every point and, if ``y`` are class numbers, the fraction of errors.

        Args:
            points: parameter vectors.
            x, y: the data set.
            buffers: statistics for batch normalisation; needed if the network has it.
            batch_size: samples at once, to bound memory; None: all.

        Raises:
            ValueError: if the network has batch normalisation and no ``buffers`` came: statistics of the data that are
                being judged would flatter the network.
        """
        if self.has_batch_norm and buffers is None:
            raise ValueError(
                "buffers: got None, expected statistics, such as batch_norm_statistics(points, training_x)"
            )
        if batch_size is not None:
            check_sizes(batch_size=batch_size)
        classes = not y.is_floating_point() and y.ndim == 1
        total = {"loss": 0.0, "error": 0.0} if classes else {"loss": 0.0}
        size = batch_size or len(x)
        with torch.no_grad():
            for xb, yb in zip(x.split(size), y.split(size), strict=True):
                outputs = self.outputs(points, xb, buffers)
                total["loss"] += vmap(self.loss_fn, in_dims=(0, None))(outputs, yb) * (len(xb) / len(x))
                if classes:
                    total["error"] += (outputs.argmax(-1) != yb).sum(-1).to(outputs) / len(x)
        return total

    def _forward(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        if x.device != next(self._template.parameters()).device:  # not inside a transform, which must not move modules
            self._template.to(x.device)
        call = vmap(lambda s: functional_call(self._template, s, (x,)), chunk_size=self.chunk_size)
        return call(state)

    def _check_buffers(self, points: Tensor, buffers: dict[str, Tensor]) -> None:
        missing, unknown = self._statistics - set(buffers), set(buffers) - self._buffers
        if missing or unknown:
            raise ValueError(f"buffers: got {sorted(buffers)}, expected {sorted(self._statistics)}")
        for name, value in buffers.items():
            if value.shape[:1] != points.shape[:1]:
                raise ValueError(f"buffers: got shape {tuple(value.shape)} for {name!r}, expected ({len(points)}, ...)")

    def _check_points(self, points: Tensor, batched: bool = True) -> None:
        if not isinstance(points, Tensor) or not points.is_floating_point():
            raise TypeError(f"points: got {getattr(points, 'dtype', type(points).__name__)}, expected a float tensor")
        if points.shape[-1:] != (self.dim,) or (batched and points.ndim != 2):
            raise ValueError(f"points: got shape {tuple(points.shape)}, expected (points, {self.dim})")
