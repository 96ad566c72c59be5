"""Networks that others trained, as a `DiffusionModel`: from diffusers, or in the format of guided-diffusion (ADM).

Both count noise levels from 0 where `DDPM` counts from 1, so they get t - 1, and both want images (batch, channels,
height, width) in [-1, 1] where everything here works on rows of pixels in [-1, 1]. Nothing is downloaded: you build the
network with its own library and read its weights from a file.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from refimpl._checks import check_tensor, image_shape
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.process import DDPM

__all__ = ["LevelTable", "from_adm", "from_diffusers", "load_weights"]

KINDS = {"epsilon": "noise", "v_prediction": "v", "sample": "data"}  # what diffusers calls them


class LevelTable(DDPM):
    """The chain of DDPM with any noise levels: a^2 at t = 1, 2, ... as given, and t = 0 is the data.

    Args:
        alpha_bar: a^2 of each level, shape (levels,), falling, in (0, 1).

    >>> LevelTable(torch.tensor([0.9, 0.5])).coefficients(torch.tensor(2.0))
    (tensor(0.7071), tensor(0.7071))
    """

    def __init__(self, alpha_bar: Float[Tensor, " levels"]):
        check_tensor("alpha_bar", alpha_bar, "(levels,)")
        alpha_bar = alpha_bar.double()
        falling = (alpha_bar.diff(prepend=alpha_bar.new_ones(1)) < 0).all()
        if len(alpha_bar) == 0 or not falling or alpha_bar[-1] <= 0:
            raise ValueError("alpha_bar: expected falling numbers in (0, 1), with little noise first")
        self.num_levels, self.noise_time = len(alpha_bar), float(len(alpha_bar))
        self.log_alpha_bar = torch.cat([alpha_bar.new_zeros(1), alpha_bar.log()])


class _Rows(nn.Module):
    """A network of images and levels 0, 1, ..., as one of rows and times 1, 2, ..., in whatever dtype it was trained."""

    def __init__(self, network: Callable, shape: tuple[int, int, int]):
        super().__init__()
        if not callable(network):
            raise TypeError(f"network: got {type(network).__name__}, expected a function of (images, levels)")
        self.network, self.shape = network, shape
        weights = list(network.parameters()) if isinstance(network, nn.Module) else []
        self.dtype = weights[0].dtype if weights else None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if x.shape[-1] != math.prod(self.shape):
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected rows of {math.prod(self.shape)} pixels")
        images = x.reshape(-1, *self.shape).to(self.dtype or x.dtype)
        level = t.expand(*x.shape[:-1], 1).reshape(-1).round().long() - 1
        out = self.network(images, level)
        out = out if isinstance(out, Tensor) else out.sample
        channels = self.shape[0]
        if out.shape[1:] not in ((channels, *self.shape[1:]), (2 * channels, *self.shape[1:])):
            raise ValueError(
                f"network: returned shape {tuple(out.shape)}, expected {channels} channels (or {2 * channels}, of which "
                f"the second half says the variance) of {self.shape[1]} x {self.shape[2]} pixels"
            )
        return out[:, :channels].reshape(x.shape).to(x)


def from_diffusers(
    network: Callable,
    scheduler: Any,
    *,
    shape: Sequence[int] | None = None,
    predicts: str | None = None,
) -> DiffusionModel:
    """A network of the library diffusers, such as `UNet2DModel`, without class labels.

    Args:
        network: called as network(images, levels), returning images or an object whose `sample` they are.
        scheduler: what it was trained with; only its `alphas_cumprod` and `config.prediction_type` are read, so
            it does not matter which sampler it belongs to. Or the betas of all levels, as a tensor.
        shape: (channels, height, width); what the network's `config` says if None.
        predicts: one of the kinds of `DiffusionModel`; what the scheduler says if None, or else "noise".

    Raises:
        ValueError, TypeError: if the scheduler has no noise levels, or names an unknown kind of prediction.
    """
    if isinstance(scheduler, Tensor):
        alpha_bar, named = (1 - scheduler.double()).cumprod(0), "epsilon"
    elif isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        alpha_bar, named = scheduler.alphas_cumprod, scheduler.config.prediction_type
    else:
        raise TypeError(f"scheduler: got {type(scheduler).__name__}, expected one with alphas_cumprod, or betas")
    if predicts is None and named not in KINDS:
        raise ValueError(f"scheduler: its network predicts {named!r}, expected one of {tuple(KINDS)}")
    if shape is None:
        size = network.config.sample_size
        shape = (network.config.in_channels, *((size, size) if isinstance(size, int) else size))
    return DiffusionModel(_Rows(network, image_shape(shape)), LevelTable(alpha_bar), predicts or KINDS[named])


def from_adm(network: Callable, shape: Sequence[int], *, process: DDPM | None = None) -> DiffusionModel:
    """A network in the format of guided-diffusion: noise in the first channels, and variances in as many more, if any.

    The variances are not used: samplers here choose their own.

    Args:
        network: called as network(images, levels).
        shape: (channels, height, width).
        process: `DDPM()`, the linear schedule with 1000 levels, if None.

    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233).
    """
    return DiffusionModel(_Rows(network, image_shape(shape)), DDPM() if process is None else process, "noise")


def load_weights(
    network: nn.Module, path: str | Path, *, sha256: str | None = None, address: str | None = None
) -> nn.Module:
    """Fills a network from a file of its state (safetensors, or PyTorch's format without pickled code), and returns it.

    Args:
        network: of the same architecture; put in eval mode, and its parameters need no gradient afterwards.
        path: the file.
        sha256: checksum, verified before anything is read; not verified if None.
        address: where to get the file, for the message if it is missing.

    Raises:
        FileNotFoundError: if there is no such file; it says what to put where.
        ValueError: if the file is damaged or another one, or its parameters are not the network's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put {address or 'the weights of this network'} there")
    if sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise ValueError(f"{path}: got a file with SHA-256 {digest}, expected {sha256}; download it again")
    safe = path.suffix == ".safetensors"
    state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: its parameters are not those of the network: {error}") from error
    return network.eval().requires_grad_(False)
