"""What a measurement keeps of an image, linear, non-linear, or not even known; each function returns an `ImageOperator`.

Images are rows of channels * height * width pixels in [-1, 1]; channels are treated alike.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from refimpl._checks import broadcasts, check_numbers, check_positive, check_sizes, check_tensor, image_shape
from refimpl.data._random import draw
from refimpl.diffusion.image_operator import ImageOperator

__all__ = [
    "BlindBlur",
    "average_pooling",
    "blind_blur",
    "gaussian_blur",
    "inpainting",
    "jpeg",
    "nonlinear_blur",
    "phase_retrieval",
    "random_pixels",
]

# Quantisation of the luminance, ITU-T T.81 (JPEG), Table K.1.
LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]


def random_pixels(
    shape: Sequence[int], number: int, batch: Sequence[int] = (), generator: torch.Generator | None = None
) -> Int64[Tensor, "*batch m"]:
    """`number` different pixels out of height * width, drawn for each image of the batch, in rising order."""
    _, height, width = image_shape(shape)
    check_sizes(number=number)
    if number > height * width:
        raise ValueError(f"number: got {number}, expected at most the {height * width} pixels of an image")
    where = generator.device if generator else "cpu"
    order = torch.rand(*batch, height * width, generator=generator, device=where).argsort(-1)
    return order[..., :number].sort(-1).values


def inpainting(shape: Sequence[int], kept: Int64[Tensor, "*batch m"]) -> ImageOperator:
    """Keeps some pixels, in all channels; the rough inverse is 0 elsewhere, which is the pseudo-inverse.

    Args:
        shape: of the images.
        kept: which pixels of 0..height * width - 1 are seen, the same for all images or drawn for each (*batch, m), as
            `random_pixels` does.

    >>> inpainting((2, 2), torch.tensor([0, 3]))(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([1., 4.])
    """
    channels, height, width = image_shape(shape)
    if not isinstance(kept, Tensor) or kept.dtype != torch.int64 or kept.ndim == 0:
        raise TypeError("kept: expected a tensor of whole numbers, shape (*batch, m)")
    if kept.numel() == 0 or kept.min() < 0 or kept.max() >= height * width:
        raise ValueError(f"kept: expected one or more pixels in 0..{height * width - 1}")
    if not kept.sort(-1).values.diff(dim=-1).all():
        raise ValueError("kept: expected different pixels, got one twice")
    index = kept.unsqueeze(-2)

    def apply(images: Tensor) -> Tensor:
        pixels, where = images.flatten(-2), index.to(images.device)
        batch = torch.broadcast_shapes(pixels.shape[:-2], where.shape[:-2])
        where = where.expand(*batch, channels, where.shape[-1])
        return pixels.expand(*batch, -1, -1).gather(-1, where).unsqueeze(-1)

    def back(y: Tensor) -> Tensor:
        seen = y.unflatten(-1, (channels, -1))
        blank = seen.new_zeros(*seen.shape[:-1], height * width)
        return blank.scatter(-1, index.to(y.device).expand(seen.shape), seen).flatten(-2)

    return ImageOperator(shape, apply, back, linear=kept.ndim == 1)


def average_pooling(shape: Sequence[int], factor: int = 2) -> ImageOperator:
    """Means over squares of factor x factor pixels; the rough inverse repeats them, which is the pseudo-inverse.

    >>> average_pooling((2, 2))(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    tensor([3.])
    """
    channels, height, width = image_shape(shape)
    check_sizes(factor=factor)
    if height % factor or width % factor:
        raise ValueError(f"factor: got {factor}, expected a divisor of height {height} and width {width}")
    small = (channels, height // factor, width // factor)

    def back(y: Tensor) -> Tensor:
        images = y.unflatten(-1, small)
        return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2).flatten(-3)

    def apply(images: Tensor) -> Tensor:
        return images.unflatten(-1, (small[2], factor)).mean(-1).unflatten(-2, (small[1], factor)).mean(-2)

    return ImageOperator(shape, apply, back, linear=True)


def _blur_matrix(size: int, std: float | tuple[float, float]) -> Float[Tensor, "size size"]:
    """Gaussian weights of each pixel of a line, scaled to sum to 1 (also at the ends); std may change along the line."""
    ends = (std, std) if isinstance(std, int | float) else tuple(std)
    check_numbers("std", ends, low=1e-6)
    if len(ends) != 2:
        raise ValueError(f"std: got {std!r}, expected a number of pixels, or two for both ends of an image")
    places = torch.arange(size, dtype=torch.float64)
    widths = torch.linspace(*ends, size, dtype=torch.float64).unsqueeze(1)
    return torch.softmax(-(places - places.unsqueeze(1)).square() / (2 * widths.square()), 1)


def gaussian_blur(shape: Sequence[int], std: float | int | tuple[float | int, float | int] = 0.9) -> ImageOperator:
    """Weighted means around each pixel, of Gaussian weights; near the border only pixels of the image count.

    Args:
        shape: of the images.
        std: width in pixels; two numbers make it change from the upper left to the lower right corner.
    """
    _, height, width = image_shape(shape)
    rows, columns = _blur_matrix(height, std), _blur_matrix(width, std)
    return ImageOperator(shape, lambda x: rows.to(x) @ x @ columns.to(x).T, lambda y: y, linear=True)


def nonlinear_blur(
    shape: Sequence[int],
    std: float | int | tuple[float | int, float | int] = 0.9,
    *,
    gain: float | int = 2.5,
    curvature: float | int = 0.5,
) -> ImageOperator:
    """tanh(gain B x) + curvature (B x)^2, pixel by pixel, with the Gaussian blur B: saturated, and not one-to-one.

    The rough inverse is y itself.

    >>> nonlinear_blur((1, 1))(torch.ones(1))
    tensor([1.4866])
    """
    check_positive("gain", gain)
    check_numbers("curvature", [curvature])
    blur = gaussian_blur(shape, std).image_to_measurement

    def apply(images: Tensor) -> Tensor:
        blurred = blur(images)
        return (gain * blurred).tanh() + curvature * blurred.square()

    return ImageOperator(shape, apply, lambda y: y)


def cosine_matrix(size: int = 8) -> Float[Tensor, "size size"]:
    """Orthonormal discrete cosine transform (type II) of a line, in float64; its rows are the frequencies."""
    k = torch.arange(size, dtype=torch.float64)
    rows = (math.pi / size * (k + 0.5) * k.unsqueeze(1)).cos() * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def quantisation_table(quality: int) -> Float[Tensor, "8 8"]:
    """Steps of JPEG's 64 coefficients of a block, in grey levels of 255: Table K.1, scaled as the reference software does."""
    if not isinstance(quality, int) or isinstance(quality, bool) or not 1 <= quality <= 100:
        raise ValueError(f"quality: got {quality!r}, expected a whole number in 1..100")
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor(LUMINANCE, dtype=torch.float64)
    return ((table * percent + 50) / 100).floor().clamp(1, 255)


def jpeg(shape: Sequence[int], quality: int = 10) -> ImageOperator:
    """Grey JPEG, each channel for itself: blocks of 8 x 8 pixels, their cosine transform rounded, and back.

    Rounding has no useful gradient, so the backward pass leaves it out (straight-through); what remains is orthonormal,
    which makes the gradient that of the identity. The rough inverse is y itself.

    Args:
        shape: of the images, whose height and width are multiples of 8.
        quality: 1..100, as libjpeg counts.

    Source: Wallace 1992 (IEEE Transactions on Consumer Electronics 38); Bengio et al. 2013 (arXiv 1308.3432),
    Section 4, for straight-through gradients.
    """
    _, height, width = image_shape(shape)
    if height % 8 or width % 8:
        raise ValueError(f"shape: got {tuple(shape)}, expected height and width in multiples of 8")
    transform, table = cosine_matrix(), quantisation_table(quality)

    def apply(images: Tensor) -> Tensor:
        d, steps = transform.to(images), table.to(images)
        blocks = images.unflatten(-2, (-1, 8)).unflatten(-1, (-1, 8)).transpose(-3, -2)
        in_steps = d @ (127.5 * blocks - 0.5) @ d.T / steps  # grey levels 0..255, less 128
        rounded = in_steps + (in_steps.round() - in_steps).detach()
        blocks = (d.T @ (rounded * steps) @ d + 0.5) / 127.5
        return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)

    return ImageOperator(shape, apply, lambda y: y)


def phase_retrieval(shape: Sequence[int]) -> ImageOperator:
    """Magnitudes of the Fourier transform of the image, surrounded by as much black (-1); no rough inverse.

    Magnitudes don't change if the image is shifted or turned by 180 degrees; both are answers as good as the truth.
    """
    _, height, width = image_shape(shape)

    def apply(images: Tensor) -> Tensor:
        light = (images + 1) / 2
        transform = torch.fft.fft2(light, s=(2 * height, 2 * width), norm="ortho")
        # Not abs, whose gradient is not finite where the transform is 0.
        return (transform.real.square() + transform.imag.square() + 1e-12).sqrt()

    return ImageOperator(shape, apply)


class BlindBlur(ImageOperator):
    """Convolution with a kernel that is not known: its logits are parameters, to be found together with the image.

    The kernel is the softmax of the logits, so its weights are positive and sum to 1. Pixels at the border are repeated
    outwards. The rough inverse is y itself.

    Attributes:
        logits: parameters, shape (*batch, kernel_size, kernel_size), one kernel for each image of the batch.
    """

    def __init__(self, shape: Sequence[int], logits: Float[Tensor, "*batch k k"]):
        check_tensor("logits", logits, "(*batch, k, k)")
        if logits.shape[-1] % 2 == 0:
            raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected a kernel of odd size")
        super().__init__(shape, self._convolve, lambda y: y)
        self.logits = nn.Parameter(logits)

    def kernel(self) -> Float[Tensor, "*batch k k"]:
        return self.logits.flatten(-2).softmax(-1).unflatten(-1, self.logits.shape[-2:])

    def _convolve(self, images: Tensor) -> Tensor:
        kernel = self.kernel()
        *batch, channels, height, width = images.shape
        size = kernel.shape[-1]
        if not broadcasts(kernel.shape[:-2], batch):
            raise ValueError(
                f"x: got a batch {tuple(batch)}, expected one that fits that of the kernels, {tuple(kernel.shape[:-2])}"
            )
        kernel = kernel.unsqueeze(-3).expand(*batch, channels, size, size).reshape(-1, 1, size, size)
        padded = pad(images.reshape(-1, 1, height, width), [size // 2] * 4, mode="replicate").transpose(0, 1)
        return conv2d(padded, kernel, groups=len(kernel)).reshape(images.shape)


def blind_blur(
    shape: Sequence[int], kernel_size: int, *, batch: Sequence[int] = (), generator: torch.Generator | None = None
) -> BlindBlur:
    """A `BlindBlur` with logits from N(0, 1): nearly even weights, but none the same as another.

    Args:
        shape: of the images.
        kernel_size: width of the kernels in pixels, odd.
        batch: one kernel for each image of a batch of this shape.
        generator: source of the logits.

    Source: Pandey et al. 2025 (arXiv 2502.03686), blind deblurring, where the kernels are of 64 x 64.
    """
    check_sizes(kernel_size=kernel_size)
    return BlindBlur(shape, draw(torch.randn, (*batch, kernel_size, kernel_size), torch.empty(()), generator))
