"""Planar and radial flows: the constraints, the identity, and rotations about the centre."""

import pytest
import torch

from refimpl import runtime
from refimpl.autodiff import log_det_jacobian
from refimpl.flows import Planar, Radial, random_rotation

F64 = torch.float64


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=0)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def put(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value, dtype=F64))


@pytest.mark.parametrize("kind", [Planar, Radial])
def test_starts_as_the_identity(kind):
    f, x = kind(3, runtime.generator(0)), randn(5, 3).float()
    for z, log_det in (f(x), f.inverse(x)):
        close(z, x, atol=1e-6)
        close(log_det, torch.zeros(5), atol=1e-6)


@pytest.mark.parametrize("along", [-30.0, -3.0, 0.0, 3.0, 30.0, 1000.0])
def test_planar_is_invertible_however_u_points(along):
    """w.u of -3 unconstrained folds the line along w; with the constraint it only crushes it."""
    f = Planar(2, runtime.generator(1)).double()
    line = torch.linspace(-4, 4, 401, dtype=F64)[:, None] * f.w / f.w.square().sum()
    put(f.u, along * f.w / f.w.square().sum())
    z, log_det = f(line)
    assert ((z @ f.w).diff() > 0).all()
    back, back_log_det = f.inverse(z)
    # Where the line is crushed a rounding error of z comes back multiplied.
    assert ((back - line).abs() <= 1e-13 * (1 + z.abs().amax() + (-log_det).exp()[:, None])).all()
    assert ((log_det + back_log_det).abs() < 1e-7)[log_det > -15].all()
    folded = line + (line @ f.w).tanh()[:, None] * f.u
    assert ((folded @ f.w).diff() > 0).all() == (along > -1)


def test_planar_inverse_is_differentiable_in_the_parameters():
    """d x / d b at fixed z by the implicit function theorem, against finite differences."""
    f, z, step = Planar(3, runtime.generator(2)).double(), randn(4, 3, seed=3), 1e-5
    put(f.u, randn(3, seed=4))
    (gradient,) = torch.autograd.grad(sum(part.square().sum() for part in f.inverse(z)), f.b)
    sides = []
    for b in (step, -step):
        put(f.b, b)
        sides.append(sum(part.square().sum().item() for part in f.inverse(z)))
    close(gradient, (sides[0] - sides[1]) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("raw", [-5.0, 3.0])
def test_radial_commutes_with_rotations_about_its_centre(raw):
    f, turn, x = Radial(3, runtime.generator(0)).double(), random_rotation(3, runtime.generator(1)), randn(6, 3)
    put(f.raw, raw)
    z, log_det = f(x)
    turned, turned_log_det = f(f.centre + (x - f.centre) @ turn.T)
    close(turned, f.centre + (z - f.centre) @ turn.T)
    close(turned_log_det, log_det)
    elsewhere = f(x @ turn.T)[0] - z @ turn.T  # about the origin it does not
    assert elsewhere.abs().max() > 0.1


@pytest.mark.parametrize("raw", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("log_alpha", [-12.0, 0.0, 12.0])
def test_radial_is_exact_at_the_extremes_and_at_its_centre(raw, log_alpha):
    f = Radial(2, runtime.generator(0)).double()
    put(f.raw, raw)
    put(f.log_alpha, log_alpha)
    x = f.centre.detach() + torch.tensor([[0.0, 0.0], [0.3, -0.4], [50.0, 20.0]], dtype=F64)
    z, log_det = f(x)
    back, back_log_det = f.inverse(z)
    assert log_det.isfinite().all()
    assert torch.equal(back[0], x[0])
    stretch = (x - f.centre).norm(dim=-1) / (z - f.centre).norm(dim=-1)  # by which a rounding error of z comes back
    assert ((back - x).abs().amax(-1) <= 1e-13 * (1 + stretch))[1:].all()
    assert (log_det + back_log_det)[1:].abs().max() < 1e-7
    close(log_det[1:], log_det_jacobian(lambda v: f(v)[0], x[1:]), atol=1e-6)
    assert torch.autograd.grad(log_det.sum() + z.sum(), f.centre)[0].isfinite().all()
