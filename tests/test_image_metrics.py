"""PSNR against its closed form, SSIM against scikit-image."""

import math

import jaxtyping
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from refimpl.data import photograph_patches
from refimpl.metrics import psnr, ssim


def pairs(n=4, size=24):
    clean = photograph_patches(size)[:n].double()
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return clean, clean + 0.2 * noise


def test_psnr_is_that_of_scikit_image_and_infinite_without_error():
    clean, noisy = pairs()
    ours = psnr(noisy, clean)
    assert ours.shape == (4,)
    for value, x, y in zip(ours, clean, noisy, strict=True):
        assert value.item() == pytest.approx(peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=2))
    assert psnr(clean, clean).isinf().all()
    assert psnr(clean[0] + 0.02, clean[0]).item() == pytest.approx(40.0)
    assert psnr(clean[0] + 0.02, clean[0], data_range=1).item() == pytest.approx(40.0 - 20 * math.log10(2))


def test_images_broadcast_over_chains():
    clean, noisy = pairs()
    chains = torch.stack([noisy, clean + 0.1, noisy.flip(0)])
    assert psnr(chains, clean).shape == ssim(chains, clean, (24, 24)).shape == (3, 4)
    assert torch.allclose(ssim(chains, clean, (24, 24))[0], ssim(noisy, clean, (24, 24)))


@pytest.mark.parametrize("std", [1.5, 0.8])
@pytest.mark.parametrize("shape", [(24, 24), (16, 36)])
def test_ssim_is_that_of_scikit_image(std, shape):
    clean, noisy = pairs()
    for value, x, y in zip(ssim(noisy, clean, shape, std=std), clean, noisy, strict=True):
        settings = dict(data_range=2.0, gaussian_weights=True, sigma=std, use_sample_covariance=False)
        theirs = structural_similarity(x.reshape(shape).numpy(), y.reshape(shape).numpy(), **settings)
        assert value.item() == pytest.approx(theirs, abs=1e-12)


def test_ssim_of_colour_is_the_mean_over_channels_and_has_a_gradient():
    clean, noisy = pairs(6)
    colour, spoilt = clean.reshape(2, -1), noisy.reshape(2, -1).requires_grad_()
    value = ssim(spoilt, colour, (3, 24, 24))
    assert torch.allclose(value, ssim(noisy, clean, (24, 24)).reshape(2, 3).mean(1))
    (gradient,) = torch.autograd.grad(value.sum(), spoilt)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert ssim(colour, colour, (3, 24, 24)).allclose(torch.ones(2, dtype=torch.float64))


def test_ssim_in_single_precision_stays_close():
    clean, noisy = pairs()
    assert torch.allclose(
        ssim(noisy.float(), clean.float(), (24, 24)).double(), ssim(noisy, clean, (24, 24)), atol=1e-4
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: psnr(x, x[:3]), r"truth: got shape \(3,\), expected as many pixels as x, \(64,\)"),
        (lambda x: psnr(x, x, data_range=0), r"data_range: got 0, expected a finite number > 0"),
        (lambda x: ssim(x, x[:3], (8, 8)), r"truth: got shape \(3,\)"),
        (lambda x: ssim(x, x, (8, 9)), r"x: got 64 pixels, expected 72 for images \(8, 9\)"),
        (lambda x: ssim(x, x, (8, 8)), r"std: got 1.5, a window of 11 pixels, expected one inside 8 x 8"),
        (lambda x: ssim(x, x, (8, 8), std=-1), r"std: got -1, expected a finite number > 0"),
        (lambda x: ssim(x, x, 64), r"shape: got 64, expected \(height, width\)"),
        (lambda x: ssim(x, x, (8, 8), std=0.8, data_range=math.nan), r"data_range: got nan"),
    ],
)
def test_bad_input(monkeypatch, call, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(64))
