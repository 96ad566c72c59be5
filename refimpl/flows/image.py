"""Flows of images: several scales, invertible 1x1 convolutions, and couplings whose networks are convolutional."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_sizes
from refimpl.flows.bijection import Bijection, Chain, Pair, check_bijection
from refimpl.flows.conditioners import check_context, join, zero_last
from refimpl.flows.coupling import Coupling
from refimpl.flows.elementwise import AffineMap, ElementwiseMap
from refimpl.flows.linear import ActNorm, InvertibleLinear

__all__ = [
    "ConvConditioner",
    "MultiScale",
    "Squeeze",
    "depth_to_space",
    "glow",
    "glow_step",
    "realnvp_image",
    "space_to_depth",
]


def space_to_depth(
    x: Float[Tensor, "*batch channels rows columns"], factor: int
) -> Float[Tensor, "*batch channels_out rows_out columns_out"]:
    """Each factor x factor block of pixels becomes the channels of one pixel; `F.pixel_unshuffle`, empty batches too.

    Raises:
        ValueError: if `x` is no image, or its sides are no multiples of `factor`.
    """
    if x.ndim < 3:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*batch, channels, rows, columns)")
    rows, columns = x.shape[-2:]
    if rows % factor or columns % factor:
        raise ValueError(f"x: got {rows} x {columns} pixels, expected multiples of {factor}")
    blocks = x.unflatten(-1, (columns // factor, factor)).unflatten(-3, (rows // factor, factor))
    return blocks.movedim((-3, -1), (-4, -3)).flatten(-5, -3)


def depth_to_space(
    x: Float[Tensor, "*batch channels rows columns"], factor: int
) -> Float[Tensor, "*batch channels_out rows_out columns_out"]:
    """The inverse of `space_to_depth`."""
    if x.shape[-3] % factor**2:
        raise ValueError(f"x: got {x.shape[-3]} channels, expected a multiple of {factor**2}")
    blocks = x.unflatten(-3, (x.shape[-3] // factor**2, factor, factor))
    return blocks.movedim((-4, -3), (-3, -1)).flatten(-2).flatten(-3, -2)


class Squeeze(Bijection):
    """Space to depth: (channels, rows, columns) -> (4 channels, rows / 2, columns / 2); keeps volumes.

    Unlike other bijections it changes the shape of an event, so that a `Flow`, whose base has the shape of the data,
    cannot use it alone: undo it within the same `Chain` by `Inverse(Squeeze())`, or take `MultiScale`.

    Source: Dinh, Sohl-Dickstein, Bengio 2017 (arXiv 1605.08803), Sec. 3.6.
    """

    event_ndim = 3

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return space_to_depth(x, 2), self.zeros(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return depth_to_space(z, 2), self.zeros(z)


class MultiScale(Bijection):
    """Squeeze, transform, hand half of the channels on to the next scale; the other half is final.

    The final half is put back in its place, so that the latent has the shape of the image and a `StandardNormal` of
    that shape counts every piece: to forget the pieces factored out is the commonest bug of such a likelihood.

    Args:
        scale: bijection of images of 4 channels, rows / 2 and columns / 2.
        rest: bijection of images of 2 channels, rows / 2, columns / 2, perhaps a `MultiScale` again; None ends here.

    Source: Dinh, Sohl-Dickstein, Bengio 2017 (arXiv 1605.08803), Sec. 3.6.
    """

    event_ndim = 3

    def __init__(self, scale: Bijection, rest: Bijection | None = None):
        super().__init__()
        check_bijection("scale", scale)
        if rest is not None:
            check_bijection("rest", rest)
        self.scale, self.rest = scale, rest

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, log_det = self.scale(space_to_depth(x, 2), context)
        if self.rest is not None:
            kept, final = z.chunk(2, -3)
            kept, log_det_rest = self.rest(kept, context)
            z, log_det = torch.cat([kept, final], -3), log_det + log_det_rest
        return depth_to_space(z, 2), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        z, log_det_rest = space_to_depth(z, 2), 0
        if self.rest is not None:
            kept, final = z.chunk(2, -3)
            kept, log_det_rest = self.rest.inverse(kept, context)
            z = torch.cat([kept, final], -3)
        x, log_det = self.scale.inverse(z, context)
        return depth_to_space(x, 2), log_det + log_det_rest


class ConvConditioner(nn.Module):
    """Convolutions 3x3, 1x1, 3x3 of (passive channels, context); the last one starts at zero.

    Args:
        channels_in: passive channels.
        channels_out: raw parameters a pixel.
        width: channels of the hidden layers.
        activation: makes the module between two layers.
        dim_context: features of the context, seen by every pixel; 0 for none.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        width: int = 64,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dim_context: int = 0,
    ):
        super().__init__()
        check_sizes(channels_in=channels_in, channels_out=channels_out, width=width)
        self.dim_context = dim_context
        self.net = zero_last(
            nn.Sequential(
                nn.Conv2d(channels_in + dim_context, width, 3, padding=1),
                activation(),
                nn.Conv2d(width, width, 1),
                activation(),
                nn.Conv2d(width, channels_out, 3, padding=1),
            )
        )

    def forward(self, passive: Tensor, context: Tensor | None = None) -> Tensor:
        """Raw parameters, shape (*batch, channels_out, rows, columns)."""
        if self.dim_context:
            check_context(context, passive.shape[:-3], self.dim_context)
        pixel_context = None if context is None else context[..., None, None, :]
        x = join(passive.movedim(-3, -1), pixel_context, self.dim_context).movedim(-1, -3)
        params = self.net(x.reshape(-1, *x.shape[-3:]))
        return params.reshape(*x.shape[:-3], *params.shape[1:])


def _channel_coupling(channels: int, tau: ElementwiseMap, swap: bool, **settings) -> Coupling:
    def net(channels_in: int, channels_out: int) -> ConvConditioner:
        return ConvConditioner(channels_in, channels_out, **settings)

    return Coupling(channels, tau, net, swap=swap, event_ndim=3)


def glow_step(
    channels: int,
    tau: ElementwiseMap | None = None,
    *,
    swap: bool = False,
    generator: torch.Generator | None = None,
    **settings,
) -> Chain:
    """ActNorm, invertible 1x1 convolution, coupling of channels.

    Args:
        channels: at least 2.
        tau: elementwise map of the coupling; Glow's `AffineMap(gate="sigmoid")` if None.
        swap: which half of the channels is active.
        generator: source of the convolution's initial rotation; torch's global one if None.
        **settings: of `ConvConditioner`: width, activation, dim_context.

    Source: Kingma, Dhariwal 2018 (arXiv 1807.03039), Sec. 3.
    """
    coupling = _channel_coupling(channels, tau or AffineMap(gate="sigmoid"), swap, **settings)
    return Chain(ActNorm(channels, 3), InvertibleLinear(channels, 3, generator), coupling)


def _scales(channels: int, size: int, num_scales: int, make: Callable[[int], Bijection]) -> MultiScale:
    check_sizes(channels=channels, size=size, num_scales=num_scales)
    if size % 2**num_scales:
        raise ValueError(f"size: got {size}, expected a multiple of 2^num_scales = {2**num_scales}")
    rest = _scales(2 * channels, size // 2, num_scales - 1, make) if num_scales > 1 else None
    return MultiScale(make(4 * channels), rest)


def glow(
    channels: int,
    size: int,
    *,
    num_scales: int = 2,
    num_steps: int = 4,
    tau: ElementwiseMap | None = None,
    generator: torch.Generator | None = None,
    **settings,
) -> MultiScale:
    """Glow for images of shape (channels, size, size).

    Args:
        channels: of the image.
        size: rows, and columns; a multiple of 2^num_scales.
        num_scales: how often to squeeze; after each but the last, half of the channels is factored out.
        num_steps: number of `glow_step` a scale.
        tau: elementwise map of the couplings; Glow's `AffineMap(gate="sigmoid")` if None.
        generator: source of the initial rotations; torch's global one if None.
        **settings: of `ConvConditioner`: width, activation, dim_context.

    Raises:
        ValueError: if `size` is no multiple of 2^num_scales.

    Source: Kingma, Dhariwal 2018 (arXiv 1807.03039).
    """
    check_sizes(num_steps=num_steps)

    def scale(n: int) -> Chain:
        return Chain(*[glow_step(n, tau, generator=generator, **settings) for _ in range(num_steps)])

    return _scales(channels, size, num_scales, scale)


def realnvp_image(
    channels: int,
    size: int,
    *,
    num_scales: int = 2,
    num_steps: int = 4,
    tau: ElementwiseMap | None = None,
    **settings,
) -> MultiScale:
    """RealNVP for images: as `glow`, but halves that alternate in place of 1x1 convolutions, and `AffineMap()` if None.

    Reduced: the couplings are of channels only, without the paper's checkerboards, its batch normalisation is an
    `ActNorm`, and the networks are those of Glow.

    Source: Dinh, Sohl-Dickstein, Bengio 2017 (arXiv 1605.08803), Sec. 3.
    """
    check_sizes(num_steps=num_steps)

    def scale(n: int) -> Chain:
        layers = [
            (ActNorm(n, 3), _channel_coupling(n, tau or AffineMap(), i % 2 == 1, **settings)) for i in range(num_steps)
        ]
        return Chain(*[f for pair in layers for f in pair])

    return _scales(channels, size, num_scales, scale)
