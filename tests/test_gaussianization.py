"""Marginal maps against SciPy's and zuko's kernel estimates, the books of whole flows, the Gaussian case in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.preprocessing import QuantileTransformer
from zuko.transforms import GaussianizationTransform

from refimpl import runtime
from refimpl.autodiff import log_det_jacobian
from refimpl.flows import Flow, Rotation, StandardNormal
from refimpl.flows.gaussian_recursion import (
    best_scales,
    correlation,
    expected_layers,
    expected_ratio,
    gain_bounds,
    haar,
    layers_to,
    loss_curve,
)
from refimpl.flows.gaussian_rotations import ica_rotation, pca_rotation, sliced_rotation
from refimpl.flows.gaussianization import MarginalGaussianization, gaussianize
from refimpl.flows.whitening import nonstandardness, whitening_block, whitening_ratio

F64 = torch.float64


def source(seed=0):
    return runtime.generator(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=source(seed))


def awkward(n=3000):
    """Columns with two modes, a skew, a short range, and a plain bell curve far from the origin."""
    a = normal(n, 4, seed=1)
    return torch.stack([a[:, 0] + 4 * (torch.arange(n) % 3 == 0), a[:, 1].exp(), a[:, 2].sin(), 3 * a[:, 3] + 50], 1)


def bandwidth(x):
    """In units of the standard deviation, as documented, and the standardised points."""
    u = ((x - x.mean()) / x.std()).sort().values
    n = len(u)
    return min(1.0, (u[3 * n // 4] - u[n // 4]).item() / 1.349) * n**-0.2, u


# --- The map of a coordinate.


@pytest.mark.parametrize("column", range(4))
def test_the_density_of_one_layer_is_the_kernel_estimate(column):
    x = awkward()[:, column : column + 1]
    f = MarginalGaussianization(1, bins=128).double().fit(x, widened=False, prior=0)
    h, u = bandwidth(x[:, 0])
    at = x.sort(0).values[20:-20:10]
    z, log_det = f(at)
    kde = stats.gaussian_kde(u.numpy(), bw_method=h / u.std().item())
    points = ((at - x.mean()) / x.std())[:, 0].numpy()
    expected = np.log(kde(points)) - math.log(x.std().item())
    np.testing.assert_allclose(stats.norm.logpdf(z[:, 0]) + log_det.numpy(), expected, atol=1e-2)
    below = [kde.integrate_box_1d(-np.inf, p) for p in points]
    np.testing.assert_allclose(stats.norm.cdf(z[:, 0]), below, atol=2e-4)


def test_the_map_is_zukos_with_a_component_for_each_point():
    x = awkward(600)
    f = MarginalGaussianization(4, bins=256).double().fit(x, widened=False, prior=0)
    at = x.sort(0).values[30:-30:15]
    z, log_det = f(at)
    total = 0
    for i in range(4):
        h, u = bandwidth(x[:, i])
        zuko = GaussianizationTransform(-u / h, torch.full_like(u, -math.log(h)))
        point = (at[:, i] - x[:, i].mean()) / x[:, i].std()
        torch.testing.assert_close(z[:, i], zuko(point), atol=2e-3, rtol=0)
        total = total + zuko.log_abs_det_jacobian(point, zuko(point)) - x[:, i].std().log()
    torch.testing.assert_close(log_det, total, atol=1e-2, rtol=0)


def test_coordinates_are_fitted_as_if_each_were_alone():
    x = awkward()
    together = MarginalGaussianization(4).double().fit(x)
    for i in range(4):
        alone = MarginalGaussianization(1).double().fit(x[:, i : i + 1])
        torch.testing.assert_close(together.heights[:, i], alone.heights[:, 0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together(x)[0][:, i], alone(x[:, i : i + 1])[0][:, 0], rtol=1e-10, atol=1e-10)


def test_normal_data_get_a_nearly_linear_map():
    scale = torch.tensor([0.5, 1.0, 20.0], dtype=F64)
    f = MarginalGaussianization(3).double().fit(normal(20_000, 3) * scale)
    t = torch.linspace(-2.3, 2.3, 200, dtype=F64)[:, None]
    x = (t * scale).requires_grad_()
    z, _ = f(x)
    slopes = torch.autograd.grad(z.sum(), x)[0] * scale
    assert (z - t).abs().max() < 0.05
    assert (slopes - 1).abs().mean() < 0.03
    # Without the factor the latent's standard deviation is smaller, by about h^2 / 2.
    narrow = MarginalGaussianization(3).double().fit(normal(20_000, 3) * scale, widened=False)
    ratio = f(x)[0].std() / narrow(x)[0].std()
    assert abs(ratio.item() - math.sqrt(1 + 20_000**-0.4)) < 2e-3


def test_latents_are_standard_normal_to_a_test():
    x = awkward(5000)
    f = MarginalGaussianization(4).double().fit(x, bandwidth=0.3)
    z = f(x)[0]
    assert z.mean(0).abs().max() < 0.05
    assert all(stats.kstest(column.numpy(), "norm").statistic < 0.03 for column in z.T)


def test_interior_agrees_with_scikit_learns_quantile_transformer():
    x = normal(20_000, 2).exp()
    library = QuantileTransformer(n_quantiles=200, output_distribution="normal").fit(x.numpy())
    at = x.sort(0).values[1000:-1000:50]
    z = MarginalGaussianization(2).double().fit(x, bandwidth=0.3)(at)[0]
    assert (z - torch.from_numpy(library.transform(at.numpy()))).abs().max() < 0.1


def test_inverse_tails_and_log_determinant():
    x = awkward()
    f = MarginalGaussianization(4).double().fit(x)
    at = torch.cat([x[::10], x.mean(0) + 8 * normal(200, 4) * x.std(0)])  # half of these are far outside
    z, log_det = f(at)
    back, log_det_back = f.inverse(z)
    torch.testing.assert_close(back, at, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-7, rtol=1e-7)
    for point in at[::100]:
        torch.testing.assert_close(f(point)[1], log_det_jacobian(lambda x: f(x)[0], point), atol=1e-9, rtol=1e-9)
    far = torch.stack([x.mean(0) + k * x.std(0) for k in (30.0, 31.0)])
    torch.testing.assert_close(f(far)[0].diff(dim=0)[0], torch.ones(4, dtype=F64))  # slope 1 / std
    assert (f(at.sort(0).values)[0].diff(dim=0) >= 0).all()


def test_any_batch_and_saving():
    f = MarginalGaussianization(4).double().fit(awkward())
    x = awkward(12).view(3, 4, 4)
    z, log_det = f(x)
    assert z.shape == (3, 4, 4) and log_det.shape == (3, 4)
    torch.testing.assert_close(f(x[1, 2])[0], z[1, 2])
    assert f(x[:0])[0].shape == (0, 4, 4) and f.inverse(x[:0])[1].shape == (0, 4)
    other = MarginalGaussianization(4).double()
    other.load_state_dict(f.state_dict())
    torch.testing.assert_close(other(x)[0], z)
    fresh = MarginalGaussianization(4).double()
    torch.testing.assert_close(fresh(x)[0], x)  # the identity
    blocks = awkward(70_000)  # more numbers than one block
    torch.testing.assert_close(f(blocks)[0][40_000:], f(blocks[40_000:])[0])


def test_ties_and_gaps_do_no_harm():
    x = torch.cat([torch.zeros(900, 1), torch.ones(900, 1), 40 + normal(200, 1, dtype=torch.float32)])
    z, log_det = MarginalGaussianization(1).fit(x)(x)
    assert z.isfinite().all() and log_det.isfinite().all()
    t = torch.linspace(-5, 60, 2000)[:, None]
    assert (MarginalGaussianization(1).fit(x)(t)[0].diff(dim=0) >= 0).all()
    outliers = torch.cat([0.01 * normal(990, 1, dtype=torch.float32), torch.linspace(90, 110, 10)[:, None]])
    f = MarginalGaussianization(1).fit(outliers)
    t = torch.linspace(-5, 150, 2000)[:, None]
    z, log_det = f(t)
    assert log_det.isfinite().all() and (z.diff(dim=0) > 0).all()
    torch.testing.assert_close(f.inverse(z)[0], t, atol=0.2, rtol=0)  # across the gap the map is nearly flat


@pytest.mark.parametrize(
    ("x", "options", "match"),
    [
        (torch.ones(10, 2), {}, "feature 0 is constant"),
        (torch.randn(10, 3), {}, r"expected \(n, 2\)"),
        (torch.full((10, 2), torch.nan), {}, "not finite"),
        (torch.randn(2, 2), {}, "at least 3"),
        (torch.randn(10, 2), {"bandwidth": 0.0}, "bandwidth"),
    ],
)
def test_bad_data_are_named(x, options, match):
    with pytest.raises(ValueError, match=match):
        MarginalGaussianization(2).fit(x, **options)


# --- Whole flows.


def mixed(n, seed=0):
    """Four dependent coordinates that are not normal."""
    a = normal(n, 4, seed=seed, dtype=torch.float32)
    return torch.stack([a[:, 0], a[:, 0] ** 2 + a[:, 1], a[:, 2].exp(), a[:, 2] * a[:, 3]], 1)


def test_the_books_agree_with_the_density_of_the_flow():
    x, held_out = mixed(4000), mixed(1000, seed=5)
    found = gaussianize(x, 5, held_out=held_out, generator=source())
    flow = Flow(found.bijection, StandardNormal([4]))
    assert len(found.train) == len(found.held_out) == 6
    assert abs(found.train[-1] + flow.log_prob(x).mean().item()) < 1e-4
    assert abs(found.held_out[-1] + flow.log_prob(held_out).mean().item()) < 1e-4
    z, _ = found.bijection(x)
    assert z.mean(0).abs().max() < 0.05 and (z.std(0) - 1).abs().max() < 0.05
    torch.testing.assert_close(found.bijection.inverse(z)[0], x, atol=2e-3, rtol=2e-3)
    assert (np.diff(found.train) < 0.01).all()


def test_a_layer_removes_the_marginal_part_of_the_loss():
    x = mixed(40_000)
    turns = [haar(4, generator=source(k)) for k in range(3)]
    queue = iter(turns)
    found = gaussianize(x, 3, rotation=lambda x, generator: next(queue), held_out=mixed(40_000, seed=9))
    fell = -np.diff(found.held_out)
    for layer, turn in enumerate(turns):
        y = mixed(40_000, seed=9)
        for f in list(found.bijection.bijections)[: 1 + 2 * layer]:
            y = f(y)[0].detach()
        y = (y @ turn.float().T).numpy()
        # KL(p_i || N(0, 1)) with the entropy by Vasicek's spacings.
        marginal = sum(
            0.5 * np.mean(c**2) + 0.5 * math.log(2 * math.pi) - stats.differential_entropy(c, method="vasicek")
            for c in y.T
        )
        assert abs(fell[layer] - marginal) < 0.05 + 0.1 * marginal


def test_independent_coordinates_need_one_layer_and_no_rotation():
    x, held_out = (-(-torch.special.ndtr(normal(20_000, 6, seed=k)).log()).log() for k in (0, 1))
    entropy = 6 * stats.gumbel_r.entropy()
    one = MarginalGaussianization(6).double()
    found = gaussianize(
        x, 1, rotation=lambda x, g: torch.eye(6), held_out=held_out, marginal=lambda x: one.fit(x, bandwidth=0.5)
    )
    assert found.held_out[0] - entropy > 0.3
    assert abs(found.held_out[1] - entropy) < 0.03
    with_rotation = gaussianize(x, 1, held_out=held_out, generator=source())
    assert with_rotation.held_out[1] - entropy > 0.2


def test_permutations_change_nothing_and_pca_finishes_a_gaussian():
    factor = normal(5, 5)
    x, held_out = normal(20_000, 5) @ factor.T, normal(5000, 5, seed=2) @ factor.T
    sigma = correlation(factor @ factor.T)
    start = nonstandardness(sigma).item()
    shuffled = gaussianize(x, 5, rotation=lambda x, g: torch.eye(5)[torch.randperm(5, generator=g)], held_out=held_out)
    assert abs(shuffled.held_out[-1] - shuffled.held_out[0]) < 0.02
    found = gaussianize(x, 1, rotation="pca", held_out=held_out)
    assert abs(found.held_out[0] - found.held_out[1] - start) < 0.03


def test_fresh_data_stopping_and_reproducibility():
    calls = []

    def resample():
        calls.append(1)
        return mixed(500, seed=len(calls))

    found = gaussianize(mixed(500), 4, resample=resample, generator=source())
    assert len(calls) == 3 and found.held_out == []  # the first layer has the data themselves
    seen = []
    short = gaussianize(mixed(500), 9, stop=lambda losses: seen.append(len(losses)) or len(losses) == 3)
    assert len(short.train) == 3 and seen == [1, 2, 3]
    again = [gaussianize(mixed(500), 3, generator=source(4)).train for _ in range(2)]
    assert again[0] == again[1]
    assert gaussianize(mixed(500), 3, generator=source(5)).train != again[0]
    rotations = [f for f in found.bijection.bijections if isinstance(f, Rotation)]
    assert len(rotations) == 4 and found.bijection(mixed(3))[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rotation": "whirl"}, "rotation: got 'whirl'"),
        ({"num_layers": 0}, "num_layers"),
        ({"held_out": torch.randn(5, 3)}, "held_out"),
        ({"x": torch.randn(4)}, "x: got shape"),
        ({"rotation": lambda x, g: 2 * torch.eye(4)}, "orthogonal"),
    ],
)
def test_bad_calls_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        gaussianize(**{"x": mixed(100), "num_layers": 2} | changes)


# --- Rotations that look at the data.


def planted(n=4000, dim=5):
    """Independent coordinates of unit variance, far from normal, rotated by a known matrix."""
    a = normal(n, dim, seed=3)
    a = (a.sign() + 0.3 * normal(n, dim, seed=4)) / math.sqrt(1.09)
    q = haar(dim, generator=source(7))
    return a @ q, q


def test_ica_finds_independent_sources():
    x, q = planted()
    found = ica_rotation(x, source())
    match = (found @ q.T).abs()
    assert match.amax(0).min() > 0.97 and match.amax(1).min() > 0.97
    torch.testing.assert_close(found @ found.T, torch.eye(5, dtype=F64), atol=1e-6, rtol=0)


def test_sliced_rotations_climb():
    x, q = planted()
    levels = torch.special.ndtri((torch.arange(len(x), dtype=F64) + 0.5) / len(x))[:, None]

    def distance(q):
        return ((x @ q.T).sort(0).values - levels).square().mean(0).sum()

    found = sliced_rotation(x, source())
    torch.testing.assert_close(found @ found.T, torch.eye(5, dtype=F64), atol=1e-6, rtol=0)
    # Near the planted rotation (it can end with two sources mixed at 45 degrees), far from a random one.
    assert distance(found) > 0.6 * distance(q) > 3 * distance(haar(5, generator=source(1)))


def test_pca_diagonalises_the_covariance():
    x = normal(500, 6) @ normal(6, 6, seed=1)
    q = pca_rotation(x)
    turned = torch.cov((x @ q.T).T)
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-9 * turned.max()
    np.testing.assert_allclose(turned.diagonal().sort().values, np.linalg.eigvalsh(np.cov(x.T)), rtol=1e-9)


# --- The Gaussian case.


def test_sphere_moments_and_haar():
    q = haar(6, 20_000, generator=source())
    torch.testing.assert_close(q @ q.mT, torch.eye(6, dtype=F64).expand_as(q), atol=1e-12, rtol=0)
    assert abs((q[:, 0, 0] ** 4).mean() * 6 * 8 / 3 - 1) < 0.05
    assert abs((q[:, 0, 0] ** 2 * q[:, 0, 1] ** 2).mean() * 6 * 8 - 1) < 0.05
    assert stats.kstest(q[:, 0, 0] ** 2, stats.beta(0.5, 2.5).cdf).pvalue > 1e-3
    library = torch.from_numpy(stats.ortho_group(6, seed=0).rvs(4000))
    traces = [m.diagonal(dim1=1, dim2=2).sum(1).numpy() for m in (q, library)]
    assert stats.ks_2samp(*traces).pvalue > 1e-3
    raw = torch.linalg.qr(normal(4000, 6, 6))[0].diagonal(dim1=1, dim2=2).sum(1)
    assert stats.ks_2samp(raw.numpy(), traces[1]).pvalue < 1e-3  # the test can fail


def test_layers_in_closed_form():
    table = {8: (4.48, 10.32, 20.64), 16: (8.49, 19.55, 39.10), 32: (16.49, 37.98, 75.96), 64: (32.50, 74.83, 149.66)}
    for dim, row in (table | {128: (64.50, 148.51, 297.03)}).items():
        for factor, layers in zip((math.e, 10, 100), row, strict=True):
            assert abs(expected_layers(dim, factor) - layers) < 0.01
    assert [expected_ratio(dim) for dim in (2, 48)] == [0.5, 0.96]


def test_the_recursion_loses_what_its_diagonal_says():
    factor = normal(7, 12)
    sigma = correlation(factor @ factor.T)
    start, gains = nonstandardness(sigma), 0.0
    for k in range(10):
        turned = haar(7, generator=source(k)) @ sigma @ haar(7, generator=source(k)).T
        gains = gains - 0.5 * turned.diagonal().log().sum()
        sigma = correlation(turned)
    torch.testing.assert_close(start - nonstandardness(sigma), gains)
    torch.testing.assert_close(nonstandardness(sigma), -0.5 * torch.logdet(sigma))


@pytest.mark.parametrize("spread", [0.05, 0.8])
@pytest.mark.parametrize("dim", [4, 16])
def test_mean_gain_lies_in_the_sandwich(dim, spread):
    eigenvalues = torch.linspace(1 - spread, 1 + spread, dim, dtype=F64)
    q = haar(dim, generator=source())
    sigma = correlation((q * eigenvalues) @ q.T)
    turns = haar(dim, 1000, generator=source(1))
    gain = 1 - (nonstandardness(correlation(turns @ sigma @ turns.mT)) / nonstandardness(sigma)).mean()
    low, high = gain_bounds(sigma)
    assert low < gain < high
    if spread < 0.1:
        assert abs(gain * (dim + 2) / 2 - 1) < 0.08


def test_loss_curves_of_layers_and_couplings():
    eigenvalues = 1 + 0.1 * torch.linspace(-1, 1, 16, dtype=F64)
    q = haar(16, 40, generator=source())
    sigma = (q * eigenvalues) @ q.mT
    curve = loss_curve(sigma, to=0.5, generator=source(1))
    assert curve.shape[1:] == (40,) and (curve.diff(dim=0) < 0).all() and (curve[-1] <= 0.5 * curve[0]).all()
    torch.testing.assert_close(curve[0], nonstandardness(correlation(sigma)))
    torch.testing.assert_close((curve[3] / curve[0]).mean().item(), expected_ratio(16) ** 3, atol=0.02, rtol=0)
    coupling = loss_curve(sigma, step=lambda s: whitening_block(s, 8), max_layers=1, generator=source(2))
    assert len(coupling) == 2
    torch.testing.assert_close((coupling[1] / coupling[0]).mean().item(), whitening_ratio(16), atol=0.03, rtol=0)
    assert layers_to(torch.tensor([[4.0, 4.0], [2.0, 3.0], [1.0, 3.0]]), 0.5).tolist() == [1.0, math.inf]


def test_training_one_layer_finds_the_closed_form_and_counting_holds():
    factor = normal(4, 6)
    sigma, turns = factor @ factor.T / 6, haar(4, 4, generator=source())
    loss, scales = best_scales(sigma, turns[:1], generator=source())
    turned = turns[0] @ sigma @ turns[0].T
    torch.testing.assert_close(loss, nonstandardness(correlation(turned)))
    torch.testing.assert_close(scales[0], -0.5 * turned.diagonal().log(), atol=1e-5, rtol=0)
    assert best_scales(sigma, turns[:2], generator=source())[0] > 1e-3  # 8 parameters for 10 equations
    loss, scales = best_scales(sigma, turns, generator=source())
    whitened = torch.linalg.cholesky(sigma)
    for scale, turn in zip(scales, turns, strict=True):
        whitened = scale.exp()[:, None] * (turn @ whitened)
    assert abs(loss) < 1e-9
    torch.testing.assert_close(whitened @ whitened.T, torch.eye(4, dtype=F64), atol=1e-4, rtol=0)
