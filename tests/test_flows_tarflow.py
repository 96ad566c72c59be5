"""TarFlow: causality, patches against unfold, the cache against the parallel pass, Tweedie against a normal density."""

import math

import pytest
import torch
from torch.nn import functional as F

from refimpl import runtime
from refimpl.autodiff import jacobian, log_det_jacobian
from refimpl.flows import (
    AdditiveMap,
    AffineMap,
    Diagonal,
    Flow,
    GINMap,
    Patches,
    SplineMap,
    StandardNormal,
    TarBlock,
    tarflow,
    tweedie,
)

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def shaken(module, scale=0.1):
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


@pytest.mark.parametrize("flip", [False, True])
def test_jacobian_is_block_triangular(flip):
    block, x = shaken(TarBlock(5, 3, AffineMap(), flip=flip, width=16)), randn(4, 5, 3)
    j = jacobian(lambda x: block(x.unflatten(-1, (5, 3)))[0].flatten(-2), x.flatten(-2))
    j = j.view(4, 5, 3, 5, 3).transpose(2, 3)  # sample, token out, token in
    j = j.flip(1, 2) if flip else j
    out, into = torch.tril_indices(5, 5, -1)
    assert (j[:, into, out] == 0).all()  # no token hears of later ones
    assert (j[:, out, into].abs() > 0).all()  # and each hears of all before it
    for i in range(5):
        diagonal = j[:, i, i]
        assert (diagonal - torch.diag_embed(diagonal.diagonal(dim1=-2, dim2=-1)) == 0).all()
    assert torch.equal(j[:, 0, 0], torch.eye(3, dtype=F64).expand(4, 3, 3))  # the first is left alone
    scales = [j[:, i, i].diagonal(dim1=-2, dim2=-1).abs().log().sum(-1) for i in range(5)]
    torch.testing.assert_close(block(x)[1], sum(scales), atol=1e-12, rtol=0)


def test_starts_as_the_identity_and_log_det_is_a_sum():
    flow, x = tarflow((3, 4, 4), 2, 2, width=16).double(), randn(5, 3, 4, 4)
    z, log_det = flow(x)
    assert torch.equal(z, x) and (log_det == 0).all()
    # A bias of 0.1 on every log scale: 2 blocks move 3 of 4 tokens with 12 numbers each by exp(-0.1).
    for block in flow.bijection.bijections:
        block.project.bias.data[:12] = 2 * math.atanh(0.1 / 2)
    torch.testing.assert_close(flow(x)[1], torch.full((5,), -0.1 * 2 * 3 * 12, dtype=F64))


@pytest.mark.parametrize("tau", [AffineMap(), AdditiveMap(), SplineMap()])
def test_the_cache_gives_what_the_parallel_pass_gives(tau):
    flow, x = shaken(tarflow((2, 6, 4), 2, 3, tau=tau, width=16, dim_context=3), 0.05), randn(6, 2, 6, 4)
    context = randn(6, 3, seed=1)
    z, log_det = flow(x, context)
    back, log_det_back = flow.inverse(z, context)
    torch.testing.assert_close(back, x, atol=1e-11, rtol=0)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-10, rtol=0)
    exact = log_det_jacobian(lambda x: flow(x.unflatten(-1, (2, 6, 4)), context)[0].flatten(1), x.flatten(1))
    torch.testing.assert_close(log_det, exact, atol=1e-11, rtol=0)
    if isinstance(tau, AdditiveMap):
        assert (log_det == 0).all()


def test_patches_are_those_of_unfold_and_come_back():
    patches, x = Patches(TarBlock(6, 12, AffineMap()), (3, 4, 6), 2), randn(5, 3, 4, 6)
    tokens = patches.split(x)
    assert torch.equal(tokens, F.unfold(x, 2, stride=2).transpose(1, 2))
    assert torch.equal(patches.join(tokens), x)


def test_blocks_alternate_so_that_every_patch_is_heard():
    flow, x = shaken(tarflow((1, 4, 4), 2, 2, width=16)), randn(1, 1, 4, 4)
    j = jacobian(lambda x: flow(x.unflatten(-1, (1, 4, 4)))[0].flatten(1), x.flatten(1))[0]
    # Block 1 moves the last patch by all others, block 2 the first by the last: each output hears of every input.
    assert ((j != 0).sum(1) == 16).sum() >= 4
    assert [block.flip for block in flow.bijection.bijections] == [False, True]


def test_context_moves_all_patches_but_the_first():
    block = shaken(TarBlock(4, 2, AffineMap(), width=16, dim_context=2))
    x = randn(4, 2)
    moved = (block(x, randn(2))[0] - block(x, randn(2, seed=1))[0]).abs().sum(-1) > 0
    assert moved.tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match=r"context: got None, expected shape \(\*batch, 2\)"):
        block(x)


def test_gradients_by_finite_differences_in_both_directions():
    flow, x = shaken(tarflow((1, 4, 4), 2, 2, width=8, num_heads=2)), randn(2, 1, 4, 4)
    weight = flow.bijection.bijections[1].layers[0].qkv.weight
    for direction in (flow.forward, flow.inverse):

        def loss(direction=direction):
            z, log_det = direction(x)
            return z.square().sum() + log_det.sum()

        grad = torch.autograd.grad(loss(), weight)[0]
        row, column = divmod(grad.abs().argmax().item(), 8)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[row, column] += sign * 1e-5
                values.append(loss().item())
                weight[row, column] -= sign * 1e-5
        assert grad[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_tweedie_of_a_normal_density_is_the_posterior_mean():
    """Clean N(0, 1 - s^2) with noise s: density N(0, 1) of the noisy one, posterior mean (1 - s^2) x."""
    x, sigma = randn(5, 3), 0.3
    flow = Flow(Diagonal(3).double(), StandardNormal([3]).double())
    torch.testing.assert_close(tweedie(flow, x, sigma), (1 - sigma**2) * x)
    image = Flow(shaken(tarflow((1, 4, 4), 2, 2, width=8)), StandardNormal([1, 4, 4]).double())
    y = randn(2, 1, 4, 4).requires_grad_()
    slope = torch.autograd.grad(image.log_prob(y).sum(), y)[0]
    torch.testing.assert_close(tweedie(image, y, 0.5), y + 0.25 * slope)


def test_learns_what_a_normal_density_cannot():
    """Two patches of one number, the second the square of the first: the flow gains what the dependence is worth."""
    torch.manual_seed(0)
    first = torch.randn(512, 1, 1, 1)
    x = torch.cat([first, (first**2 - 1) / 2**0.5 + 0.2 * torch.randn_like(first)], -1)
    flow = Flow(tarflow((1, 1, 2), 1, 2, width=16, num_layers=1), StandardNormal([1, 1, 2]))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(150):
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    normal = 2 * 0.5 * math.log(2 * math.pi * math.e)
    assert loss < normal - 0.8  # log(1 / 0.2) = 1.6 would be all


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_heads: got 3, expected a divisor of width=64"):
        tarflow((1, 4, 4), num_heads=3)
    with pytest.raises(ValueError, match="patch: got 3"):
        tarflow((1, 4, 4), 3)
    with pytest.raises(TypeError, match="tau: got a GINMap"):
        tarflow((1, 4, 4), tau=GINMap())
