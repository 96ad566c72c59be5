"""Kernel conditioners and shared networks: parameter counts, what is shared, what starts where."""

import copy
import functools
import io
import math
import pickle

import pytest
import torch

from refimpl import runtime
from refimpl.flows import (
    AdditiveMap,
    AffineMap,
    Chain,
    Coupling,
    Flow,
    KernelConditioner,
    NanoFlow,
    SplineMap,
    StandardNormal,
    coupling_flow,
)

F64 = torch.float64


def count(module):
    return sum(p.numel() for p in module.parameters())


# Kernels


def test_kernel_conditioner_is_the_sum_over_its_points():
    net = KernelConditioner(2, 3, num_points=4, length=0.7, generator=runtime.generator(0)).double()
    net.weight.data.copy_(torch.randn(3, 4, dtype=F64, generator=runtime.generator(1)))
    x = torch.randn(2, dtype=F64, generator=runtime.generator(2))
    distances = [math.dist(x.tolist(), point) for point in net.points.tolist()]
    want = sum(net.weight[:, j] * math.exp(-(d**2) / (2 * 0.49)) for j, d in enumerate(distances))
    torch.testing.assert_close(net(x), want)


def test_kernel_coupling_starts_as_the_identity_with_few_parameters():
    coupling = Coupling(5, AffineMap(), functools.partial(KernelConditioner, num_points=16))
    x = torch.randn(7, 5)
    assert torch.equal(coupling(x)[0], x)
    assert count(coupling) == 16 * (2 + 2 * 3) + 1
    assert count(coupling) * 100 < count(Coupling(5, AffineMap()))
    coupling(x)[1].sum().backward()
    assert coupling.net.weight.grad.abs().max() > 0


def test_kernel_sees_its_context_and_forgets_far_points():
    net = KernelConditioner(2, 3, num_points=8, dim_context=2, generator=runtime.generator(3))
    net.weight.data.fill_(1.0)
    x = torch.zeros(1, 2)
    assert not torch.equal(net(x, torch.zeros(2)), net(x, torch.ones(2)))
    assert net(x + 100, torch.zeros(2)).abs().max() == 0
    with pytest.raises(ValueError, match="context: got None"):
        net(x)


# NanoFlow


@pytest.mark.parametrize(("mode", "want"), [("naive", 1186), ("decomposed", 1648), ("full", 1808)])
def test_nanoflow_counts(mode, want):
    """Estimator 1 -> 32 -> 32: 1120. Projection 32 -> 2: 66, once or 8 times. Embedding of 4: 8 x 4 and 32 x 4 more."""
    flow = NanoFlow(2, 8, AffineMap(), mode, width=32)
    assert flow.num_parameters == count(flow) == want
    assert sum(v.numel() for v in flow.state_dict().values()) == want
    assert count(coupling_flow(2, AffineMap(), 8, width=32)) == 8 * 1186


def test_depth_is_cheap():
    few, many = [NanoFlow(4, k, SplineMap(), width=64).num_parameters for k in (4, 5)]
    assert many - few == 64 * 2 * 23 + 2 * 23 + 4  # one projection and one embedding


@pytest.mark.parametrize("mode", ["naive", "decomposed", "full"])
def test_nanoflow_starts_as_the_identity_and_travels(mode):
    torch.manual_seed(0)
    flow, x = NanoFlow(4, 4, AffineMap(), mode, width=16, dim_context=2), torch.randn(5, 4)
    context = torch.randn(5, 2)
    assert torch.equal(flow(x, context)[0], x)
    for p in flow.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    other = NanoFlow(4, 4, AffineMap(), mode, width=16, dim_context=2)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x, context)[0], flow(x, context)[0])
    twin = copy.deepcopy(flow)
    twin.shared[0].weight.data.mul_(2)  # a copy shares within itself, not with the original
    assert torch.equal(other(x, context)[0], flow(x, context)[0])
    assert not torch.equal(twin(x, context)[0], flow(x, context)[0])
    assert twin.double()(x.double(), context.double())[0].dtype == F64


@pytest.mark.parametrize(("mode", "same", "same_projected"), [("naive", 1, 1), ("decomposed", 0, 1), ("full", 0, 0)])
def test_what_is_shared_and_what_is_not(mode, same, same_projected):
    torch.manual_seed(0)
    flow, x = NanoFlow(2, 2, AdditiveMap(), mode, width=16), torch.randn(50, 1)
    for p in flow.parameters():
        p.data.add_(0.5 * torch.randn_like(p))
    first, second = [coupling.net for coupling in flow.bijections]
    assert first.shared is second.shared is flow.shared
    assert torch.equal(first(x), second(x)) == same
    second.own.load_state_dict(first.own.state_dict())
    assert torch.equal(first(x), second(x)) == same_projected


@pytest.mark.parametrize("mode", ["naive", "full"])
def test_a_part_of_the_flow_is_complete(mode):
    flow = NanoFlow(2, 4, AffineMap(), mode, width=8)
    part = Chain(*flow.bijections[:2])
    assert {id(p) for p in flow.shared.parameters()} <= {id(p) for p in part.parameters()}
    for p in flow.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    other = Chain(*NanoFlow(2, 4, AffineMap(), mode, width=8).bijections[:2])
    other.load_state_dict(part.state_dict())
    x = torch.randn(5, 2)
    assert torch.equal(other(x)[0], part(x)[0])


def test_the_saved_flow_has_the_shared_network_once_also_within_a_flow_and_misses_no_key():
    flow, other = [Flow(NanoFlow(2, 3, AffineMap(), width=8), StandardNormal([2])) for _ in range(2)]
    state = flow.state_dict()
    pointers = [value.data_ptr() for value in state.values()]
    assert len(set(pointers)) == len(pointers) and "bijection.shared.0.weight" in state
    other.load_state_dict(state)
    x = torch.randn(5, 2)
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
    del state["bijection.shared.0.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)
    assert pickle.loads(pickle.dumps(flow)).state_dict().keys() == flow.state_dict().keys()


def test_embeddings_start_orthogonal():
    flow = NanoFlow(2, 3, AffineMap(), width=8, dim_embedding=5)
    e = torch.stack([coupling.net.embedding for coupling in flow.bijections]).detach()
    torch.testing.assert_close(e @ e.T, torch.eye(3), atol=1e-6, rtol=0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="dim: got 3, expected an even number"):
        NanoFlow(3, 2, AffineMap())
    with pytest.raises(ValueError, match="mode: got 'half'"):
        NanoFlow(2, 2, AffineMap(), "half")
    with pytest.raises(ValueError, match="depth: got 1"):
        NanoFlow(2, 2, AffineMap(), depth=1)
