"""How far two samples are apart, and how far an image is from the truth.

All distances of samples compare samples only, so they score any generator; none needs a density. They live in the units
of the data: bring features to comparable scales first.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, image_shape

__all__ = ["frechet_distance", "median_bandwidth", "mmd_squared", "psnr", "sliced_wasserstein", "ssim"]


def _check_samples(x: Tensor, y: Tensor, at_least: int) -> None:
    for name, points in (("x", x), ("y", y)):
        if not isinstance(points, Tensor) or not points.is_floating_point() or points.ndim != 2:
            got = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
            raise ValueError(f"{name}: got {got}, expected a floating-point tensor of shape (samples, dim)")
        if len(points) < at_least or points.shape[1] == 0:
            raise ValueError(f"{name}: got shape {tuple(points.shape)}, expected at least {at_least} sample(s)")
        if not points.isfinite().all():
            raise ValueError(f"{name}: has values that are not finite")
    if x.shape[1] != y.shape[1] or x.dtype != y.dtype:
        raise ValueError(f"y: got dim {y.shape[1]} and {y.dtype}, expected those of x, {x.shape[1]} and {x.dtype}")


def sliced_wasserstein(
    x: Float[Tensor, "..."],
    y: Float[Tensor, "..."],
    *,
    p: float | int = 2,
    num_projections: int = 200,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Sliced Wasserstein distance of two samples, estimated with random directions.

    On a line the optimal transport between two samples matches their quantiles, so W_p costs one sort. The sliced
    distance projects on directions w, uniform on the sphere, and averages: SW_p^p = E_w W_p^p(w.x, w.y). The distance
    along each direction is exact for the two samples, also of unequal sizes. A shift by t has SW_2 = ||t|| / sqrt(dim).

    Args:
        x: samples, shape (n, dim).
        y: samples, shape (m, dim), same units, dtype and device.
        p: order of the distance, >= 1.
        num_projections: number of random directions; in one dimension a single one is exact.
        generator: source of the directions (drawn on its device); torch's global one if None.

    Returns:
        SW_p, a scalar in the units of the data; differentiable in `x` and `y`.

    Raises:
        ValueError: if shapes, dtypes or values of `x` and `y` do not fit, `p` < 1, or `num_projections` < 1.

    Source: Bonneel et al. 2015 (Journal of Mathematical Imaging and Vision 51), Eq. (5).

    >>> round(sliced_wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]])).item(), 5)
    2.0
    """
    _check_samples(x, y, at_least=1)
    if not p >= 1 or math.isinf(p):
        raise ValueError(f"p: got {p!r}, expected a finite number >= 1")
    if num_projections < 1:
        raise ValueError(f"num_projections: got {num_projections!r}, expected at least 1")
    where = generator.device if generator else x.device
    directions = torch.randn(x.shape[1], num_projections, dtype=x.dtype, device=where, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(x.device)
    a, b = (x @ directions).sort(dim=0).values, (y @ directions).sort(dim=0).values
    n, m = len(a), len(b)
    # Quantile functions are steps at i/n and j/m; in units of 1/(n m) all steps are whole numbers.
    steps = torch.cat([torch.arange(0, n * m, m), torch.arange(0, n * m, n)]).unique().to(x.device)
    widths = torch.diff(steps, append=steps.new_tensor([n * m])).to(x.dtype) / (n * m)
    gaps = (a[steps // m] - b[steps // n]).abs() ** p
    return (widths @ gaps).mean() ** (1 / p)


def median_bandwidth(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> float:
    """Median distance between two different points of the pooled samples, a common bandwidth for `mmd_squared`.

    Args:
        x: samples, shape (n, dim).
        y: samples, shape (m, dim).

    Returns:
        The median, in the units of the data.

    Raises:
        ValueError: if shapes, dtypes or values do not fit, or more than half of the points coincide.

    >>> median_bandwidth(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0]]))
    1.0
    """
    _check_samples(x, y, at_least=1)
    median = torch.pdist(torch.cat([x, y]).detach()).median().item()
    if median == 0:
        raise ValueError("x, y: most points coincide, so their median distance is 0; choose a bandwidth")
    return median


def mmd_squared(
    x: Float[Tensor, "..."],
    y: Float[Tensor, "..."],
    *,
    bandwidth: float | int | Sequence[float | int] | None = None,
    unbiased: bool = True,
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy of two samples with a Gaussian kernel.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) with k(a, b) = exp(-||a - b||^2 / (2 bandwidth^2)); it is zero only if
    both distributions are the same. The unbiased estimate leaves out pairs of a point with itself and can be negative;
    the biased one keeps them and can't.

    Args:
        x: samples, shape (n, dim).
        y: samples, shape (m, dim), same units, dtype and device.
        bandwidth: length scale of the kernel in the units of the data; of several, the kernels' mean is used; if
            None, `median_bandwidth(x, y)`. Fix it when you compare values with each other.
        unbiased: which estimate.

    Returns:
        Estimate of MMD^2, a scalar without unit; differentiable in `x` and `y`.

    Raises:
        ValueError: if shapes, dtypes or values of `x` and `y` do not fit, or a bandwidth is not positive.

    Source: Gretton et al. 2012 (Journal of Machine Learning Research 13), Lemma 6.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> mmd_squared(x, x, bandwidth=1.0, unbiased=False)
    tensor(0.)
    """
    _check_samples(x, y, at_least=2 if unbiased else 1)
    if bandwidth is None:
        bandwidth = median_bandwidth(x, y)
    scales = [bandwidth] if isinstance(bandwidth, int | float) else list(bandwidth)
    if not scales or not all(math.isfinite(h) and h > 0 for h in scales):
        raise ValueError(f"bandwidth: got {bandwidth!r}, expected positive numbers")

    # Distances ignore a common shift; without it their digits would cancel for data far from the origin.
    centre = x.detach().mean(0)
    x, y = x - centre, y - centre

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # Not torch.cdist, whose gradient is not finite where two points coincide.
        squares = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
        return torch.stack([(-squares / (2 * h * h)).exp() for h in scales]).mean(0)

    def within(a: Tensor) -> Tensor:
        k, n = kernel(a, a), len(a)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1)) if unbiased else k.mean()

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def frechet_distance(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Squared 2-Wasserstein distance of the normal distributions with the samples' means and covariances.

    ||m_x - m_y||^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2). On activations of a classifier it is the FID; on the
    features themselves it is called FID-like. It sees two moments only: 0 does not mean that the samples agree. Finite
    samples are apart even if their distributions are not: compare with the value between two parts of the data.

    Args:
        x: samples, shape (n, dim), n >= 2.
        y: samples, shape (m, dim), m >= 2, same units, dtype and device.

    Returns:
        The squared distance in squared units of the data; covariances are divided by n, the arithmetic is in float64.

    Raises:
        ValueError: if shapes, dtypes or values of `x` and `y` do not fit.

    Source: Dowson and Landau 1982 (Journal of Multivariate Analysis 12); Heusel et al. 2017 (arXiv 1706.08500).

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> frechet_distance(x, 3 * x + 1)  # means 1 and 4, standard deviations 1 and 3
    tensor(13.)
    """
    _check_samples(x, y, at_least=2)
    a, b = x.double(), y.double()
    cov_a, cov_b = (torch.cov(v.T, correction=0).reshape(v.shape[1], -1) for v in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # The middle matrix is symmetric: its eigenvalues are real and, up to rounding, not negative.
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return distance.clamp_min(0).to(x.dtype)


def psnr(
    x: Float[Tensor, "... dim"], truth: Float[Tensor, "... dim"], *, data_range: float | int = 2.0
) -> Float[Tensor, "..."]:
    """Peak signal-to-noise ratio in decibel, 10 log10(data_range^2 / mean squared error), of each image.

    Args:
        x, truth: images as rows of pixels, whose batch dimensions broadcast.
        data_range: largest minus smallest value that a pixel can have; 2 for pixels in [-1, 1].

    Returns:
        One number an image, infinite where both are equal. Average it over images, not the errors before the logarithm.

    Raises:
        ValueError: if the numbers of pixels differ or `data_range` is not positive.

    >>> psnr(torch.tensor([0.0, 0.2]), torch.tensor([0.2, 0.0]))
    tensor(20.)
    """
    check_positive("data_range", data_range)
    _check_pixels(x, truth)
    return 10 * torch.log10(data_range**2 / (x - truth).square().mean(-1))


def ssim(
    x: Float[Tensor, "... dim"],
    truth: Float[Tensor, "... dim"],
    shape: Sequence[int],
    *,
    data_range: float | int = 2.0,
    std: float | int = 1.5,
) -> Float[Tensor, "..."]:
    """Structural similarity of each image: agreement of local means, contrasts and patterns, 1 if both are equal.

    With means, variances and the covariance under a Gaussian window around each pixel, the product of
    (2 m_x m_y + c_1) / (m_x^2 + m_y^2 + c_1) and (2 s_xy + c_2) / (s_x^2 + s_y^2 + c_2), averaged over all pixels whose
    window lies inside the image, and over channels; c_1 = (0.01 data_range)^2, c_2 = (0.03 data_range)^2.

    Args:
        x, truth: images as rows of pixels, whose batch dimensions broadcast.
        shape: (height, width) or (channels, height, width) of the images.
        data_range: largest minus smallest value that a pixel can have; 2 for pixels in [-1, 1].
        std: of the window in pixels, which ends 3.5 of them from its centre: 1.5 means 11 x 11 pixels (the usual
            choice), 0.8 means 7 x 7 (for images as small as 8 x 8).

    Raises:
        ValueError: if shapes do not fit, a number is not positive, or the window is larger than the image.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004 (IEEE Transactions on Image Processing 13), Eq. (13) to (16).

    >>> x = torch.rand(16 * 16, generator=torch.Generator().manual_seed(0))
    >>> ssim(x, x, (16, 16)), ssim(x, 1 - x, (16, 16)) < 0
    (tensor(1.), tensor(True))
    """
    check_positive("data_range", data_range)
    check_positive("std", std, "pixels")
    channels, height, width = image_shape(shape)
    _check_pixels(x, truth)
    if x.shape[-1] != channels * height * width:
        raise ValueError(f"x: got {x.shape[-1]} pixels, expected {channels * height * width} for images {tuple(shape)}")
    reach = int(3.5 * std + 0.5)
    if 2 * reach + 1 > min(height, width):
        raise ValueError(f"std: got {std}, a window of {2 * reach + 1} pixels, expected one inside {height} x {width}")
    places = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    weights = torch.softmax(-places.square() / (2 * std**2), 0)

    def local_mean(rows: Tensor) -> Tensor:
        images = rows.unflatten(-1, (channels, height, width))
        return images.unfold(-1, len(weights), 1).matmul(weights).unfold(-2, len(weights), 1).matmul(weights)

    mean_x, mean_y = local_mean(x), local_mean(truth)
    variances = local_mean(x.square()) - mean_x.square() + local_mean(truth.square()) - mean_y.square()
    covariance = local_mean(x * truth) - mean_x * mean_y
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    lightness = (2 * mean_x * mean_y + c_1) / (mean_x.square() + mean_y.square() + c_1)
    return (lightness * (2 * covariance + c_2) / (variances + c_2)).mean((-3, -2, -1))


def _check_pixels(x: Tensor, truth: Tensor) -> None:
    if x.ndim == 0 or truth.ndim == 0 or x.shape[-1] != truth.shape[-1]:
        raise ValueError(f"truth: got shape {tuple(truth.shape)}, expected as many pixels as x, {tuple(x.shape)}")
