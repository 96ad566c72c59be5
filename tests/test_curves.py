"""Curves with trained bends: identities of the parametrisation, and fits against closed-form optima."""

import pytest
import torch

from refimpl import runtime
from refimpl.landscape import BezierCurve, PolygonalChain, fit_curve

F64 = torch.float64
A, B = torch.tensor([0.0, 1.0, -2.0], dtype=F64), torch.tensor([2.0, 1.0, 4.0], dtype=F64)
T = torch.linspace(0, 1, 13, dtype=F64)
CURVES = [BezierCurve, PolygonalChain, lambda a, b: PolygonalChain(a, b, num_bends=3)]


def bent(curve, seed=0):
    with torch.no_grad():
        curve.bends += torch.randn(curve.bends.shape, dtype=F64, generator=runtime.generator(seed))
    return curve


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("make", CURVES)
def test_curves_start_straight_and_keep_their_ends(make):
    close(make(A, B)(T).detach(), torch.lerp(A, B, T[:, None]))
    curve = bent(make(A, B))
    close(curve(torch.tensor([0.0, 1.0], dtype=F64)).detach(), torch.stack([A, B]))
    assert [name for name, _ in curve.named_parameters()] == ["bends"]
    assert make(A.float(), B.float())(T.float()).dtype == torch.float32


def test_bezier_curve_is_that_of_de_casteljau():
    curve = bent(BezierCurve(A, B))
    bend, t = curve.bends[0], T[:, None]
    close(curve(T), torch.lerp(torch.lerp(A, bend, t), torch.lerp(bend, B, t), t))
    for t, weight in zip(T, 2 * T * (1 - T), strict=True):  # dphi/dtheta
        grad = torch.autograd.grad(curve(t[None]).sum(), curve.bends)[0]
        close(grad, weight.expand_as(grad))


def test_chain_runs_through_its_corners_on_straight_segments():
    curve = bent(PolygonalChain(A, B, num_bends=3))
    corners = curve.points().detach()
    close(curve(T[::3]).detach(), corners)  # at t = 0, 1/4, ...
    parts = curve(T).detach().diff(dim=0).unflatten(0, (4, 3))
    close(parts, (corners.diff(dim=0) / 3)[:, None].expand_as(parts))
    (grad,) = torch.autograd.grad(curve(torch.tensor([0.3], dtype=F64)).sum(), curve.bends)
    close(grad, torch.tensor([0.8, 0.2, 0.0], dtype=F64)[:, None].expand_as(grad))


# Integrals over t of the bend's weight times that of the ends (together), squared, and itself.
OPTIMA = {BezierCurve: (1 / 10, 2 / 15, 1 / 3), PolygonalChain: (1 / 12, 1 / 3, 1 / 2)}


@pytest.mark.parametrize("make", OPTIMA)
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_fit_reaches_the_optimum_of_a_quadratic_loss(make, weight_decay):
    c, curve = torch.tensor([1.0, -1.0, 3.0], dtype=F64), make(A, B)
    history = fit_curve(
        curve,
        lambda points: (points - c).square().sum(1) / 2,
        num_steps=1500,
        lr=0.3,
        weight_decay=weight_decay,
        momentum=0.5,
        points_per_step=64,
        generator=runtime.generator(0),
        schedule="cosine",
    )
    ends, square, once = OPTIMA[make]
    # The penalty on the curve's point, not on the bend, only moves the centre of the quadratic.
    close(curve.bends[0].detach(), (once * c / (1 + weight_decay) - ends * (A + B)) / square, atol=0.06)
    close(torch.stack([curve.start, curve.end]), torch.stack([A, B]))
    assert len(history.loss) == 1500


def test_same_seed_same_bits_after_an_interruption_too(tmp_path):
    data = torch.randn(30, 3, dtype=F64, generator=runtime.generator(5))

    def fitted(checkpoint=None, fail_at=None, ends=(A, B)):
        calls, curve = 0, BezierCurve(*ends)

        def loss(points, batch):
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise KeyboardInterrupt
            return (points[:, None] - batch).square().mean((1, 2))

        options = dict(num_steps=40, lr=0.1, data=data, batch_size=7, generator=runtime.generator(1))
        fit_curve(curve, loss, checkpoint=checkpoint, **options)
        return curve.bends.detach()

    whole, file = fitted(), tmp_path / "curve.pt"
    with pytest.raises(KeyboardInterrupt):
        fitted(file, fail_at=25)
    assert torch.equal(fitted(file), whole) and torch.equal(fitted(), whole)
    with pytest.raises(ValueError, match="different run"):
        fitted(file, ends=(A, B + 1))
