"""What coupling flows can reach: closed forms, other libraries, brute force and invariances as independent answers."""

import itertools
import math

import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from refimpl import runtime
from refimpl.data import GaussianMixture
from refimpl.flows import (
    AffineMap,
    BinnedCoupling,
    Chain,
    ConditionalMoments,
    Flow,
    RadialMixture,
    StandardNormal,
    additive_improvement,
    affine_improvement,
    best_volume_preserving,
    conditional_moments,
    coupling_flow,
    fit_affine_block,
    fit_affine_layers,
    gaussian_profile,
    height_profile,
    loss_only_bound,
    nice,
    nonstandardness,
    random_rotation,
    separated_modes_gap,
    unitary_bound,
    var_max_bound,
    whiten,
    whitening_block,
    whitening_ratio,
)

F64 = torch.float64


@pytest.fixture
def source():
    return runtime.generator(0)


def axes(*sides, spacing):
    steps = [torch.arange(-side, side + spacing / 2, spacing, dtype=F64) for side in sides]
    return torch.stack(torch.meshgrid(*steps, indexing="ij"), -1), spacing ** len(sides)


def modes(variances, weights, apart=3.0):
    means = torch.tensor([[-apart, 0.0], [apart, 0.0]], dtype=F64)
    return GaussianMixture(means, torch.tensor(variances, dtype=F64).sqrt(), torch.tensor(weights, dtype=F64))


def shaken(flow, generator, std=0.5):
    """The flow in double precision, with random numbers where its networks start at zero."""
    with torch.no_grad():
        for parameter in flow.double().parameters():
            parameter.add_(std * torch.randn(parameter.shape, dtype=F64, generator=generator))
    return flow


# --- Level sets and the best volume-preserving density.


@pytest.mark.parametrize(
    ("variances", "weights"), [([1.0, 0.04], [0.5, 0.5]), ([1.0, 0.25], [0.5, 0.5]), ([0.3, 0.3], [0.3, 0.7])]
)
def test_closed_form_of_the_gap_agrees_with_sorting_a_grid(variances, weights):
    points, cell = axes(8.0, 5.5, spacing=0.02)
    by_sorting = best_volume_preserving(modes(variances, weights).log_prob(points), cell)
    assert separated_modes_gap(variances, weights) == pytest.approx(by_sorting.gap, abs=5e-4)


def test_gap_of_two_equal_weights_is_the_formula_of_the_ratio():
    for r in (1.0, 4.0, 10.0, 25.0, 100.0):
        formula = math.log((r + 3 + math.log(r)) / (4 * math.sqrt(r)))
        assert separated_modes_gap([1.0, 1 / r]) == pytest.approx(formula, abs=1e-12)
        assert separated_modes_gap([7 / r, 7.0]) == pytest.approx(formula, abs=1e-12)  # order and units do not matter
    assert separated_modes_gap([1.0, 0.01]) == pytest.approx(0.990, abs=1e-3)


def test_gap_of_three_modes_agrees_with_quadrature():
    s, w = [1.0, 0.3, 0.05], [0.2, 0.5, 0.3]
    heights = [wi / (2 * math.pi * si) for si, wi in zip(s, w, strict=True)]

    def above(log_height):  # area where the density exceeds this height
        return sum(2 * math.pi * si * max(0.0, math.log(h) - log_height) for si, h in zip(s, heights, strict=True))

    mean = sum(
        wi * quad(lambda u, h=h: math.exp(-u) * above(math.log(h) - u), 0, 60, limit=400)[0]
        for wi, h in zip(w, heights, strict=True)
    )
    entropy = sum(wi * (1 + math.log(2 * math.pi * si) - math.log(wi)) for si, wi in zip(s, w, strict=True))
    assert separated_modes_gap(s, w) == pytest.approx(1 + math.log(mean) - entropy, abs=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_gaussian_has_no_gap_and_its_own_best_density(dim):
    points, cell = axes(*[5.0] * dim, spacing={1: 0.001, 2: 0.02, 3: 0.1}[dim])
    variance = 0.7
    log_p = (-0.5 * points.square().sum(-1) / variance) - 0.5 * dim * math.log(2 * math.pi * variance)
    best = best_volume_preserving(log_p, cell)
    assert best.gap == pytest.approx(0, abs=2e-3)
    assert best.entropy == pytest.approx(0.5 * dim * math.log(2 * math.pi * math.e * variance), abs=1e-4)
    assert best.jacobian == pytest.approx(variance ** (-dim / 2), rel=5e-3)
    dense = log_p > log_p.max() - 4
    # Cells at equal distance have different ranks, so single cells err by the volume of a shell of the grid.
    assert (best.log_p - log_p)[dense].abs().max() < {1: 0.01, 2: 0.02, 3: 0.1}[dim]


def test_the_best_density_is_a_density_ranked_as_the_target_and_better_than_its_neighbours():
    points, cell = axes(8.0, 5.5, spacing=0.04)
    log_p = modes([1.0, 0.04], [0.5, 0.5]).log_prob(points)
    best = best_volume_preserving(log_p, cell)
    assert (best.log_p.exp() * cell).sum().item() == pytest.approx(1, abs=5e-3)
    flat, order = best.log_p.flatten(), log_p.flatten().argsort(descending=True)
    assert (flat[order].diff() <= 1e-12).all()
    weight, (volume, _) = log_p.exp() * cell, height_profile(log_p, cell)
    assert -(weight * best.log_p).sum().item() == pytest.approx(best.nll, abs=1e-6)
    for factor in (0.9, 1.1):  # another constant is worse
        other = gaussian_profile(volume, factor * best.jacobian, 2)
        assert -(weight.flatten().sort(descending=True).values * other).sum().item() > best.nll


def test_sorting_is_optimal_among_all_orders_of_five_cells():
    p = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2], dtype=F64)
    best = best_volume_preserving(p.log()[:, None], 1.0, dim=2)
    values = best.log_p.flatten().sort(descending=True).values
    losses = [-(p @ values[list(order)]).item() for order in itertools.permutations(range(5))]
    assert best.nll == pytest.approx(min(losses), abs=1e-9) and min(losses) < sorted(losses)[1]


def test_random_additive_flows_have_the_profile_and_the_affine_ones_do_not(source):
    points, cell = axes(8.0, 8.0, spacing=0.05)

    def deviation(flow):
        with torch.no_grad():
            c = flow.bijection(torch.zeros(2, dtype=F64))[1].exp().item()
            volume, heights = height_profile(flow.log_prob(points), cell)
        near = volume < 10
        return (heights - gaussian_profile(volume, c, 2))[near].abs().max().item()

    torch.manual_seed(0)
    settings = dict(num_layers=4, width=16)
    for _ in range(2):
        additive = shaken(Flow(nice(2, shared=True, **settings), StandardNormal([2])), source, 0.2)
        assert deviation(additive) < 0.02
    affine = shaken(Flow(coupling_flow(2, AffineMap(), **settings), StandardNormal([2])), source, 0.4)
    learned = Flow(nice(2, shared=True, **settings), RadialMixture(2)).double()
    assert min(deviation(affine), deviation(learned)) > 0.1


def test_one_scale_beside_additive_couplings_keeps_the_determinant_constant(source):
    flow = shaken(nice(3, num_layers=3, shared=True, width=8), source)
    x = torch.randn(5, 3, dtype=F64, generator=source)
    exact = torch.stack([torch.linalg.slogdet(torch.func.jacrev(lambda y: flow(y)[0])(row))[1] for row in x])
    assert torch.allclose(exact, exact[:1].expand(5)) and torch.allclose(flow(x)[1], exact)


def test_divergence_in_the_data_equals_that_of_the_latents(source):
    # KL(p || flow) from densities of x; KL(latents || N(0, I)) from the density that the latents really have.
    law = modes([1.0, 0.04], [0.5, 0.5])
    flow = shaken(Flow(coupling_flow(2, AffineMap(), 2, width=8), StandardNormal([2])), source, 0.1)
    x = law.sample(2000, source)
    with torch.no_grad():
        z, _ = flow.bijection(x)
        back, log_det = flow.bijection.inverse(z)
        in_data = (law.log_prob(x) - flow.log_prob(x)).mean()
        in_latents = (law.log_prob(back) + log_det - flow.base.log_prob(z)).mean()
        turned = z @ random_rotation(2, source)
        assert torch.allclose(flow.base.log_prob(turned), flow.base.log_prob(z))
    assert in_data.item() == pytest.approx(in_latents.item(), abs=1e-8)


def test_a_sheared_gaussian_keeps_its_profile_and_has_no_gap():
    shear = torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=F64)
    points, cell = axes(8.0, 18.0, spacing=0.04)
    log_p = StandardNormal([2]).double().log_prob(points @ torch.linalg.inv(shear).T)
    assert best_volume_preserving(log_p, cell).gap == pytest.approx(0, abs=1e-3)


# --- Conditional moments and improvements.


def test_bins_have_equal_counts_and_the_right_moments(source):
    x = torch.randn(103, 3, dtype=F64, generator=source)
    found = conditional_moments(x[:, 0], x[:, 1:], 10)
    order = x[:, 0].argsort()
    third = x[order[20:30]]
    assert found.mean.shape == found.std.shape == (10, 2)
    assert torch.allclose(found.position[2], third[:, 0].mean())
    assert torch.allclose(found.mean[2], third[:, 1:].mean(0))
    assert torch.allclose(found.std[2], third[:, 1:].std(0, correction=0))


def test_improvement_has_the_closed_form_of_a_curved_law(source):
    def inside(b):
        m, s = math.sin(2 * b), 0.3 + 0.2 * b * b
        return stats.norm.pdf(b) * 0.5 * (m * m + s * s - 1 - 2 * math.log(s))

    exact = quad(inside, -9, 9)[0]
    assert exact == pytest.approx(0.7125, abs=5e-4)
    b, noise = torch.randn(2, 400_000, dtype=F64, generator=source)
    a = (torch.sin(2 * b) + (0.3 + 0.2 * b**2) * noise)[:, None]
    assert affine_improvement(conditional_moments(b, a, 256)).item() == pytest.approx(exact, rel=0.015)


def test_improvement_is_what_the_best_affine_map_removes():
    m, s = torch.tensor([[0.5], [-1.0]], dtype=F64), torch.tensor([[0.4], [2.0]], dtype=F64)
    moments = ConditionalMoments(torch.tensor([-1.0, 1.0], dtype=F64), m, s)

    def optimum(additive):
        log_scale = torch.zeros(2, 1, dtype=F64, requires_grad=not additive)
        shift = torch.zeros(2, 1, dtype=F64, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [shift] if additive else [shift, log_scale], max_iter=200, line_search_fn="strong_wolfe"
        )

        def loss():
            scale = log_scale.exp()
            return (0.5 * ((scale * m + shift) ** 2 + (scale * s) ** 2) - log_scale).mean()

        def closure():
            optimiser.zero_grad()
            value = loss()
            value.backward()
            return value

        before = loss().item()
        optimiser.step(closure)
        return before - loss().item(), log_scale.exp().detach(), shift.detach()

    removed, scale, shift = optimum(additive=False)
    assert affine_improvement(moments).item() == pytest.approx(removed, abs=1e-7)
    assert torch.allclose(scale, 1 / s, atol=1e-4) and torch.allclose(shift, -m / s, atol=1e-4)
    assert additive_improvement(moments).item() == pytest.approx(optimum(additive=True)[0], abs=1e-7)


def test_a_disc_is_invisible_to_means_and_visible_to_variances(source):
    u = torch.rand(400_000, 2, dtype=F64, generator=source)
    radius, angle = 2 * u[:, 0].sqrt(), 2 * math.pi * u[:, 1]
    found = conditional_moments(radius * angle.cos(), (radius * angle.sin())[:, None], 256)
    assert affine_improvement(found).item() == pytest.approx((math.log(3) - 1) / 2, abs=2e-3)
    assert additive_improvement(found).item() < 1e-3


def test_estimate_of_a_normal_is_bins_over_samples(source):
    x = torch.randn(2**16, 3, dtype=F64, generator=source)
    for bins in (64, 512):
        value = affine_improvement(conditional_moments(x[:, 0], x[:, 1:], bins)).item()
        assert value == pytest.approx(2 * bins / 2**16, rel=0.25)


# --- Blocks fitted layer by layer.


def block(source, dim=3, bins=5):
    position = torch.linspace(-1, 1, bins, dtype=F64)
    scale = 0.5 + torch.rand(bins, dim - 1, dtype=F64, generator=source)
    shift = torch.randn(bins, dim - 1, dtype=F64, generator=source)
    return BinnedCoupling(random_rotation(dim, source), position, scale, shift)


def test_binned_coupling_inverts_and_has_the_determinant_of_its_jacobian(source):
    f = block(source)
    x = 2 * torch.randn(4, 6, 3, dtype=F64, generator=source)  # some beyond the outermost bins
    z, log_det = f(x)
    back, inverse_log_det = f.inverse(z)
    assert log_det.shape == (4, 6) and torch.allclose(back, x) and torch.allclose(inverse_log_det, -log_det)
    for row in x[0]:
        jacobian = torch.autograd.functional.jacobian(lambda y: f(y)[0], row)
        assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(f(row)[1].item(), abs=1e-10)
    assert f(x[:0])[0].shape == (0, 6, 3) and f(x[0, 0])[1].shape == ()


def test_binned_coupling_interpolates_and_stays_constant_outside(source):
    f = block(source)
    s, t = f.scale_and_shift(torch.tensor([-5.0, -1.0, -0.75, 1.0, 9.0], dtype=F64))
    assert torch.allclose(s[[0, 1, 3, 4]], f.scale[[0, 0, -1, -1]]) and torch.allclose(t[[0, 4]], f.shift[[0, -1]])
    assert torch.allclose(s[2], (f.scale[0] + f.scale[1]) / 2)
    again = block(runtime.generator(5))
    again.load_state_dict(f.state_dict())
    x = torch.randn(7, 3, dtype=F64, generator=source)
    assert torch.equal(again(x)[0], f(x)[0])


def test_a_full_step_standardises_every_bin(source):
    b, noise = torch.randn(2, 20_000, dtype=F64, generator=source)
    x = torch.stack([b, torch.sin(2 * b) + (0.3 + 0.2 * b**2) * noise], 1)
    f = fit_affine_block(x, num_bins=50, step=1.0, num_rotations=1, generator=source)
    y = x @ f.rotation.T
    before = conditional_moments(y[:, 0], y[:, 1:], 50)
    assert torch.allclose(f.scale, 1 / before.std) and torch.allclose(f.shift, -before.mean / before.std)
    z, log_det = f(x)
    removed = (0.5 * x.square().sum(1) - 0.5 * z.square().sum(1) + log_det).mean().item()
    assert removed == pytest.approx(affine_improvement(before).item(), rel=0.03)  # but for the interpolation
    after = conditional_moments(z[:, 0], z[:, 1:], 50)
    assert affine_improvement(after) < 0.02 * affine_improvement(before)


def test_layers_lower_the_loss_and_more_rotations_lower_it_faster(source):
    law = GaussianMixture(torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=F64), 0.4)
    x, fresh, normal = law.sample(6000, source), law.sample(6000, source), StandardNormal([2]).double()

    def loss(chain, x):
        z, log_det = chain(x)
        return -(normal.log_prob(z) + log_det).mean().item()

    chain = fit_affine_layers(x, 12, num_bins=16, generator=runtime.generator(1))
    seen = [loss(Chain(*chain.bijections[: k + 1]), x) for k in range(12)]
    assert all(b < a + 1e-9 for a, b in itertools.pairwise(seen))
    entropy = -law.log_prob(fresh).mean().item()
    one = fit_affine_layers(x, 4, num_bins=16, num_rotations=1, generator=runtime.generator(1))
    assert entropy - 0.02 < loss(chain, fresh) < entropy + 0.1 and seen[3] < loss(one, x)


def test_a_layerwise_flow_of_high_dimensional_data_inverts(source):
    x = torch.randn(500, 6, generator=source) ** 3
    chain = fit_affine_layers(x / x.std(0), 5, num_bins=8, generator=source)
    z, log_det = chain(x)
    back, inverse_log_det = chain.inverse(z)
    assert torch.allclose(back, x, atol=1e-3) and torch.allclose(log_det, -inverse_log_det, atol=1e-4)


def test_on_gaussian_data_a_block_does_to_the_covariance_what_the_recursion_says(source):
    root = torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=F64)
    x = torch.randn(400_000, 2, dtype=F64, generator=source) @ root.T
    f = fit_affine_block(x, num_bins=400, step=1.0, num_rotations=1, generator=source)
    expected = whitening_block(f.rotation @ root @ root.T @ f.rotation.T, 1, scale_passive=False)
    assert torch.allclose(torch.cov(f(x)[0].T), expected, atol=0.02)


# --- Whitening.


def covariance(dim, source):
    root = torch.randn(dim, dim, dtype=F64, generator=source)
    return root @ root.T / dim


def test_nonstandardness_is_the_divergence_of_two_gaussians(source):
    sigma = covariance(5, source)
    p = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=F64), sigma)
    q = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=F64), torch.eye(5, dtype=F64))
    assert nonstandardness(sigma).item() == pytest.approx(torch.distributions.kl_divergence(p, q).item(), rel=1e-9)
    small = 1e-8 * torch.tensor([1.0, -1.0], dtype=F64)
    assert nonstandardness(torch.diag(1 + small)).item() == pytest.approx(0.5e-16, rel=1e-3)


def test_block_is_the_coupling_written_as_a_matrix(source):
    sigma = covariance(6, source)
    for active in (1, 3, 4):
        p = 6 - active
        shear = torch.eye(6, dtype=F64)
        shear[p:, :p] = -sigma[p:, :p] @ torch.linalg.inv(sigma[:p, :p])
        sheared = shear @ sigma @ shear.T
        for scale_passive in (True, False):
            scale = sheared.diagonal().rsqrt()
            scale = scale if scale_passive else torch.cat([torch.ones(p, dtype=F64), scale[p:]])
            expected = scale[:, None] * sheared * scale
            assert torch.allclose(whitening_block(sigma, active, scale_passive=scale_passive), expected)
        assert torch.linalg.det(sheared).item() == pytest.approx(torch.linalg.det(sigma).item())


def test_two_dimensions_are_white_behind_one_block(source):
    losses, last = whiten(covariance(2, source).expand(5, 2, 2), 1, generator=source)
    assert losses.shape == (2, 5) and losses[1].max() < 1e-12 and torch.allclose(last, torch.eye(2, dtype=F64))


@pytest.mark.parametrize(
    ("dim", "active", "scale_passive"), [(4, 2, True), (8, 4, True), (8, 4, False), (12, 3, True), (12, 9, False)]
)
def test_ratio_near_the_identity_agrees_with_simulation(dim, active, scale_passive, source):
    bend = torch.randn(dim, dim, dtype=F64, generator=source)
    bend = bend + bend.T
    bend = bend - torch.eye(dim, dtype=F64) * bend.trace() / dim
    start = torch.eye(dim, dtype=F64) + 1e-4 * bend / bend.norm()
    losses, _ = whiten(start.expand(2000, dim, dim), 1, active=active, scale_passive=scale_passive, generator=source)
    ratio = losses[1] / losses[0]
    error = (ratio.std() / math.sqrt(2000)).item()
    assert whitening_ratio(dim, active, scale_passive=scale_passive) == pytest.approx(
        ratio.mean().item(), abs=4 * error
    )
    assert error < 0.005


def test_known_ratios():
    assert whitening_ratio(48) == pytest.approx(0.4698, abs=5e-5)
    assert whitening_ratio(48, scale_passive=False) == pytest.approx(0.4898, abs=5e-5)
    assert whitening_ratio(12, 3) == pytest.approx(0.5065, abs=5e-5)


def test_bounds_hold_and_the_looser_one_is_looser(source):
    for dim in (4, 16):
        for spread in (0.3, 1.0, 2.0):
            eigenvalues = (spread * torch.randn(dim, dtype=F64, generator=source)).exp()
            eigenvalues = eigenvalues / eigenvalues.mean()
            losses, _ = whiten(torch.diag(eigenvalues).expand(300, dim, dim), 1, generator=source)
            loss, after = losses[0, 0].item(), losses[1].mean().item()
            bound = var_max_bound(eigenvalues).item()
            assert after <= bound <= loss_only_bound(loss, dim) * loss + 1e-12 <= loss + 1e-9


def test_bounds_of_random_spectra_are_ordered(source):
    eigenvalues = (2 * torch.rand(2000, 1, dtype=F64, generator=source)) * torch.randn(
        2000, 6, dtype=F64, generator=source
    )
    eigenvalues = eigenvalues.exp()
    eigenvalues = eigenvalues / eigenvalues.mean(1, keepdim=True)
    losses = nonstandardness(torch.diag_embed(eigenvalues))
    loss_only = torch.tensor([loss_only_bound(loss, 6) * loss for loss in losses.tolist()], dtype=F64)
    assert (var_max_bound(eigenvalues) <= loss_only + 1e-9).all()
    grows = [loss_only_bound(loss, 6) for loss in (0.01, 0.1, 1.0)]
    assert grows == sorted(grows)


def test_unitary_trace_agrees_with_random_unitary_matrices():
    eigenvalues = torch.tensor([0.2, 0.5, 1.3, 2.0], dtype=F64)
    q = stats.unitary_group.rvs(4, size=20_000, random_state=0)
    sigma = torch.from_numpy(q @ (eigenvalues.numpy()[:, None] * q.conj().transpose(0, 2, 1)))
    pp, pa, aa = sigma[:, :2, :2], sigma[:, :2, 2:], sigma[:, 2:, 2:]
    trace = (aa - pa.mH @ torch.linalg.solve(pp, pa)).diagonal(dim1=1, dim2=2).sum(1).real
    loss = nonstandardness(torch.diag(eigenvalues)).item()
    expected = 2 * math.exp((unitary_bound(eigenvalues) - loss) / 1.0)  # the bound is S + (2 / 2) ln(tr M / 2)
    assert trace.mean().item() == pytest.approx(expected, abs=4 * trace.std().item() / math.sqrt(20_000))


def test_rate_of_whitening_and_the_standstill_without_rotations(source):
    sigma = covariance(16, source)
    losses, _ = whiten(sigma.expand(20, 16, 16), 20, generator=source)
    rate = (losses[8:] / losses[7:-1]).mean().item()
    assert rate == pytest.approx(whitening_ratio(16), abs=0.03)
    stuck, _ = whiten(sigma, 20, rotate=False)
    assert stuck[1] < stuck[0] and stuck[20].item() == pytest.approx(stuck[1].item(), rel=1e-6)


# --- Bad input.


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: best_volume_preserving(torch.zeros(4, 4), 1.0), "log_p"),
        (lambda: height_profile(torch.zeros(4), 0.0), "cell"),
        (lambda: gaussian_profile(torch.zeros(1), -1.0, 2), "jacobian"),
        (lambda: separated_modes_gap([1.0, -1.0]), "variances"),
        (lambda: separated_modes_gap([1.0, 1.0], [1.0]), "weights"),
        (lambda: conditional_moments(torch.zeros(5), torch.zeros(5, 1), 4), "num_bins"),
        (lambda: fit_affine_block(torch.randn(100, 2), step=1.5), "step"),
        (
            lambda: BinnedCoupling(torch.eye(2), torch.tensor([0.0, 0.0]), torch.ones(2, 1), torch.zeros(2, 1)),
            "position",
        ),
        (lambda: BinnedCoupling(torch.eye(2), torch.tensor([0.0, 1.0]), torch.zeros(2, 1), torch.zeros(2, 1)), "scale"),
        (lambda: whitening_block(torch.eye(4), 4), "active"),
        (lambda: var_max_bound(torch.tensor([1.0, 3.0])), "eigenvalues"),
        (lambda: unitary_bound(torch.ones(4)), "eigenvalues"),
        (lambda: loss_only_bound(0.0, 4), "loss"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
