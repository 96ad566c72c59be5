"""Flows of images against dense Jacobians and pixel_shuffle, bits against an entropy, patches against permutations."""

import math

import pytest
import torch
from torch.distributions import AffineTransform, SigmoidTransform
from torch.nn import functional as F

from refimpl import runtime
from refimpl.autodiff import jacobian, log_det_jacobian
from refimpl.data import digits
from refimpl.flows import (
    AffineMap,
    Chain,
    Flow,
    Logit,
    Mixing,
    MultiScale,
    Squeeze,
    StandardNormal,
    bits_per_dim,
    coupling_flow,
    dequantise,
    glow,
    glow_step,
    mixer_flow,
    realnvp_image,
)

F64 = torch.float64


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=0)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def stir(f):
    f.double().eval()
    with torch.no_grad():
        for i, p in enumerate(f.parameters()):
            p += 0.3 * randn(*p.shape, seed=i)
    return f


def flat(f, *event):
    """f as a map of vectors."""
    return lambda v: f(v.unflatten(-1, event))[0].flatten(-len(event))


# Scales


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_squeeze_is_pixel_unshuffle(batch):
    x = randn(*batch, 2, 4, 6)
    z, log_det = Squeeze()(x)
    assert torch.equal(z, F.pixel_unshuffle(x, 2))
    assert torch.equal(Squeeze().inverse(z)[0], x)
    assert torch.equal(log_det, torch.zeros(batch, dtype=F64))
    assert Squeeze()(x.new_zeros(0, 2, 4, 6))[0].shape == (0, 8, 2, 3)  # where torch itself returns its input


def two_scales():
    return stir(glow(1, 4, num_scales=2, num_steps=2, width=8, generator=runtime.generator(0)))


class Forgetful(MultiScale):
    """Leaves the final half of the channels out of the likelihood: the usual bug."""

    def forward(self, x, context=None):
        z, log_det = super().forward(x, context)
        kept, final = F.pixel_unshuffle(z, 2).chunk(2, -3)
        return F.pixel_shuffle(torch.cat([kept, torch.zeros_like(final)], -3), 2), log_det


def test_likelihood_of_two_scales_is_that_of_the_dense_jacobian():
    f, x, base = two_scales(), randn(5, 1, 4, 4), StandardNormal([1, 4, 4]).double()

    def dense(flow):
        z = flow(x)[0].flatten(1)
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        return normal + log_det_jacobian(flat(f, 1, 4, 4), x.flatten(1))

    close(Flow(f, base).log_prob(x), dense(f))
    forgetful = Forgetful(f.scale, f.rest)
    assert (Flow(forgetful, base).log_prob(x) - dense(f)).abs().min() > 1e-2


def test_one_half_of_the_latent_is_final_after_the_first_scale():
    f, x = two_scales(), randn(3, 1, 4, 4)
    first = f.scale(F.pixel_unshuffle(x, 2))[0]
    last = F.pixel_unshuffle(f(x)[0], 2)
    close(last[:, 2:], first[:, 2:])
    assert (last[:, :2] - first[:, :2]).abs().min() > 1e-6


@pytest.mark.parametrize("make", [glow, realnvp_image])
def test_every_latent_hears_every_pixel(make):
    f = stir(make(1, 8, num_scales=2, num_steps=4, width=8))
    heard = jacobian(flat(f, 1, 8, 8), randn(4, 64)).abs().amax(0) > 0
    assert heard.all()


def test_a_fresh_glow_normalises_the_channels_of_digits():
    x = dequantise(16 * digits()[0][:200].view(-1, 1, 8, 8), 17, runtime.generator(0))
    f = glow(1, 8, num_steps=1, width=8, tau=AffineMap(), generator=runtime.generator(0))
    z = F.pixel_unshuffle(f(x)[0], 2)[:, 2:]  # the final half of the first scale: normalised, rotated, and no more
    close(z.mean((0, 2, 3)), torch.zeros(2), atol=1e-4)
    assert (
        f.scale.bijections[0].bijections[0].initialised & f.rest.scale.bijections[0].bijections[0].initialised
    ).all()


def test_bad_images():
    with pytest.raises(ValueError, match="size"):
        glow(1, 6, num_scales=2)
    with pytest.raises(ValueError, match="3 x 4 pixels"):
        Squeeze()(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="dim"):
        glow_step(1)
    with pytest.raises(ValueError, match="context"):
        stir(glow_step(2, width=4, dim_context=3))(randn(5, 2, 4, 4))


# Grey levels


def test_uniform_density_needs_the_bits_of_its_levels():
    close(bits_per_dim(torch.zeros(3, dtype=F64), 64, 17), torch.full((3,), math.log2(17), dtype=F64))


def test_bits_of_a_histogram_are_its_entropy():
    """A density that is constant on each level's interval codes the levels as well as their frequencies allow."""
    pixels = (16 * digits()[0]).long()
    share = torch.bincount(pixels.flatten(), minlength=17).double() / pixels.numel()
    density = 17 * share[(17 * dequantise(pixels.double(), 17, runtime.generator(0))).long()]
    bits = bits_per_dim(density.log().sum(-1), 64, 17).mean()
    close(bits, -(share * share.log2()).sum())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.float32, F64])
def test_dequantised_levels_stay_in_their_interval(dtype):
    x = torch.arange(17, dtype=dtype).repeat(5000, 1)
    y = dequantise(x, 17, runtime.generator(0))
    noise = 17 * y.double() - torch.arange(17)
    assert y.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert (y < 1).all() and noise.min() > -1e-5 and noise.max() < 1 + 1e-5
    close(noise.mean(0), torch.full((17,), 0.5), atol=0.02)
    close(noise.std(0), torch.full((17,), 12**-0.5), atol=0.02)


def test_rounding_does_not_reach_1(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *a, **k: torch.tensor(1 - 2.0**-24))
    assert dequantise(torch.tensor(16.0), 17) < 1


@pytest.mark.parametrize("value", [-1.0, 17.0, 0.5, torch.nan])
def test_other_values_are_no_grey_levels(value):
    with pytest.raises(ValueError, match="whole numbers 0 ... 16"):
        dequantise(torch.tensor([0.0, value]), 17)


def test_logit_is_that_of_torch_distributions():
    x = torch.rand(4, 1, 2, 3, dtype=F64, generator=runtime.generator(0))
    z, log_det = Logit(0.1)(x)
    expected = SigmoidTransform().inv(AffineTransform(0.1, 0.8)(x))
    close(z, expected)
    slopes = math.log(0.8) - SigmoidTransform().log_abs_det_jacobian(expected, 0)
    close(log_det, slopes.sum((1, 2, 3)))
    assert Logit()(torch.tensor([[[0.0, 1.0]]]))[0].isfinite().all()
    with pytest.raises(ValueError, match="alpha"):
        Logit(0.5)


# Patches


def patches(x, order):
    """Images of 4 x 4 pixels whose four patches of 2 x 2 are put in another order."""
    cut = F.pixel_unshuffle(x, 2)
    return F.pixel_shuffle(cut.flatten(-2)[..., order].view_as(cut), 2)


@pytest.mark.parametrize("across", ["features", "patches"])
def test_mixing_features_is_equivariant_to_the_order_of_patches(across):
    f, x, order = stir(Mixing(coupling_flow(4, AffineMap(), 2, width=8), 2, across)), randn(3, 1, 4, 4), [2, 0, 3, 1]
    (z, log_det), (moved, moved_log_det) = f(x), f(patches(x, order))
    same = torch.allclose(moved, patches(z, order)) and torch.allclose(moved_log_det, log_det)
    assert same == (across == "features")


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("across", ["features", "patches"])
def test_who_hears_whom(across, shift):
    """Features of one patch, or one place in all patches; a shift moves the borders of the patches."""
    f = stir(Mixing(coupling_flow(4, AffineMap(), 3, width=8), 2, across, shift=shift))
    heard = jacobian(flat(f, 1, 4, 4), randn(9, 16)).abs().amax(0) > 0
    row, column = torch.arange(16) // 4 - shift, torch.arange(16) % 4 - shift
    patch, place = row % 4 // 2 * 2 + column % 4 // 2, row % 2 * 2 + column % 2
    group = patch if across == "features" else place
    assert torch.equal(heard, group[:, None] == group)


def test_shifts_let_every_pixel_of_a_mixer_flow_be_heard_and_contexts_matter():
    f, x = stir(mixer_flow(1, 8, 2, 2, width=8, dim_context=2)), randn(2, 64)
    heard = jacobian(lambda v: flat(lambda y: f(y, torch.ones(2, dtype=F64)), 1, 8, 8)(v), x).abs().amax(0) > 0
    assert heard.all()
    images, contexts = x.view(2, 1, 8, 8), randn(2, 2)
    for i in range(2):
        close(f(images, contexts)[0][i], f(images[i], contexts[i])[0])
    assert (f(images, contexts)[0] - f(images, contexts.flip(0))[0]).abs().max() > 1e-3


def test_bad_patches():
    with pytest.raises(ValueError, match="across"):
        Mixing(Chain(coupling_flow(4, AffineMap(), 2)), 2, "channels")
    for size, patch in ((8, 3), (4, 4)):
        with pytest.raises(ValueError, match="size"):
            mixer_flow(1, size, patch, 1)
