"""Continuous flows against the matrix exponential, the solver's own Jacobian, and the mean over probes."""

import pytest
import torch
from torch import nn

from refimpl import runtime
from refimpl.autodiff import log_det_jacobian
from refimpl.flows import Continuous

F64 = torch.float64
A = torch.tensor([[0.3, -1.0, 0.2], [0.8, -0.5, 0.0], [0.1, 0.4, 0.6]], dtype=F64)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def linear(t, x, context=None):
    return x @ A.T


def curved(t, x, context=None):
    return torch.tanh(x @ A.T + t) - 0.3 * x * torch.cos(3 * t)


@pytest.mark.parametrize("settings", [{"num_steps": 100}, {"num_steps": None, "tolerance": 1e-10}])
def test_linear_field_is_the_matrix_exponential_and_its_log_det_the_trace(settings):
    flow, x = Continuous(3, linear, **settings), randn(7, 3)
    z, log_det = flow(x)
    torch.testing.assert_close(z, x @ torch.linalg.matrix_exp(A).T, atol=2e-9, rtol=0)
    torch.testing.assert_close(log_det, A.trace().expand(7), atol=1e-13, rtol=0)
    back, log_det = flow.inverse(x)
    torch.testing.assert_close(back, x @ torch.linalg.matrix_exp(-A).T, atol=2e-9, rtol=0)
    torch.testing.assert_close(log_det, -A.trace().expand(7), atol=1e-13, rtol=0)


def test_errors_fall_with_the_fourth_power_of_the_step():
    x = randn(20, 3)
    true = Continuous(3, curved, num_steps=400)(x)
    errors = []
    for n in (10, 20, 40):
        found = Continuous(3, curved, num_steps=n)(x)
        errors.append([(a - b).abs().max() for a, b in zip(found, true, strict=True)])
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        for a, b in zip(coarse, fine, strict=True):
            assert 12 < a / b < 22  # 16 in the limit


def test_integral_of_the_trace_is_the_log_det_of_the_solver():
    x, flow = randn(20, 3), Continuous(3, curved, num_steps=80)
    torch.testing.assert_close(flow(x)[1], log_det_jacobian(lambda x: flow(x)[0], x), atol=1e-7, rtol=0)


def test_evaluations_are_counted_and_grow_with_accuracy():
    flow, counts = Continuous(3, curved, num_steps=None), []
    for tolerance in (1e-3, 1e-6, 1e-9):
        flow.tolerance = tolerance
        flow(randn(5, 3))
        counts.append(flow.num_evaluations)
    assert counts == sorted(set(counts))
    flow.num_steps = 7
    flow(randn(5, 3))
    assert flow.num_evaluations == 4 * 7


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_one_probe_a_solve_is_unbiased_and_stays_the_same_within_it(kind):
    x = randn(1, 3)
    exact = Continuous(3, curved)(x)[1]
    flow = Continuous(3, curved, trace="hutchinson", kind=kind, generator=runtime.generator(1))
    z, log_det = flow(x.expand(4000, 3))
    assert torch.equal(z, Continuous(3, curved)(x)[0].expand(4000, 3)) or z.std(0).max() < 1e-12
    error = log_det.std() / 4000**0.5
    assert abs(log_det.mean() - exact) < 4 * error
    # A probe drawn afresh at each of the 80 evaluations would average most of this spread away: for a linear field
    # the value must be eps^T A eps itself.
    linear_flow = Continuous(3, linear, trace="hutchinson", kind=kind, generator=runtime.generator(1))
    spread = linear_flow(x.expand(4000, 3))[1].var()
    s = (A + A.T) / 2
    variance = 2 * (s.square().sum() - (s.diagonal().square().sum() if kind == "rademacher" else 0))
    assert spread == pytest.approx(variance.item(), rel=0.15)


@pytest.mark.parametrize("num_steps", [None, 40])
def test_both_gradients_are_those_of_finite_differences(num_steps):
    torch.manual_seed(0)
    flow = Continuous(2, num_steps=num_steps, tolerance=1e-9, width=8, depth=2, dim_context=1).double()
    for p in flow.parameters():
        nn.init.normal_(p, std=0.5)
    x, context = randn(4, 2).requires_grad_(), randn(4, 1, seed=1).requires_grad_()
    inputs = [x, context, *flow.parameters()]

    def loss():
        z, log_det = flow(x, context)
        return z.square().sum() - log_det.sum()

    direct = torch.autograd.grad(loss(), inputs)
    flow.adjoint = True
    adjoint = torch.autograd.grad(loss(), inputs)
    for tensor, a, b in zip(inputs, direct, adjoint, strict=True):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.view(-1)[0] += sign * 1e-5
                values.append(loss().item())
                tensor.view(-1)[0] -= sign * 1e-5
        slope = (values[0] - values[1]) / 2e-5
        assert a.flatten()[0].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_starts_as_the_identity_and_learns():
    torch.manual_seed(0)
    flow, x = Continuous(2, num_steps=10, width=16), torch.randn(256, 2) * 3
    z, log_det = flow(x)
    assert torch.equal(z, x) and (log_det == 0).all()
    optimizer, losses = torch.optim.Adam(flow.parameters(), lr=0.02), []
    for _ in range(60):
        z, log_det = flow(x)
        loss = (0.5 * z.square().sum(-1) - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # From 9 to about the optimum 1 + 2 log 3 = 3.2
    assert losses[0] > 7 and losses[-1] < 3.7


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="trace: got 'half'"):
        Continuous(2, trace="half")
    with pytest.raises(ValueError, match="num_steps: got 0"):
        Continuous(2, num_steps=0)
