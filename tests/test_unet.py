"""The U-Net: shapes, zero start, what it sees, and that it learns."""

import jaxtyping
import pytest
import torch

from refimpl.nets import unet

F64 = torch.float64


def live(shape=(8, 8), seed=0, **settings):
    """A network that does not start at zero."""
    settings = dict(width=8, multipliers=(1, 2), blocks=1, attention=(4,)) | settings
    net = unet(shape, **settings).double()
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = 0.2 * torch.randn(p.shape, dtype=F64, generator=generator) + (1.0 if p.ndim == 1 else 0.0)
    return net


def points(*batch, dim=64):
    return torch.randn(*batch, dim, dtype=F64, generator=torch.Generator().manual_seed(1))


def test_starts_at_exactly_zero_and_gets_a_gradient():
    net = unet((3, 8, 8), width=8, multipliers=(1, 2), blocks=1)
    out = net(torch.randn(5, 192), torch.rand(5, 1))
    assert (out == 0).all()
    (out + torch.randn(5, 192)).square().sum().backward()
    assert net.last[-1].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((8, 8), {}),
        ((3, 8, 12), dict(multipliers=(1, 2, 3), attention=(8, 4, 2))),
        ((2, 6, 4), dict(blocks=2, attention=(), width=6)),
        ((1, 5, 7), dict(multipliers=(2,))),
    ],
)
def test_rows_in_rows_out_for_any_batch(shape, settings):
    net, dim = live(shape, **settings), torch.Size(shape).numel()
    x = points(2, 3, dim=dim)
    t = torch.rand(2, 3, 1, dtype=F64)
    out = net(x, t)
    assert out.shape == x.shape and out.dtype == F64 and out.abs().max() > 0
    assert torch.allclose(out[1, 2], net(x[1, 2], t[1, 2]))
    assert torch.allclose(net(x, t[0, 0]), net(x, t[0, 0].expand(2, 3, 1)))


def test_every_pixel_sees_every_pixel_and_the_time():
    net, x = live(), points()
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, torch.tensor([0.3], dtype=F64)), x)
    assert (jacobian.abs() > 0).all()
    t = torch.linspace(0, 1, 1001, dtype=F64).unsqueeze(1)
    along = net(x.expand(1001, 64), t)
    # No two times look alike, and neighbours among 1000 levels are told apart.
    assert torch.pdist(along).min() > 1e-4


def test_times_are_scaled():
    net, slow = live(), live(time_scale=1000.0)
    x = points(4)
    assert torch.allclose(net(x, torch.tensor([0.25], dtype=F64)), slow(x, torch.tensor([250.0], dtype=F64)))


def test_context_matters_and_is_spread_over_the_batch():
    net, x, t = live(dim_context=2), points(3), torch.tensor([0.5], dtype=F64)
    one = torch.tensor([1.0, -1.0], dtype=F64)
    assert torch.allclose(net(x, t, one), net(x, t, one.expand(3, 2)))
    assert not torch.allclose(net(x, t, one), net(x, t, -one), atol=1e-3)


def test_sizes_of_the_literature():
    # About 20 million for 64 x 64 colour images.
    with torch.device("meta"):
        net = unet((3, 64, 64), width=96, multipliers=(1, 2, 2, 2))
    assert 19e6 < sum(p.numel() for p in net.parameters()) < 23e6


def test_learns_the_noise_of_two_images():
    torch.manual_seed(0)
    net = unet((8, 8), width=8, multipliers=(1, 2), blocks=1)
    images = torch.sign(torch.randn(2, 64))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        clean, noise, t = images[torch.randint(2, (16,))], torch.randn(16, 64), torch.rand(16, 1)
        loss = (net(clean * (1 - t).sqrt() + noise * t.sqrt(), t) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 and sum(losses[-10:]) / 10 < 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unet((8,)), r"shape: got \(8,\), expected \(height, width\)"),
        (lambda: unet((6, 6)), r"shape: got \(6, 6\), expected multiples of 4 for 3 stages"),
        (lambda: unet((8, 8), width=0), r"width: got 0"),
        (lambda: unet((8, 8), width=7), r"width: got 7, expected an even number"),
        (lambda: unet((8, 8), blocks=0), r"blocks: got 0"),
        (lambda: unet((8, 8), multipliers=()), r"multipliers: got \(\), expected a list"),
        (lambda: unet((8, 8), multipliers=(1, 0)), r"multipliers\[1\]: got 0"),
        (lambda: unet((8, 8), attention=16), r"attention: got 16, expected a list"),
        (lambda: unet((8, 8), dim_context=-1), r"dim_context: got -1"),
        (lambda: unet((8, 8), time_scale=0.0), r"time_scale: got 0.0"),
        (lambda: live()(points(dim=63), torch.zeros(1)), r"x: got 63 features, expected 64"),
        (lambda: live()(points(2), torch.zeros(2)), r"t: got 2 features, expected 1"),
        (lambda: live()(points(), torch.zeros(1), torch.zeros(3)), r"context: got 3 features, expected 0"),
        (lambda: live(dim_context=3)(points(), torch.zeros(1)), r"context: got 0 features, expected 3"),
    ],
)
def test_bad_input(monkeypatch, call, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(ValueError, match=message):
        call()
