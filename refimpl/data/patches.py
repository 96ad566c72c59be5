"""Small images: patches of scikit-learn's two photographs, and dead leaves, random images with the statistics of scenes.

Images are rows of pixels in [-1, 1], channel after channel, the range in which diffusion models work.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_sizes
from refimpl.data._random import draw

__all__ = ["dead_leaves", "photograph_patches"]

TRAIN_COLUMNS = 440  # of 640; the photographs' left part trains, the rest tests
DISCS_AT_ONCE, IMAGES_AT_ONCE = 16, 256  # of `dead_leaves`; the random numbers depend on them


def photograph_patches(size: int, *, split: str = "train", stride: int | None = None) -> Float[Tensor, "n dim"]:
    """Square grey patches of the photographs "china" and "flower" (427 x 640 pixels each), as rows of size^2 pixels.

    Training patches come from the left 440 columns and test patches from the rest, so that none shares a pixel.

    Args:
        size: width of a patch in pixels, at most 200.
        split: "train" or "test".
        stride: distance between patches in pixels; `size` (no overlap) if None.

    Returns:
        Shape (n, size * size), in [-1, 1], photograph after photograph and row after row; grey is the luma of Rec. 601.

    Raises:
        ValueError: if `split` is unknown or a number is out of range.

    >>> photograph_patches(8).shape, photograph_patches(8, split="test").shape
    (torch.Size([5830, 64]), torch.Size([2650, 64]))
    """
    from sklearn.datasets import load_sample_images

    stride = size if stride is None else stride
    check_sizes(size=size, stride=stride)
    if split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}, expected 'train' or 'test'")
    if size > 200:
        raise ValueError(f"size: got {size}, expected at most 200, the columns of the test part")
    columns = slice(0, TRAIN_COLUMNS) if split == "train" else slice(TRAIN_COLUMNS, None)
    bytes_ = torch.stack([torch.tensor(photo) for photo in load_sample_images().images])  # (2, 427, 640, 3)
    grey = bytes_.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64) / 127.5 - 1
    patches = grey[:, :, columns].unfold(1, size, stride).unfold(2, size, stride)
    return patches.reshape(-1, size * size).float()


def dead_leaves(
    n: int,
    size: int,
    generator: torch.Generator | None = None,
    *,
    channels: int = 1,
    radii: tuple[float | int, float | int] | None = None,
    like: Tensor | None = None,
) -> Float[Tensor, "n dim"]:
    """Images of discs that cover each other like fallen leaves: edges, occlusion, objects of every size.

    Discs have uniform places and colours, and radii of density proportional to r^-3, the only law whose images look the
    same at every scale between the two ends. They are laid from the front: a disc shows only where none lies yet, until
    the image is full. What has been covered from the front is what an endless fall of leaves leaves behind, so these
    are exact draws of the stationary process, which a fixed number of discs from the back is not.

    Args:
        n: number of images.
        size: width in pixels.
        generator: source of the discs.
        channels: 1 for grey, 3 for colour.
        radii: smallest and largest radius in pixels; (1.5, size / 2) if None.
        like: gives dtype and device; torch's defaults if None.

    Returns:
        Shape (n, channels * size * size), in [-1, 1].

    Raises:
        ValueError: if a number is out of range.

    Source: Lee, Mumford, Huang 2001 (International Journal of Computer Vision 41), Section 2, for the law of the radii;
    Kendall and Thönnes 1999 (Pattern Recognition 32) for exact simulation from the front.

    >>> dead_leaves(3, 16, torch.Generator().manual_seed(0), channels=3).shape
    torch.Size([3, 768])
    """
    check_sizes(n=n, size=size, channels=channels)
    radii = (1.5, max(size / 2, 2.0)) if radii is None else radii
    check_numbers("radii", radii, low=0.5)
    if len(radii) != 2 or not radii[0] < radii[1]:
        raise ValueError(f"radii: got {radii!r}, expected the smallest and a larger one, in pixels")
    like = torch.empty(()) if like is None else like
    blocks = [min(IMAGES_AT_ONCE, n - start) for start in range(0, n, IMAGES_AT_ONCE)]
    return torch.cat([_leaves(block, size, channels, radii, like, generator) for block in blocks])


def _leaves(n: int, size: int, channels: int, radii: tuple, like: Tensor, generator: torch.Generator | None) -> Tensor:
    small, large = radii
    line = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5
    pixels = torch.cartesian_prod(line, line)
    out = torch.zeros(n, channels, size * size, dtype=like.dtype, device=like.device)
    image, pixel = (i.flatten() for i in torch.ones(n, size * size, device=like.device).nonzero(as_tuple=True))
    while len(image):  # (image, pixel): those that no disc covers yet
        numbers = draw(torch.rand, (n, DISCS_AT_ONCE, 3 + channels), like, generator)
        centres = numbers[..., :2] * (size + 2 * large) - large
        squares = 1 / (small**-2 - numbers[..., 2] * (small**-2 - large**-2))  # r^2, by the inverse of its distribution
        inside = (pixels[pixel].unsqueeze(1) - centres[image]).square().sum(-1) < squares[image]
        hit, front = inside.any(1), inside.int().argmax(1)
        out[image[hit], :, pixel[hit]] = 2 * numbers[image[hit], front[hit], 3:] - 1
        image, pixel = image[~hit], pixel[~hit]
    return out.flatten(1)
