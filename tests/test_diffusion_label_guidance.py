"""Guidance by labels against exact conditional laws of mixtures; what scales above 1 do; bad input."""

import jaxtyping
import pytest
import torch
from torch import nn

from refimpl.data import NormalMixture
from refimpl.diffusion import (
    EDM,
    VE,
    VP,
    DiffusionModel,
    FlowPath,
    TrigonometricPath,
    classifier_free,
    classifier_guided,
    ddim,
    drop_labels,
    euler,
    exact_model,
    heun,
)
from refimpl.diffusion.model import KINDS, convert
from refimpl.metrics import sliced_wasserstein

F64 = torch.float64
PROCESSES = [VP(), VE(), EDM(), FlowPath(), TrigonometricPath()]
NULL, FIRST, SECOND = torch.zeros(2, dtype=F64), *torch.eye(2, dtype=F64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=generator(seed))


def distance(x, exact):
    """Two exact samples of 1500 points are .05 to .09 apart; the whole law and one class, 1.3."""
    return sliced_wasserstein(x, exact, generator=generator(77))


def mixture(*means, variance=0.3, weights=None):
    dim = len(means[0])
    roots = 0.4 * normal(len(means), dim, dim, seed=9)
    covariances = variance * torch.eye(dim, dtype=F64) + roots @ roots.mT
    return NormalMixture(torch.tensor(means, dtype=F64), covariances, weights)


# Two classes of different shape and of shares 1/4 and 3/4.
CLASSES = [mixture([1.0, 0.0], [2.0, 1.0]), mixture([-1.5, 0.5], [0.0, -1.0])]
WHOLE = NormalMixture.joined(CLASSES, [0.25, 0.75])


def log_posterior(process, label=0):
    """log p(c | x_t), exact at each noise level."""
    share = torch.tensor([0.25, 0.75], dtype=F64).log()

    def log_likelihood(x, t):
        log = [share[c] + p.log_prob(x, *process.coefficients(t)) for c, p in enumerate(CLASSES)]
        return log[label] - torch.logsumexp(torch.stack(log), 0)

    return log_likelihood


def labelled_model(process, predicts="data"):
    """One exact network for both classes and for no label: context (1, 0), (0, 1), (0, 0)."""

    def network(x, t, context):
        a, b = process.coefficients(t)
        each = torch.stack([p.denoise(x, a, b) for p in (*CLASSES, WHOLE)], -1)
        which = torch.cat([context, 1 - context.sum(-1, keepdim=True)], -1)
        x0 = (each * which.unsqueeze(-2)).sum(-1)
        return convert(x0, x, t, process, source="data", target=predicts)

    return DiffusionModel(network, process, predicts)


def as_predicting(model, kind):
    """The same model in the form of a network of another kind."""
    return DiffusionModel(lambda x, t: model(x, t, kind), model.process, kind)


# --- classifier guidance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_exact_classifier_every_prediction_is_that_of_the_conditional_law(process, kind):
    t = 0.1 + 0.8 * torch.rand(20, 1, dtype=F64, generator=generator(1))
    x = process.add_noise(WHOLE.sample(20, generator(2)), normal(20, 2), t)
    guided = classifier_guided(as_predicting(exact_model(WHOLE, process), kind), log_posterior(process))
    wanted = exact_model(CLASSES[0], process)
    assert guided.predicts == kind
    for target in KINDS:
        torch.testing.assert_close(guided(x, t, target), wanted(x, t, target), atol=1e-8, rtol=1e-8)


def test_so_every_sampler_draws_from_the_conditional_law():
    process, start = EDM(sigma_max=20.0), EDM(sigma_max=20.0).initial((1500, 2), NULL, generator())
    guided = classifier_guided(exact_model(WHOLE, process), log_posterior(process))
    x = heun(guided, start, process.times(18))
    torch.testing.assert_close(x, heun(exact_model(CLASSES[0], process), start, process.times(18)), atol=1e-8, rtol=0)
    exact = CLASSES[0].sample(1500, generator(1))
    assert distance(x, exact) < 0.15 < 0.2 * distance(WHOLE.sample(1500, generator(3)), exact)
    settings = dict(stochasticity=1.0, generator=generator(5))
    assert distance(euler(guided, start, process.times(60), **settings), exact) < 0.15


def test_a_classifier_of_clean_data_is_not_enough():
    """The usual fault: log p(c | x_0) asked at x_t. Early guidance is then wrong, and so are the samples."""
    process = EDM(sigma_max=20.0)
    start = process.initial((1500, 2), NULL, generator())
    clean = log_posterior(process)
    fault = classifier_guided(exact_model(WHOLE, process), lambda x, t: clean(x, torch.full_like(t, 0.01)))
    exact = CLASSES[0].sample(1500, generator(1))
    assert distance(heun(fault, start, process.times(18)), exact) > 1


def test_the_scale_multiplies_the_gradient():
    process, t = VP(), 0.4
    x = normal(5, 2)
    model, log_likelihood = exact_model(WHOLE, process), log_posterior(process)
    assert torch.equal(classifier_guided(model, log_likelihood, 0).data(x, t), model.data(x, t))
    steps = [classifier_guided(model, log_likelihood, w).score(x, t) - model.score(x, t) for w in (1, 2.5, -1)]
    torch.testing.assert_close(steps[1], 2.5 * steps[0])
    torch.testing.assert_close(steps[2], -steps[0])
    leaf = x.clone().requires_grad_()
    log_likelihood(leaf, torch.full((5, 1), t, dtype=F64)).sum().backward()
    torch.testing.assert_close(steps[0], leaf.grad)


def test_a_flow_starts_without_guidance_and_is_finite_there():
    process = FlowPath()
    model = exact_model(WHOLE, process)
    guided, x = classifier_guided(model, log_posterior(process)), normal(6, 2)
    torch.testing.assert_close(guided.velocity(x, 0.0), model.velocity(x, 0.0))
    exact, start = CLASSES[0].sample(1500, generator(1)), normal(1500, 2)
    assert distance(ddim(guided, start, process.times(100)), exact) < 0.15


def test_guidance_can_be_differentiated_and_transformed():
    process, t = VP(), torch.tensor([0.4], dtype=F64)
    guided, wanted = (
        classifier_guided(exact_model(WHOLE, process), log_posterior(process)),
        exact_model(CLASSES[0], process),
    )
    x = normal(2).requires_grad_()
    gradient = torch.autograd.grad(guided.data(x, t).sum(), x)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.data(x, t).sum(), x)[0])
    jacobian = torch.func.jacrev(lambda x: guided.data(x, t))(x.detach())
    torch.testing.assert_close(jacobian.sum(0), gradient)
    with torch.no_grad():
        assert not guided.data(x, t).requires_grad


def test_calls_and_context():
    process = EDM()
    model = labelled_model(process)
    guided = classifier_guided(model, lambda x, t: 0 * x.sum(-1))
    x = normal(4, 2)
    torch.testing.assert_close(guided.data(x, 1.0, FIRST), model.data(x, 1.0, FIRST))
    model.reset_counts()
    heun(guided, x, process.times(5), context=SECOND)
    assert model.calls == guided.calls - 1 == 9


# --- classifier-free guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "noise", "velocity"])
def test_scale_0_and_1_are_the_two_predictions_to_the_last_bit(kind):
    process, x, t = VP(), normal(50, 2), 0.05 + 0.9 * torch.rand(50, 1, dtype=F64, generator=generator(1))
    model = labelled_model(process, kind)
    assert torch.equal(classifier_free(model, 0, FIRST, NULL)(x, t), model(x, t, context=NULL))
    assert torch.equal(classifier_free(model, 1, FIRST, NULL)(x, t), model(x, t, context=FIRST))
    assert torch.equal(classifier_free(model, 1.0, FIRST, NULL).score(x, t), model.score(x, t, FIRST))


def test_between_and_beyond_it_is_linear_and_in_ho_and_salimans_convention_w_is_scale_minus_1():
    process, x, t = VP(), normal(20, 2), 0.5
    model = labelled_model(process, "noise")
    with_label, without = model(x, t, context=FIRST), model(x, t, context=NULL)
    for scale in (-1.0, 0.3, 0.7, 4, 7.5):
        w = scale - 1
        got = classifier_free(model, scale, FIRST, NULL)(x, t)
        torch.testing.assert_close(got, (1 + w) * with_label - w * without)


def test_it_equals_classifier_guidance_by_bayes_rule_and_mixes_every_kind_alike():
    process, x, t = VP(), normal(20, 2), 0.3
    by_classifier = classifier_guided(exact_model(WHOLE, process), log_posterior(process), 3.0)
    for kind in KINDS:
        free = classifier_free(labelled_model(process, kind), 3.0, FIRST, NULL)
        torch.testing.assert_close(free.data(x, t), by_classifier.data(x, t), atol=1e-8, rtol=1e-8)


def test_each_state_may_have_its_own_label_and_an_evaluation_is_two_calls():
    process, x, t = EDM(), normal(2, 2), 0.7
    model = labelled_model(process)
    labels = torch.stack([FIRST, SECOND])
    both = classifier_free(model, 2.0, labels, NULL).data(x, t)
    assert model.calls == 2
    for i, label in enumerate(labels):
        torch.testing.assert_close(both[i], classifier_free(model, 2.0, label, NULL).data(x[i], t))


def test_large_scales_are_not_tilting():
    """p(x|c) = N(+-1, 1/4): the samples at scale 4 overshoot p(x)^(1 - 4) p(x|c)^4 by far, and are too narrow.

    The samples come from many noises in a row; the tilted law's moments from a fine grid.
    """
    process = EDM(sigma_max=50.0)
    up, down = (
        NormalMixture(torch.tensor([[m]], dtype=F64), torch.full((1, 1, 1), 0.25, dtype=F64)) for m in (1.0, -1.0)
    )
    both = NormalMixture.joined([up, down])

    def network(x, t, context):
        a, b = process.coefficients(t)
        return torch.where(context > 0, up.denoise(x, a, b), both.denoise(x, a, b))

    one, none = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    quantiles = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    start = 50.0 * torch.special.ndtri(quantiles)[:, None]
    moments = {}
    for scale in (1.0, 4.0):
        guided = classifier_free(DiffusionModel(network, process, "data"), scale, one, none)
        x = heun(guided, start, process.times(60))
        moments[scale] = x.mean().item(), x.std().item()
    grid = torch.linspace(-6, 8, 20_001, dtype=F64)[:, None]
    weights = (-3 * both.log_prob(grid) + 4 * up.log_prob(grid)).exp()
    tilted = (weights * grid[:, 0]).sum() / weights.sum()
    spread = ((weights * (grid[:, 0] - tilted) ** 2).sum() / weights.sum()).sqrt()
    assert moments[1.0] == pytest.approx((1 - 0.5 / 50, 0.5), abs=2e-3)  # noise of mean 0 where p_t has mean 1
    assert (tilted.item(), spread.item()) == pytest.approx((1.062, 0.450), abs=2e-3)
    assert moments[4.0][0] > tilted + 0.4
    assert moments[4.0][1] < 0.7 * spread


# --- labels that are dropped -------------------------------------------------------------------------------------


def test_labels_are_dropped_whole_at_the_given_rate():
    labels, null, n = torch.ones(4000, 3), torch.tensor([-1.0, -2.0, -3.0]), 4000
    got = drop_labels(labels, null, 0.2, generator())
    gone = (got == null).all(1)
    assert ((got == 1).all(1) | gone).all()
    assert abs(gone.double().mean() - 0.2) < 4 * (0.2 * 0.8 / n) ** 0.5
    assert torch.equal(got, drop_labels(labels, null, 0.2, generator()))
    assert torch.equal(drop_labels(labels, null, 0), labels)
    assert torch.equal(drop_labels(labels, null, 1), null.expand(4000, 3))
    assert torch.equal(labels, torch.ones(4000, 3))


def test_a_network_trained_with_dropped_labels_gives_both_predictions():
    """The best constants, for a network that sees the label only: class means, and the mean of all without one."""
    labels = torch.eye(2).repeat(2000, 1)
    target = labels @ torch.tensor([[3.0], [-1.0]])
    seen, null = [], torch.tensor([9.0, 9.0])
    g = generator()
    for _ in range(20):
        seen.append(drop_labels(labels, null, 0.5, g))
    seen, target = torch.cat(seen), target.repeat(20, 1)
    means = [target[(seen == label).all(1)].mean().item() for label in (*torch.eye(2), null)]
    assert means == pytest.approx([3.0, -1.0, 1.0], abs=0.05)


# --- bad input ---------------------------------------------------------------------------------------------------

MODEL = DiffusionModel(lambda x, t, context=None: x, EDM(), "data")
POINTS, LABEL = torch.zeros(4, 2), torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: classifier_guided(nn.Identity(), lambda x, t: x), TypeError, ["model", "Identity", "DiffusionModel"]),
        (lambda: classifier_guided(MODEL, POINTS), TypeError, ["log_likelihood", "Tensor", "function"]),
        (lambda: classifier_guided(MODEL, lambda x, t: x, float("nan")), ValueError, ["scale", "nan"]),
        (
            lambda: classifier_guided(MODEL, lambda x, t: x).data(POINTS, 1.0),
            ValueError,
            ["log_likelihood", "(4, 2)", "(4,)"],
        ),
        (lambda: classifier_free(nn.Identity(), 1.0, LABEL, LABEL), TypeError, ["model", "DiffusionModel"]),
        (lambda: classifier_free(MODEL, "2", LABEL, LABEL), ValueError, ["scale", "2"]),
        (lambda: classifier_free(MODEL, 1.0, torch.zeros(2), LABEL), ValueError, ["context", "(2,)", "3"]),
        (lambda: classifier_free(MODEL, 1.0, LABEL, torch.zeros(1, 3)), ValueError, ["null_context", "(1, 3)"]),
        (lambda: classifier_free(MODEL, 1.0, LABEL.long(), LABEL), TypeError, ["context", "int64"]),
        (lambda: drop_labels(torch.zeros(4, 2), LABEL), ValueError, ["context", "(4, 2)", "3"]),
        (lambda: drop_labels(torch.zeros(4, 3), LABEL, 1.5), ValueError, ["probability", "1.5"]),
        (lambda: drop_labels(torch.zeros(4, 3), LABEL, -0.1), ValueError, ["probability", "-0.1"]),
    ],
)
def test_bad_input_is_named(call, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error) as caught:
        call()
    assert [w for w in words if w not in str(caught.value)] == []
