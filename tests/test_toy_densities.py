"""Known densities of the plane: torch.distributions, quadrature and counts as oracles."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from refimpl import runtime
from refimpl.data import GaussianMixture, moons, ring

F64 = torch.float64


def test_density_is_that_of_torch():
    means, std, weights = torch.randn(4, 3, dtype=F64), torch.tensor([0.3, 1, 2, 0.7], dtype=F64), [1, 2, 3, 4]
    ours = GaussianMixture(means, std, weights)
    parts = Independent(Normal(means, std[:, None].expand(4, 3)), 1)
    theirs = MixtureSameFamily(Categorical(torch.tensor(weights, dtype=F64) / 10), parts)
    x = 3 * torch.randn(50, 3, dtype=F64)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))


@pytest.mark.parametrize("density", [moons(), ring(5, radius=1.5, std=0.3)])
def test_samples_have_the_densitys_mass_and_moments(density):
    step = 0.02
    axis = torch.arange(-5, 5, step, dtype=F64)
    cells = torch.cartesian_prod(axis, axis).float()
    mass = density.log_prob(cells).exp() * step**2
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    x = density.sample(40_000, runtime.generator(0))
    torch.testing.assert_close(x.mean(0), mass @ cells, atol=0.03, rtol=0)
    torch.testing.assert_close(x.T @ x / len(x), (mass * cells.T) @ cells, atol=0.04, rtol=0)
    # -E log p by samples and by quadrature: the entropy notices a wrong spread within the modes
    entropy = -(mass * density.log_prob(cells)).sum()
    assert -density.log_prob(x).mean().item() == pytest.approx(entropy.item(), abs=0.02)


def test_weights_decide_how_many_points_a_mode_gets():
    x = GaussianMixture([[-5.0], [5.0]], 0.1, [1, 3]).sample(10_000, runtime.generator(1))
    assert (x > 0).float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_bad_arguments_are_named():
    for arguments, name in [
        (dict(means=torch.ones(2), std=1), "means"),
        (dict(means=[[1.0], [2.0]], std=[1.0, -1.0]), "std"),
        (dict(means=[[1.0], [2.0]], std=1, weights=[1.0, 0.0]), "weights"),
    ]:
        with pytest.raises(ValueError, match=f"^{name}: got"):
            GaussianMixture(**arguments)
