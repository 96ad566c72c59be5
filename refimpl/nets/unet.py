"""A U-Net that sees an image and a time: the network of image diffusion, with images as rows outside."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from refimpl._checks import check_positive, check_sizes, image_shape

__all__ = ["UNet", "unet"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _zero(layer: nn.Module) -> nn.Module:
    """Starts at zero, so that what it ends starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class _Block(nn.Module):
    """Residual block of two convolutions; the time scales and shifts the features between them."""

    def __init__(self, channels_in: int, channels: int, features: int):
        super().__init__()
        self.first = nn.Sequential(_norm(channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels, 3, padding=1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(features, 2 * channels))
        self.norm = _norm(channels)
        self.second = nn.Sequential(nn.SiLU(), _zero(nn.Conv2d(channels, channels, 3, padding=1)))
        self.shortcut = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        return self.shortcut(x) + self.second(self.norm(self.first(x)) * (1 + scale) + shift)


class _Attention(nn.Module):
    """Every pixel looks at all others; heads of up to 64 channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = max(1, channels // 64)
        self.norm, self.queries = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.last = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        q, k, v = self.queries(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).mT.unbind(1)
        return x + self.last(scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class _Stage(nn.Sequential):
    """Blocks and attention in turn, all of which see the time."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time)
        return x


class _Resample(nn.Sequential):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x)


class UNet(nn.Module):
    """(x, t, context) -> features of the shape of x; made by `unet`.

    On the way down each stage leaves its features; on the way up the stage of the same size takes them. Time enters as
    cosines and sines of 1000 t / time_scale with wavelengths from 2 pi to 20,000 pi, context beside them.
    """

    def __init__(
        self, shape: tuple, widths: list[int], blocks: int, attention: Sequence[int], dim_context: int, scale: float
    ):
        super().__init__()
        channels, height, width = shape
        features = 4 * widths[0]
        self.shape, self.dim_context, self.time_scale = shape, dim_context, scale
        self.register_buffer("waves", torch.logspace(0, -4, widths[0] // 2), persistent=False)
        self.time = nn.Sequential(
            nn.Linear(2 * len(self.waves) + dim_context, features), nn.SiLU(), nn.Linear(features, features)
        )

        def stage(channels_in: int, channels: int, size: int) -> _Stage:
            block = _Block(channels_in, channels, features)
            return _Stage(block, _Attention(channels)) if size in attention else _Stage(block)

        self.first, self.down, self.up = nn.Conv2d(channels, widths[0], 3, padding=1), nn.ModuleList(), nn.ModuleList()
        left, now, size = [widths[0]], widths[0], min(height, width)
        for level, c in enumerate(widths):
            if level:
                self.down.append(_Resample(nn.Conv2d(now, now, 3, stride=2, padding=1)))
                left.append(now)
                size //= 2
            for _ in range(blocks):
                self.down.append(stage(now, c, size))
                left.append(now := c)
        self.middle = _Stage(_Block(now, now, features), _Attention(now), _Block(now, now, features))
        for level, c in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(now + left.pop(), c, size))
                now = c
            if level:
                self.up.append(_Resample(nn.Upsample(scale_factor=2), nn.Conv2d(now, now, 3, padding=1)))
                size *= 2
        self.last = nn.Sequential(_norm(now), nn.SiLU(), _zero(nn.Conv2d(now, channels, 3, padding=1)))

    def forward(
        self,
        x: Float[Tensor, "*batch dim"],
        t: Float[Tensor, "..."],
        context: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch dim"]:
        """t, of shape (*batch, 1), and context are spread over the batch of x.

        Raises:
            ValueError: if x, t or the context has another number of features than it should.
        """
        have = 0 if context is None else context.shape[-1]
        wanted = {"x": (x.shape[-1], math.prod(self.shape)), "t": (t.shape[-1] if t.ndim else 0, 1)}
        for name, (got, expected) in (wanted | {"context": (have, self.dim_context)}).items():
            if got != expected:
                raise ValueError(f"{name}: got {got} features, expected {expected}")
        angle = 1000 / self.time_scale * t.expand(*x.shape[:-1], 1) * self.waves
        seen = [angle.cos(), angle.sin()] + ([] if context is None else [context.expand(*x.shape[:-1], have)])
        seen = torch.cat(seen, -1)
        time = self.time(seen.reshape(-1, seen.shape[-1]))
        images = self.first(x.reshape(-1, *self.shape))
        left = [images]
        for layer in self.down:
            left.append(images := layer(images, time))
        images = self.middle(images, time)
        for layer in self.up:
            images = layer(images if isinstance(layer, _Resample) else torch.cat([images, left.pop()], 1), time)
        return self.last(images).reshape(x.shape)


def unet(
    shape: Sequence[int],
    *,
    width: int = 64,
    multipliers: Sequence[int] = (1, 2, 2),
    blocks: int = 2,
    attention: Sequence[int] = (16,),
    dim_context: int = 0,
    time_scale: float | int = 1.0,
) -> UNet:
    """U-Net of an image, a time and a context, exactly zero before training.

    Args:
        shape: (height, width) or (channels, height, width) of the images, which come as rows.
        width: channels of the finest stage, even.
        multipliers: channels of each stage, in multiples of `width`; every stage after the first halves the image.
        blocks: residual blocks a stage on the way down; one more on the way up.
        attention: sizes (smaller side, in pixels) of the stages with attention; the coarsest point has it anyway.
        dim_context: number of features of the context; 0 for none.
        time_scale: times are divided by it, for processes whose clock does not run through a range of about 1.

    Raises:
        ValueError: if a number is no whole number >= 1 (>= 0 for `dim_context`), `width` is odd, `time_scale` is not
            positive, or the image cannot be halved so often.

    Source: Ho et al. 2020 (arXiv 2006.11239), Appendix B; Dhariwal and Nichol 2021 (arXiv 2105.05233), Section 3.

    >>> net = unet((3, 32, 32), width=32)
    >>> net(torch.zeros(2, 3 * 32 * 32), torch.rand(2, 1)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([2, 3072]), 1744035)
    """
    channels, height, across = image_shape(shape)
    check_sizes(width=width, blocks=blocks)
    check_positive("time_scale", time_scale)
    if dim_context != 0:
        check_sizes(dim_context=dim_context)
    for name, numbers in (("multipliers", multipliers), ("attention", attention)):
        if not isinstance(numbers, Sequence) or (name == "multipliers" and len(numbers) == 0):
            raise ValueError(f"{name}: got {numbers!r}, expected a list of whole numbers")
        check_sizes(**{f"{name}[{i}]": n for i, n in enumerate(numbers)})
    if width % 2:
        raise ValueError(f"width: got {width}, expected an even number")
    divisor = 2 ** (len(multipliers) - 1)
    if height % divisor or across % divisor:
        raise ValueError(f"shape: got {tuple(shape)}, expected multiples of {divisor} for {len(multipliers)} stages")
    widths = [width * m for m in multipliers]
    return UNet((channels, height, across), widths, blocks, attention, dim_context, time_scale)
