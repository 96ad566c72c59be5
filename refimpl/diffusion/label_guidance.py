"""Guidance towards a label: by a classifier of noisy states, or by a network that knows labels and knows none.

Both change the score, by Bayes' rule: s(x | c) = s(x) + grad log p(c | x). At scale 1 the first samples p(x | c), if the
classifier is right at every noise level; so does the second. Larger scales add the same gradient several times. That is
no longer the score of noised data of any law: samples overshoot and lose variety.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_tensor
from refimpl.data._random import draw
from refimpl.diffusion.model import DiffusionModel

__all__ = ["classifier_free", "classifier_guided", "drop_labels"]


def classifier_guided(model: DiffusionModel, log_likelihood: Callable, scale: float | int = 1.0) -> DiffusionModel:
    """A model whose score is that of `model` plus scale times the gradient of log p(c | x_t).

    At a flow's first moment the state is noise only (a = 0) and knows nothing of c: there the estimate of the data stays
    that of `model`, where the right one, E[x_0 | c], is no function of the gradient.

    Args:
        model: without the label; its counts go on. A context given to the guided model is passed to it.
        log_likelihood: function of (x, t), t of shape (*batch, 1), that gives log p(c | x_t = x) in nats, shape (*batch),
            each entry from its own x only: a classifier trained on noisy states, or an exact one.
        scale: 1 for Bayes' rule.

    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), Section 4 and Appendix H; Song et al. 2021 (arXiv 2011.13456),
    Eq. (14).

    >>> from refimpl.diffusion import EDM
    >>> model = DiffusionModel(lambda x, t: x / (1 + t**2), EDM(), predicts="data")
    >>> guided = classifier_guided(model, lambda x, t: 3 * x.sum(-1))
    >>> guided.score(torch.tensor([2.0]), 1.0)  # -1 + 3
    tensor([2.])
    """
    _check_model(model)
    check_numbers("scale", [scale])
    if not callable(log_likelihood):
        raise TypeError(f"log_likelihood: got {type(log_likelihood).__name__}, expected a function of (x, t)")

    def value(x: Tensor, t: Tensor) -> Tensor:
        log = log_likelihood(x, t)
        if log.shape != x.shape[:-1]:
            raise ValueError(f"log_likelihood: returned shape {tuple(log.shape)}, expected {tuple(x.shape[:-1])}")
        return log.sum()

    def network(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        own = model(x, t, context=context)
        gradient = torch.func.grad(value)(x, t)
        a, b = model.process.coefficients(t)
        data = b.square() * torch.where(a > 0, 1 / a, 0.0)  # what a unit of score is worth in data, and in noise -b
        change = {"score": 1.0, "noise": -b, "data": data, "v": -b * (a + data)}
        if model.predicts == "velocity":
            rate_a, rate_b = model.process.rates(t)
            change["velocity"] = rate_a * data - rate_b * b
        return own + scale * change[model.predicts] * gradient

    return DiffusionModel(network, model.process, model.predicts)


def classifier_free(
    model: DiffusionModel, scale: float | int, context: Float[Tensor, "..."], null_context: Float[Tensor, "..."]
) -> DiffusionModel:
    """A model whose prediction is (1 - scale) times that of `model` without, plus scale times that with the label.

    Scale 0 is the model without, 1 the one with the label, to the last bit; Ho and Salimans' w is scale - 1. Every kind
    of prediction mixes alike. An evaluation costs two calls of `model`, which counts them.

    Args:
        model: trained with `drop_labels`.
        scale: of guidance.
        context: the label, of shape (dim_context,) for all or (*batch, dim_context) for each state.
        null_context: what stands for "no label", shape (dim_context,).

    Source: Ho and Salimans 2022 (arXiv 2207.12598), Eq. (6).
    """
    _check_model(model)
    check_numbers("scale", [scale])
    check_tensor("null_context", null_context, "(dim_context,)")
    check_tensor("context", context, f"(*batch, {len(null_context)})", null_context)

    def network(x: Tensor, t: Tensor) -> Tensor:
        # lerp gives either end exactly
        return torch.lerp(model(x, t, context=null_context), model(x, t, context=context), float(scale))

    return DiffusionModel(network, model.process, model.predicts)


def drop_labels(
    context: Float[Tensor, "*batch dim_context"],
    null_context: Float[Tensor, " dim_context"],
    probability: float | int = 0.1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch dim_context"]:
    """The labels, each replaced by `null_context` with this probability: trains one network for both predictions.

    >>> drop_labels(torch.eye(2), torch.zeros(2), probability=1)
    tensor([[0., 0.],
            [0., 0.]])
    """
    check_tensor("null_context", null_context, "(dim_context,)")
    check_tensor("context", context, f"(*batch, {len(null_context)})", null_context)
    check_numbers("probability", [probability], low=0, high=1 + 1e-9)
    dropped = draw(torch.rand, (*context.shape[:-1], 1), context, generator) < probability
    return torch.where(dropped, null_context, context)


def _check_model(model: DiffusionModel) -> None:
    if not isinstance(model, DiffusionModel):
        raise TypeError(f"model: got {type(model).__name__}, expected a DiffusionModel")
