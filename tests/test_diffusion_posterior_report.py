"""The report on posterior samples: right for exact samples, and each number moves for the fault that it measures."""

import jaxtyping
import pytest
import torch

from refimpl.data import NormalMixture
from refimpl.diffusion import Measurement
from refimpl.diffusion.gaussian_guidance import gaussian_posterior, normal_kl
from refimpl.diffusion.posterior_report import posterior_report


def source(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def case():
    """Six problems with two modes each: prior, measurement, posterior, truths."""
    g = source()
    means = torch.tensor([[1.5, 1.0, 0.0], [-1.5, 1.0, 0.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
    prior = NormalMixture(means, 0.1 * torch.eye(3).double().expand(3, 3, 3))
    matrix = torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64)
    truth = prior.sample(6, g)
    y = truth @ matrix.T + 0.3 * torch.randn(6, 1, generator=g, dtype=torch.float64)
    return prior, Measurement(matrix, y, 0.3), prior.condition(matrix, y, 0.3), truth


def means(case, samples, exact=None, **settings):
    prior, measurement, posterior, truth = case
    exact = posterior if exact is None else exact
    report = posterior_report(
        samples, exact, prior, measurement=measurement, truth=truth, generator=source(1), **settings
    )
    assert all(value.shape == (6,) for value in report.values())
    return {name: value.mean().item() for name, value in report.items()}


def test_exact_samples_are_right_in_every_number(case):
    prior, measurement, posterior, _ = case
    found = means(case, posterior.sample(1000, source()))
    assert 0.8 < found["over_floor"] < 1.25 and found["distance"] < 0.45
    assert abs(found["mmd_squared"]) < 2e-3 and found["mode_tv"] < 0.03
    for name in ("variance_ratio", "row_variance_ratio", "null_variance_ratio"):
        assert found[name] == pytest.approx(1, abs=0.06)
    mean, covariance = posterior.moments()
    off = measurement.residual(mean).square() + measurement.matrix @ covariance @ measurement.matrix.T
    assert found["residual"] == pytest.approx((off[:, 0, 0].mean() ** 0.5 / 0.3).item(), abs=0.3)
    assert means(case, prior.sample((1000, 6), source()))["distance"] == pytest.approx(1, abs=0.1)


def test_coverage_is_the_level_for_exact_samples():
    prior = NormalMixture(torch.zeros(1, 8).double(), torch.eye(8).double()[None])
    matrix, g = torch.eye(8).double()[:3], source()
    truth = prior.sample(60, g)
    y = truth @ matrix.T + 0.5 * torch.randn(60, 3, generator=g, dtype=torch.float64)
    posterior = prior.condition(matrix, y, 0.5)
    samples = posterior.sample(120, g)
    centre = samples.mean(0)
    for level, shrink, low, high in ((0.9, 1.0, 0.86, 0.94), (0.5, 1.0, 0.44, 0.56), (0.9, 0.3, 0.25, 0.48)):
        report = posterior_report(
            centre + shrink * (samples - centre),
            posterior,
            prior,
            truth=truth,
            level=level,
            num_projections=4,
            generator=g,
        )
        assert low < report["coverage"].mean() < high
        assert set(report) == {
            "distance",
            "floor",
            "over_floor",
            "mmd_squared",
            "variance_ratio",
            "mode_tv",
            "coverage",
        }


@pytest.mark.parametrize("fault", ["across", "along", "shift", "modes"])
def test_each_fault_shows_in_its_own_number(case, fault):
    prior, measurement, posterior, _ = case
    samples = posterior.sample(600, source())
    row = measurement.matrix[0]
    across = (samples @ row).unsqueeze(-1) * row
    fine = means(case, samples)
    if fault == "across":
        found = means(case, samples - 0.5 * (across - across.mean(0)))
        assert found["row_variance_ratio"] == pytest.approx(0.25 * fine["row_variance_ratio"], rel=1e-6)
        assert found["null_variance_ratio"] == pytest.approx(fine["null_variance_ratio"], rel=1e-6)
    elif fault == "along":
        along = samples - across
        found = means(case, samples + 0.5 * (along - along.mean(0)))
        assert found["row_variance_ratio"] == pytest.approx(fine["row_variance_ratio"], rel=1e-6)
        assert found["null_variance_ratio"] == pytest.approx(2.25 * fine["null_variance_ratio"], rel=1e-6)
    elif fault == "shift":
        found = means(case, samples + row)
        assert found["residual"] > 2 * fine["residual"] and found["variance_ratio"] == pytest.approx(
            fine["variance_ratio"]
        )
        assert found["mmd_squared"] > 0.1
    else:
        left = torch.stack([samples[..., 0].abs(), *samples[..., 1:].unbind(-1)], -1)
        found, of_classes = means(case, left), means(case, left, modes=torch.tensor([0, 0, 1]))
        assert found["mode_tv"] > 0.25 and found["residual"] == pytest.approx(fine["residual"])
        assert of_classes["mode_tv"] < 0.03  # the two that were merged are of one class
    assert found["over_floor"] > 1.3


def test_row_and_null_space_are_those_of_the_matrix():
    prior = NormalMixture(torch.zeros(1, 4).double(), torch.eye(4).double()[None])
    matrix = torch.randn(2, 4, generator=source(), dtype=torch.float64)
    measurement = Measurement(matrix, torch.ones(2).double(), 0.5)
    posterior = prior.condition(matrix, measurement.y, 0.5)
    samples = posterior.sample(200, source())
    along = torch.eye(4).double() - torch.linalg.pinv(matrix) @ matrix
    fine, wide = (
        posterior_report(x, posterior, prior, measurement=measurement, generator=source())
        for x in (samples, samples + 2 * (samples - samples.mean(0)) @ along)
    )
    torch.testing.assert_close(wide["row_variance_ratio"], fine["row_variance_ratio"])
    torch.testing.assert_close(wide["null_variance_ratio"], 9 * fine["null_variance_ratio"])


def test_draws_do_where_there_is_no_closed_form(case):
    prior, _, posterior, _ = case
    samples, draws = posterior.sample(500, source()), posterior.sample(4000, source(2))
    closed = means(case, samples)
    found = means(case, samples, exact=draws, modes=prior.responsibilities)
    assert found["mode_tv"] < 0.03
    for name in ("variance_ratio", "row_variance_ratio", "null_variance_ratio"):
        assert found[name] == pytest.approx(closed[name], abs=0.05)
    assert "mode_tv" not in means(case, samples, exact=draws)


def test_one_problem_without_batch_and_no_null_space():
    prior = NormalMixture(torch.zeros(1, 2), torch.eye(2)[None])
    measurement = Measurement(torch.eye(2), torch.ones(2), 0.5)
    posterior = prior.condition(torch.eye(2), torch.ones(2), 0.5)
    report = posterior_report(posterior.sample(400, source()), posterior, prior, measurement=measurement)
    assert report["row_variance_ratio"].shape == () and "null_variance_ratio" not in report
    torch.testing.assert_close(report["row_variance_ratio"], report["variance_ratio"])


def test_divergence_of_two_normals_is_torchs():
    p, q = torch.distributions.Normal(0.3, 0.2), torch.distributions.Normal(-0.1, 0.5)
    assert normal_kl(0.3, 0.2, -0.1, 0.5) == pytest.approx(torch.distributions.kl_divergence(p, q).item(), rel=1e-5)
    prior = NormalMixture(torch.tensor([[0.4]]).double(), torch.tensor([[[0.36]]]).double())
    mean, covariance = prior.condition(torch.eye(1).double(), torch.tensor([2.0]).double(), 0.3).moments()
    assert gaussian_posterior(2.0, 0.3, 0.4, 0.6) == pytest.approx((mean.item(), covariance.sqrt().item()))


BAD = {
    r"samples: got shape \(3,\), expected \(chains": {"samples": torch.zeros(3).double()},
    r"samples: got shape \(1, 6, 3\), expected \(chains": {"samples": torch.zeros(1, 6, 3).double()},
    "samples: has values that are not finite": {"samples": torch.full((4, 6, 3), float("nan")).double()},
    r"exact: got shape \(8, 5, 3\), expected \(8, 6, 3\)": {"exact": torch.zeros(8, 5, 3).double()},
    r"exact: got shape \(3, 6, 3\)": {"exact": torch.zeros(3, 6, 3).double()},
    r"prior: got shape \(9, 2\), expected \(9, 3\)": {"prior": torch.zeros(9, 2).double()},
    r"truth: got shape \(3,\), expected \(6, 3\)": {"truth": torch.zeros(3).double()},
    r"modes: got shape \(2,\), expected one label for 3": {"modes": torch.tensor([0, 1])},
    "num_projections: got 0": {"num_projections": 0},
    "level: got .1.0.": {"level": 1.0},
}


@pytest.fixture
def untyped(monkeypatch):
    """The annotations' run-time check would raise first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("message", BAD)
def test_errors_name_the_argument(untyped, case, message):
    prior, _, posterior, _ = case
    arguments = {"samples": posterior.sample(4, source()), "exact": posterior, "prior": prior} | BAD[message]
    with pytest.raises(ValueError, match=message):
        posterior_report(arguments.pop("samples"), arguments.pop("exact"), arguments.pop("prior"), **arguments)
