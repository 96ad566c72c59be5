"""Chapter 00: each claim's criterion holds for the chapter's method and fails for a broken one."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refimpl import autodiff, runtime
from refimpl.claims import MIME, Claim
from refimpl.data.tabular import split_folds

NAME = "00_how_this_course_works"
CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
# PyTorch's own use of torch.jit inside forward-mode derivatives.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def stored_outputs():
    notebook = json.loads((CHAPTERS / f"{NAME}.ipynb").read_text(encoding="utf-8"))
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def summary():
    """The claims as the committed notebook declares and stores them."""
    (data,) = [o["data"][MIME] for o in stored_outputs() if MIME in o.get("data", {})]
    return data


@pytest.fixture(scope="module")
def criteria(summary):
    fields = ("id", "statement", "where", "reported", "quantity", "op", "bound", "revised")
    rows = [{f: tuple(c[f]) if isinstance(c[f], list) else c[f] for f in fields} for c in summary["claims"]]
    return {row["id"]: Claim(**row) for row in rows}


@pytest.fixture(scope="module")
def chapter():
    """Everything that the chapter defines and measures, run as a script on the CPU with seed 0."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("REFIMPL_DEVICE", "cpu"), ("REFIMPL_SEED", "0"), ("REFIMPL_SIZE", "quick")):
            patch.setenv(name, value)
        patch.setenv("MPLBACKEND", "Agg")
        patch.delenv("DISPLAY", raising=False)
        import matplotlib.pyplot as plt

        plt.switch_backend("Agg")
        yield runpy.run_path(str(CHAPTERS / f"{NAME}.py"))
        plt.close("all")


def test_the_stored_notebook_measured_every_claim_at_quick_size(summary, chapter):
    assert summary["chapter"] == NAME and summary["size"] == "quick" and summary["device"] == "CPU"
    assert [c["id"] for c in summary["claims"]] == [f"GS-{i}" for i in range(1, 7)]
    assert all(c["holds"] for c in summary["claims"])


def test_criteria_hold_for_what_the_chapter_measures(chapter, criteria):
    assert criteria == chapter["claim"].claims
    for name, values in chapter["claim"].values.items():
        assert criteria[name].holds(values), (name, values)


def test_a_density_without_or_against_the_determinant_fails_gs1(chapter, criteria):
    normal_log_prob, encode, x = chapter["normal_log_prob"], chapter["encode"], chapter["x_2d"]

    def no_determinant(x):
        return normal_log_prob(encode(x))

    def wrong_sign(x):
        return 2 * normal_log_prob(encode(x)) - chapter["log_prob_2d"](x)

    def shifted(x):
        return chapter["log_prob_2d"](x - 0.1)

    for broken in (no_determinant, wrong_sign, shifted):
        distance = chapter["total_variation"](x, broken, -5, 5, 40)
        assert not criteria["GS-1"].holds([chapter["tv"][0], distance]), distance

    def no_determinant_1d(x):
        return normal_log_prob(2 * x.log())

    distance = chapter["total_variation"](chapter["x_1d"], no_determinant_1d, 0, 8, 80)
    assert not criteria["GS-1"].holds([distance, chapter["tv"][1]])


def test_total_variation_counts_what_lies_outside_the_box(chapter):
    x = torch.tensor([[0.5], [1.5], [7.0], [8.0]], dtype=torch.float64)
    uniform = chapter["total_variation"](x, lambda x: torch.full_like(x[:, 0], -math.log(2.0)), 0, 2, 2)
    assert uniform == pytest.approx(0.5)


def test_another_divergence_or_a_missing_term_fails_gs2(chapter, criteria):
    points, width, p = chapter["points"], chapter["width"], chapter["p"]
    scales, nll, entropy, kl = (chapter[name] for name in ("scales", "nll", "entropy", "kl"))

    def reverse(b):
        log_q = chapter["log_q"](points, b)
        return (log_q.exp() * (log_q - chapter["log_p"](points))).sum().item() * width

    def largest_gap(nll, entropy, kl):
        return max(abs(n - entropy - k) for n, k in zip(nll, kl, strict=True))

    assert p.sum().item() * width == pytest.approx(1)
    assert criteria["GS-2"].holds(largest_gap(nll, entropy, kl))
    assert not criteria["GS-2"].holds(largest_gap(nll, entropy, [reverse(b) for b in scales]))
    assert not criteria["GS-2"].holds(largest_gap(nll, 0.0, kl))
    no_determinant = [n - math.log(b) for n, b in zip(nll, scales, strict=True)]
    assert not criteria["GS-2"].holds(largest_gap(no_determinant, entropy, kl))


def test_transposed_products_and_finite_differences_fail_gs3(chapter, criteria):
    f, x, jac, u, relative_error = (chapter[name] for name in ("f", "x0", "jac", "u", "relative_error"))
    v = torch.randn(x.shape, dtype=x.dtype, generator=runtime.generator(1))
    forward, reverse = autodiff.jvp(f, x, v)[1], autodiff.vjp(f, x, u)[1]
    right = [relative_error(forward, v @ jac.T), relative_error(reverse, u @ jac)]
    assert criteria["GS-3"].holds(right)
    assert not criteria["GS-3"].holds([relative_error(autodiff.vjp(f, x, v)[1], v @ jac.T), right[1]])
    assert not criteria["GS-3"].holds([right[0], relative_error(autodiff.jvp(f, x, u)[1], u @ jac)])
    one_sided = (f(x + 1e-5 * v) - f(x)) / 1e-5
    assert not criteria["GS-3"].holds([relative_error(one_sided, v @ jac.T), right[1]])


def test_a_product_by_way_of_the_full_jacobian_fails_gs4(chapter, criteria):
    flops, h, x, v = (chapter[name] for name in ("flops", "h", "x", "v"))
    x = torch.randn(1, 256, dtype=torch.float64, generator=runtime.generator(0))
    h = chapter["random_map"](256)
    once = flops(h, x)
    assert criteria["GS-4"].holds(flops(autodiff.jvp, h, x, x) / once)
    slow = flops(lambda: (autodiff.jacobian(h, x) @ x[..., None]).squeeze(-1)) / once
    assert not criteria["GS-4"].holds(slow)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_unnormalised_probes_or_the_wrong_closed_form_fail_gs5(chapter, criteria, kind):
    jac, v, closed_form = chapter["jac"], chapter["probes"][kind], chapter["closed_form"][kind]

    def estimates(v):
        return ((v @ jac) * v).sum(-1)

    assert criteria["GS-5"].holds((estimates(v).var() / closed_form).item())
    unit_length = v / v.norm(dim=-1, keepdim=True)
    reused = estimates(v[: len(v) // 2]).repeat(2) / 2  # the mean of two equal probes, divided as if it were a sum
    for broken in (estimates(unit_length), estimates(2 * v), reused):
        assert not criteria["GS-5"].holds((broken.var() / closed_form).item())
    other = chapter["closed_form"]["gaussian" if kind == "rademacher" else "rademacher"]
    assert not criteria["GS-5"].holds((estimates(v).var() / other).item())


def test_a_flow_without_determinant_or_without_bumps_fails_gs6(chapter, criteria):
    data, log_prob, fit = chapter["data"], chapter["log_prob"], chapter["fit"]

    def gain(score):
        """Lead of a model over the better baseline; score(train, held_out) is its log-likelihood."""
        rows = []
        for train, held_out in split_folds(len(data), 5, runtime.generator(0)):
            train, held_out = data[train], data[held_out]
            h = chapter["fit_kde"](train)
            baselines = (chapter["fit_gaussian"](train).log_prob(held_out), chapter["kde_log_prob"](held_out, train, h))
            rows.append(torch.stack([*baselines, score(train, held_out)]))
        means = torch.cat(rows, 1).double().mean(1)
        return (means[2] - means[:2].max()).item()

    def collapsed(train, held_out):
        return log_prob(fit(train, 200, chapter["densities"]["no determinant"]), held_out)

    def wrong_sign(train, held_out):
        z, log_det = fit(train)(held_out)
        return chapter["normal_log_prob"](z) - log_det

    def affine(train, held_out):
        return chapter["fit_gaussian"](train).log_prob(held_out)

    assert criteria["GS-6"].holds(gain(lambda train, held_out: log_prob(fit(train), held_out)))
    for broken in (collapsed, wrong_sign, affine):
        assert not criteria["GS-6"].holds(gain(broken)), broken


def test_the_flow_samples_what_it_says(chapter):
    flow, x = chapter["flow"], chapter["drawn"]["flow"]
    z = flow(x)[0]
    assert x.isfinite().all() and (z.abs() < 6).all()
    again = torch.stack([z.mean(0), z.std(0)])
    assert torch.allclose(again, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), atol=0.2)


def test_the_play_cell_follows_its_controls_and_keeps_its_mass(chapter):
    import matplotlib.pyplot as plt

    titles = []
    for twist, bulge in ((0.0, 0.0), (1.2, 0.5), (-2.5, -0.3)):
        figure, ax = plt.subplots()
        chapter["draw_density"](twist, bulge, ax)
        titles.append(float(ax.get_title(loc="left").removeprefix("integral ")))
        plt.close(figure)
    assert titles == pytest.approx([1.0, 1.0, 1.0], abs=0.01)


def test_the_forgotten_determinant_shows_in_the_integral(chapter):
    integrals = chapter["integrals"]
    assert integrals["complete"][-1] == pytest.approx(1, abs=0.02)
    assert integrals["no determinant"][-1] > 5
    assert chapter["sweep"]["no determinant"] == sorted(chapter["sweep"]["no determinant"], reverse=True)


def test_no_number_that_is_measured_stands_in_prose():
    """Every sentence with a measured number is made by a cell, so each one is an output."""
    said = [o for o in stored_outputs() if "text/markdown" in o.get("data", {})]
    assert len(said) >= 8
    assert all("nan" not in "".join(o["data"]["text/markdown"]).split() for o in said)


def test_it_runs_as_a_script_from_another_folder(tmp_path):
    env = os.environ | {"MPLBACKEND": "Agg", "REFIMPL_SEED": "1", "REFIMPL_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(CHAPTERS / f"{NAME}.py")],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("GS-") and "holds: " in line]
    assert len(verdicts) == 6, done.stdout
    assert done.stderr == "" and not any(tmp_path.iterdir())
