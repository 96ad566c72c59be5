"""Linear bijections against dense matrices, conv2d, and the distribution of a Haar rotation."""

import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from refimpl import runtime
from refimpl.autodiff import jacobian, log_det_jacobian
from refimpl.flows import (
    ActNorm,
    BlockTriangularLinear,
    InvertibleLinear,
    KernelConditioner,
    Planar,
    Radial,
    Reshape,
    Rotation,
    glow_step,
    random_rotation,
)

F64 = torch.float64


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=0)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def stir(f, seed=7):
    """`f` in float64, every parameter moved."""
    f.double()
    with torch.no_grad():
        for p in f.parameters():
            p += 0.3 * randn(*p.shape, seed=seed)
    return f


# ActNorm


@pytest.mark.parametrize("event", [(3,), (3, 4, 2)])
def test_first_batch_gets_mean_0_and_standard_deviation_1(event):
    norm = ActNorm(3, len(event)).double()
    scale = torch.tensor([1e-12, 1.0, 1e6], dtype=F64).view(3, *[1] * (len(event) - 1))
    x = scale * (randn(5, 6, *event) + 4)
    z, log_det = norm(x)
    rows = z.movedim(-len(event), -1).reshape(-1, 3)
    close(rows.mean(0), torch.zeros(3), atol=1e-9)
    close(rows.std(0, correction=0), torch.ones(3), atol=1e-9)
    close(log_det, log_det_jacobian(lambda v: norm(v.view_as(x))[0].flatten(-len(event)), x.flatten(-len(event))), 1e-8)


def test_only_the_first_batch_counts():
    norm = ActNorm(2)
    norm(torch.zeros(0, 2))
    norm.eval()(randn(9, 2).float())
    assert not norm.initialised
    norm.train()(randn(9, 2).float() + 1)
    first = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(randn(9, 2, seed=1).float() * 5)
    copy = ActNorm(2)
    copy.load_state_dict(first)
    copy(randn(9, 2, seed=2).float())
    for f in (norm, copy):
        assert all(torch.equal(value, first[name]) for name, value in f.state_dict().items())


def test_features_that_do_not_vary_stay_finite():
    norm = ActNorm(2)
    x = torch.stack([torch.full((7,), 0.1), torch.arange(7.0)], 1)
    z, log_det = norm(x)
    close(z[:, 0], torch.zeros(7), atol=1e-6)
    close(log_det, torch.full((7,), -torch.arange(7.0).std(correction=0).log()), atol=1e-6)
    (z.sum() + log_det.sum()).backward()
    assert norm.mean.grad.isfinite().all()
    assert ActNorm(2)(torch.ones(2))[0].isfinite().all()  # a batch of one


# P L U


def test_one_by_one_convolution_is_that_of_torch_and_its_log_det_the_dense_one():
    f, x = stir(InvertibleLinear(2, 3, runtime.generator(0))), randn(5, 2, 4, 4)
    z, log_det = f(x)
    close(z, F.conv2d(x, f.weight()[..., None, None]))
    dense = log_det_jacobian(lambda v: f(v.view(-1, 2, 4, 4))[0].flatten(1), x.flatten(1))
    close(log_det, dense)
    close(dense, 16 * torch.linalg.slogdet(f.weight()).logabsdet.expand(5))


def test_starts_as_a_rotation_and_never_becomes_singular():
    f = InvertibleLinear(6, generator=runtime.generator(3))
    close(f.weight() @ f.weight().T, torch.eye(6), atol=1e-6)
    sign = torch.linalg.slogdet(f.weight()).sign
    for seed in range(9):
        moved = torch.linalg.slogdet(stir(f, seed).weight())
        assert moved.sign == sign
        close(f(torch.zeros(6, dtype=F64))[1], moved.logabsdet)


def test_heavy_features_never_feed_light_ones():
    f, x = stir(BlockTriangularLinear(2, 3, runtime.generator(0))), randn(4, 5)
    j = jacobian(lambda v: f(v)[0], x)
    assert (j[:, :2, 2:] == 0).all()
    assert (j[:, 2:, :2] != 0).all()
    close(f(x)[1], torch.linalg.slogdet(j).logabsdet)
    mixed = stir(InvertibleLinear(5, generator=runtime.generator(0)))
    assert (jacobian(lambda v: mixed(v)[0], x)[:, :2, 2:] != 0).any()


# Devices


@pytest.mark.parametrize(
    "make",
    [
        lambda g: InvertibleLinear(3, generator=g),
        lambda g: BlockTriangularLinear(1, 2, g),
        lambda g: Rotation(3, g),
        lambda g: Planar(3, g),
        lambda g: Radial(3, g),
        lambda g: KernelConditioner(2, 3, generator=g),
        lambda g: glow_step(2, generator=g),
    ],
)
def test_a_module_lies_on_the_default_device_wherever_its_generator_is(make):
    """ "meta" holds no numbers and has no generator: a stand-in for a second device."""
    with torch.device("meta"):
        module = make(runtime.generator(0))
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    assert {t.device.type for t in make(runtime.generator(0)).state_dict().values()} == {"cpu"}


# Rotations


def test_rotations_are_haar_distributed():
    """A column of a Haar rotation of space is uniform on the sphere, so each of its coordinates is uniform on [-1, 1]."""
    draw = runtime.generator(0)
    corner = [random_rotation(3, draw)[0, 0].item() for _ in range(1000)]
    uniform = scipy.stats.uniform(-1, 2).cdf
    assert scipy.stats.kstest(corner, uniform).pvalue > 1e-3
    unsigned = [torch.linalg.qr(torch.randn(3, 3, generator=draw)).Q[0, 0].item() for _ in range(1000)]
    assert scipy.stats.kstest(unsigned, uniform).pvalue < 1e-9


def test_a_rotation_is_exact_in_float64_also_when_made_from_float32():
    given = random_rotation(30, runtime.generator(1))
    for f in (Rotation(30, runtime.generator(1)), Rotation(30, matrix=given.float())):
        assert f(torch.zeros(2, 30))[0].dtype == torch.float32
        f.double()
        close(f.matrix @ f.matrix.T, torch.eye(30))
        close(f.matrix, given, atol=1e-6)
        close(f(randn(30))[0], f.matrix @ randn(30))


def test_reshape_lets_a_rotation_act_on_images():
    f = Reshape(Rotation(8, runtime.generator(0)), (2, 2, 2))
    close(f(randn(3, 2, 2, 2))[0].square().sum((1, 2, 3)), randn(3, 2, 2, 2).square().sum((1, 2, 3)))


@pytest.mark.parametrize("matrix", [torch.eye(3), 2 * torch.eye(2), torch.ones(2, 2), torch.full((2, 2), torch.nan)])
def test_other_matrices_are_refused(matrix):
    with pytest.raises(ValueError, match="matrix"):
        Rotation(2, matrix=matrix)
