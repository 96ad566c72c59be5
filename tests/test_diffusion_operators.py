"""Image operators against direct formulas, Pillow's JPEG files and finite differences."""

import io

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import convolve

from refimpl.data import digits, photograph_patches
from refimpl.diffusion import (
    BlindBlur,
    average_pooling,
    blind_blur,
    gaussian_blur,
    inpainting,
    jpeg,
    nonlinear_blur,
    phase_retrieval,
    random_pixels,
)
from refimpl.diffusion.operators import cosine_matrix, quantisation_table

F64 = torch.float64
SHAPE = (2, 8, 16)
DIM = 256


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*batch, shape=SHAPE):
    dim = int(np.prod(shape))
    return torch.randn(*batch, dim, dtype=F64, generator=generator()).tanh()


KEPT = random_pixels(SHAPE, 20, generator=generator())
LINEAR = {
    "inpainting": lambda: inpainting(SHAPE, KEPT),
    "pooling": lambda: average_pooling(SHAPE, 4),
    "blur": lambda: gaussian_blur(SHAPE, 0.9),
    "changing blur": lambda: gaussian_blur(SHAPE, (0.5, 2.0)),
}
OTHERS = {
    "nonlinear": lambda: nonlinear_blur(SHAPE),
    "jpeg": lambda: jpeg(SHAPE, 30),
    "phase": lambda: phase_retrieval(SHAPE),
    "blind": lambda: blind_blur(SHAPE, 5, generator=generator()).double(),
}
ALL = LINEAR | OTHERS


@pytest.mark.parametrize("name", ALL)
def test_batches_are_images_one_by_one(name):
    h, x = ALL[name](), images(3, 2)
    out = h(x)
    assert out.shape[:-1] == (3, 2) and out.dtype == F64
    assert torch.allclose(out[1, 0], h(x[1, 0]))
    assert h.dim == DIM


@pytest.mark.parametrize("name", ALL)
def test_measurements_have_noise_of_std_and_a_start(name):
    h, x = ALL[name](), images(40)
    seen = h.measure(x, 0.3, generator=generator(1))
    rough = (seen.energy(x) / seen.y.shape[-1]).mean().sqrt().item()
    assert rough == pytest.approx(0.3, rel=0.06)
    assert not seen.y.requires_grad and seen.matrix is None
    assert seen.start is None if name == "phase" else seen.start.shape == x.shape
    assert torch.equal(seen.y, h.measure(x, 0.3, generator=generator(1)).y)
    chains = torch.randn(5, *x.shape, dtype=F64)
    assert seen.energy(chains).shape == (5, 40)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operators_are_their_matrix(name):
    h, x = LINEAR[name](), images(3)
    matrix = h.matrix(x)
    assert torch.allclose(x @ matrix.T, h(x))
    seen = h.measure(x, 0.1, as_matrix=True, generator=generator(1))
    assert torch.equal(seen.matrix, matrix)
    same = h.measure(x, 0.1, generator=generator(1))
    assert torch.equal(seen.y, same.y) and torch.allclose(seen.energy(x), same.energy(x))
    if name in ("inpainting", "pooling"):
        assert torch.allclose(seen.start, seen.y @ torch.linalg.pinv(matrix).T)
    else:
        assert torch.equal(seen.start, seen.y)


@pytest.mark.parametrize("name", ["nonlinear", "phase", "blind", "blur", "pooling", "inpainting"])
def test_gradients_are_those_of_finite_differences(name):
    shape = (2, 4, 4)
    make = {
        "nonlinear": lambda: nonlinear_blur(shape),
        "phase": lambda: phase_retrieval(shape),
        "blind": lambda: blind_blur(shape, 3, generator=generator()).double(),
        "blur": lambda: gaussian_blur(shape, (0.5, 1.5)),
        "pooling": lambda: average_pooling(shape),
        "inpainting": lambda: inpainting(shape, torch.tensor([0, 5])),
    }
    assert torch.autograd.gradcheck(make[name](), images(2, shape=shape).requires_grad_())


def test_inpainting_keeps_the_same_pixels_of_all_channels():
    x = images(3)
    mask = torch.zeros(DIM // 2, dtype=torch.bool)
    mask[KEPT] = True
    assert torch.equal(inpainting(SHAPE, KEPT)(x), x.reshape(3, 2, -1)[..., mask].flatten(1))


def test_each_image_may_have_its_own_mask():
    kept = random_pixels((8, 8), 16, (5,), generator())
    assert kept.shape == (5, 16) and all(len(set(k.tolist())) == 16 for k in kept)
    h, x = inpainting((8, 8), kept), images(3, 5, shape=(8, 8))
    y = h(x)
    assert torch.equal(y[2, 4], x[2, 4, kept[4]])
    seen = h.measure(x[0], 1e-9)
    assert torch.allclose(seen.start.gather(-1, kept), x[0].gather(-1, kept))
    assert (seen.start == 0).sum() == 5 * 48
    with pytest.raises(TypeError, match="differs from image to image"):
        h.matrix(x)
    # Every pixel is drawn equally often: binomial, 4 standard errors.
    often = random_pixels((8, 8), 16, (4000,), generator()).flatten().bincount(minlength=64) / 4000
    assert ((often - 0.25).abs() < 4.5 * (0.25 * 0.75 / 4000) ** 0.5).all()


def test_pooling_is_the_mean_of_squares():
    x = images(3).reshape(3, *SHAPE)
    expected = torch.nn.functional.avg_pool2d(x, 4).flatten(1)
    assert torch.allclose(average_pooling(SHAPE, 4)(x.flatten(1)), expected)


def test_blur_weights_sum_to_one_and_are_gaussian():
    h = gaussian_blur((7, 9), 0.9)
    matrix = h.matrix(torch.empty((), dtype=F64))
    assert torch.allclose(matrix.sum(1), torch.ones(63, dtype=F64))
    # Far from the border: products of Gaussian weights, by their ratio to the centre.
    row = matrix[3 * 9 + 4].reshape(7, 9)
    for i, j in ((0, 1), (2, 0), (1, -2)):
        assert (row[3 + i, 4 + j] / row[3, 4]).item() == pytest.approx(np.exp(-(i * i + j * j) / (2 * 0.81)))
    # At the corner only pixels of the image count.
    corner = np.exp(-(np.arange(7) ** 2) / 1.62)
    assert matrix[0].reshape(7, 9)[:, 0].sum().item() == pytest.approx(1 / np.exp(-(np.arange(9) ** 2) / 1.62).sum())
    assert np.allclose(matrix[0].reshape(7, 9).sum(1).numpy(), corner / corner.sum())


def test_a_changing_blur_is_sharp_at_one_end():
    matrix = gaussian_blur((1, 32), (0.3, 3.0)).matrix(torch.empty((), dtype=F64))
    centre = matrix.diagonal()
    assert centre[0] > 0.99 and centre[16] < 0.3 and centre[28] < 0.2
    assert (centre[:-8].diff() < 0).all()


def test_nonlinear_blur_is_its_formula_and_not_one_to_one():
    x = images(2)
    blurred = gaussian_blur(SHAPE, 1.3)(x)
    assert torch.allclose(
        nonlinear_blur(SHAPE, 1.3, gain=2, curvature=0.7)(x), torch.tanh(2 * blurred) + 0.7 * blurred**2
    )
    grey = torch.linspace(-1, 1, 201, dtype=F64).unsqueeze(1)
    assert (nonlinear_blur((1, 1))(grey).diff(dim=0) < 0).any()  # falls somewhere although it rises elsewhere


def test_cosine_transform_is_that_of_scipy():
    block = images(shape=(8, 8)).reshape(8, 8)
    d = cosine_matrix()
    assert torch.allclose(d @ d.T, torch.eye(8, dtype=F64))
    assert np.allclose((d @ block @ d.T).numpy(), dctn(block.numpy(), norm="ortho"))


@pytest.mark.parametrize("quality", [1, 10, 30, 50, 75, 100])
def test_quantisation_is_that_of_pillows_files(quality):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "JPEG", quality=quality)
    assert Image.open(file).quantization[0] == quantisation_table(quality).flatten().int().tolist()


def test_jpeg_is_rounding_in_scipys_cosine_transform():
    x = photograph_patches(16)[:20].double()
    out = jpeg((16, 16), 10)(x).reshape(20, 16, 16)
    table = quantisation_table(10).numpy()
    for image, got in zip(x.reshape(20, 16, 16), out, strict=True):
        for i in (0, 8):
            for j in (0, 8):
                levels = 127.5 * (image[i : i + 8, j : j + 8].numpy() + 1) - 128
                coded = idctn(np.round(dctn(levels, norm="ortho") / table) * table, norm="ortho")
                assert np.allclose(127.5 * (got[i : i + 8, j : j + 8].numpy() + 1) - 128, coded)


@pytest.mark.parametrize("quality", [10, 30, 90])
def test_jpeg_is_pillows(quality):
    """Up to coefficients halfway between two steps, which libjpeg rounds away from 0, as even pixels often make them."""
    level = (127.5 * (photograph_patches(64)[:20].double() + 1)).round()
    ours = jpeg((64, 64), quality)(level / 127.5 - 1)
    off = []
    for x, y in zip(level, ours, strict=True):
        file = io.BytesIO()
        Image.fromarray(x.reshape(64, 64).byte().numpy()).save(file, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(file), dtype=float)
        off.append(np.abs(theirs - (127.5 * (y.reshape(64, 64).numpy() + 1)).round().clip(0, 255)) > 1)
    assert np.mean(off) < 0.04


def test_jpeg_passes_gradients_straight_through():
    h, x, weights = jpeg(SHAPE, 10), images(2).requires_grad_(), torch.randn(2, DIM, dtype=F64)
    out = h(x)
    assert not torch.allclose(out, x, atol=0.05)
    (gradient,) = torch.autograd.grad((weights * out).sum(), x)
    assert torch.allclose(gradient, weights)  # unrounded, it is the identity
    # Rounding twice changes nothing.
    assert torch.allclose(h(out.detach()), out, atol=1e-9)


def test_phase_retrieval_forgets_where_up_is():
    # |FFT| of the padded image is symmetric under rotation by 180 degrees.
    h, x = phase_retrieval((6, 6)), images(shape=(6, 6))
    assert torch.allclose(h(x), h(x.flip(0)), atol=1e-9)
    assert torch.allclose(h(x).square().sum(), ((x + 1) / 2).square().sum(), atol=1e-9)  # Parseval
    black = torch.full((36,), -1.0, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(h(black).sum(), black)
    assert gradient.isfinite().all()


def test_blind_blur_is_a_convolution_with_the_softmax_of_its_logits():
    h, x = blind_blur(SHAPE, 5, generator=generator()).double(), images(2)
    kernel = h.kernel().detach()
    assert torch.allclose(kernel.sum(), torch.ones((), dtype=F64)) and (kernel > 0).all()
    with torch.no_grad():
        out = h(x).reshape(2, *SHAPE)
    for i in range(2):
        for c in range(2):
            image = x[i].reshape(SHAPE)[c].numpy()
            expected = convolve(image, kernel.numpy()[::-1, ::-1], mode="nearest")
            assert np.allclose(out[i, c].numpy(), expected)


def test_each_image_may_have_its_own_unknown_kernel():
    h, x = blind_blur((8, 8), 3, batch=(4,), generator=generator()).double(), images(3, 4, shape=(8, 8))
    alone = BlindBlur((8, 8), h.logits[2].detach().clone())
    with torch.no_grad():
        assert torch.allclose(h(x)[:, 2], alone(x[:, 2]))
    (gradient,) = torch.autograd.grad(h(x)[:, 2].square().sum(), h.logits)
    assert gradient[2].abs().max() > 0 and (gradient[[0, 1, 3]] == 0).all()
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(h, {"logits": w}, x[0]), h.logits)


def test_a_kernel_is_found_when_the_image_is_known():
    x = 2 * digits()[0][:20] - 1
    truth = BlindBlur((8, 8), -(torch.arange(-1, 2) ** 2).float().add((torch.arange(-1, 2) ** 2).unsqueeze(1)))
    seen = truth.measure(x, 0.01, generator=generator())
    h = blind_blur((8, 8), 3, generator=generator(1))
    optimiser = torch.optim.Adam(h.parameters(), lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        (seen.y - h(x)).square().sum().backward()
        optimiser.step()
    assert torch.allclose(h.kernel(), truth.kernel(), atol=0.01)


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: gaussian_blur((8,)), r"shape: got \(8,\), expected \(height, width\) or"),
        (ValueError, lambda: gaussian_blur((8, 0)), r"shape\[1\]: got 0, expected a whole number >= 1"),
        (ValueError, lambda: gaussian_blur((8, 8))(torch.zeros(63)), r"x: got shape \(63,\), expected \(..., 64\)"),
        (ValueError, lambda: gaussian_blur((8, 8), 0.0), r"std: got \(0.0, 0.0\)"),
        (ValueError, lambda: gaussian_blur((8, 8), (1.0, 2.0, 3.0)), r"std: got \(1.0, 2.0, 3.0\), expected a number"),
        (ValueError, lambda: average_pooling((8, 9)), r"factor: got 2, expected a divisor of height 8 and width 9"),
        (ValueError, lambda: average_pooling((8, 8), 0), r"factor: got 0"),
        (TypeError, lambda: inpainting((8, 8), torch.ones(4)), r"kept: expected a tensor of whole numbers"),
        (ValueError, lambda: inpainting((8, 8), torch.tensor([64])), r"kept: expected one or more pixels in 0..63"),
        (ValueError, lambda: inpainting((8, 8), torch.tensor([3, 5, 3])), r"kept: expected different pixels"),
        (TypeError, lambda: average_pooling((2, 2)).measure([1.0, 2.0, 3.0, 6.0], 0.1), r"x: got list"),
        (ValueError, lambda: average_pooling((2, 2)).measure(torch.zeros(3, 5), 0.1), r"x: got shape \(3, 5\)"),
        (ValueError, lambda: average_pooling((2, 2)).measure(torch.zeros(0, 4), 0.1), r"x: got shape \(0, 4\)"),
        (ValueError, lambda: blind_blur((8, 8), 3, batch=(4,))(torch.zeros(3, 64)), r"x: got a batch \(3,\)"),
        (ValueError, lambda: random_pixels((8, 8), 65), r"number: got 65, expected at most the 64 pixels"),
        (ValueError, lambda: nonlinear_blur((8, 8), gain=0), r"gain: got 0"),
        (ValueError, lambda: nonlinear_blur((8, 8), curvature=float("nan")), r"curvature: got \[nan\]"),
        (ValueError, lambda: jpeg((8, 12)), r"shape: got \(8, 12\), expected height and width in multiples of 8"),
        (ValueError, lambda: jpeg((8, 8), 0), r"quality: got 0, expected a whole number in 1..100"),
        (ValueError, lambda: jpeg((8, 8), 10.5), r"quality: got 10.5"),
        (TypeError, lambda: jpeg((8, 8)).matrix(torch.zeros(1)), r"matrix: the operator has none"),
        (ValueError, lambda: blind_blur((8, 8), 4), r"logits: got shape \(4, 4\), expected a kernel of odd size"),
        (ValueError, lambda: BlindBlur((8, 8), torch.zeros(3, 5)), r"logits: got shape \(3, 5\)"),
        (ValueError, lambda: jpeg((8, 8)).measure(torch.zeros(64), 0.0), r"std: got 0.0, expected a finite number > 0"),
    ],
)
def test_bad_input(monkeypatch, error, call, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(error, match=message):
        call()
