"""What a network predicts, and how each prediction follows from any other.

At a fixed state x = a x_0 + b n, the estimates of data, noise, score, v and velocity are linear functions of each other:
a network that predicts one of them predicts all.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl.data import NormalMixture
from refimpl.diffusion.process import NoiseProcess, as_time

__all__ = ["KINDS", "DiffusionModel", "check_process", "convert", "exact_model", "target_of"]

KINDS = ("data", "noise", "score", "v", "velocity")


def convert(
    prediction: Float[Tensor, "*batch dim"],
    x: Float[Tensor, "*batch dim"],
    t: Tensor | float | int,
    process: NoiseProcess,
    *,
    source: str,
    target: str,
) -> Float[Tensor, "*batch dim"]:
    """A prediction of one kind as one of another kind.

    Every kind is a combination p x_0 + q n: data (1, 0), noise (0, 1), v (-b, a), velocity (da/dt, db/dt), and the score
    is -n / b. With x = a x_0 + b n, two linear equations give x_0 and n.

    Args:
        prediction: estimate of kind `source`, an expectation given x_t.
        x: the state x_t.
        t: time, without dimensions or of shape (*batch, 1).
        process: gives a and b.
        source, target: of `KINDS`.

    Raises:
        ValueError: if a kind is unknown or the shapes do not fit. Where a kind says nothing (noise where a = 0, data
            where b = 0) the result is not finite.

    Source: Salimans and Ho 2022 (arXiv 2202.00512), Appendix D, for v; Lipman et al. 2022 (arXiv 2210.02747) for velocities.

    >>> from refimpl.diffusion.process import VP
    >>> x, noise = torch.ones(2), torch.tensor([0.5, -0.5])
    >>> v = convert(noise, x, 0.3, VP(), source="noise", target="v")
    >>> convert(v, x, 0.3, VP(), source="v", target="noise")
    tensor([ 0.5000, -0.5000])
    """
    for name, kind in (("source", source), ("target", target)):
        if kind not in KINDS:
            raise ValueError(f"{name}: got {kind!r}, expected one of {KINDS}")
    for name, value in (("prediction", prediction), ("x", x)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor of shape (*batch, dim)")
    if prediction.shape != x.shape:
        raise ValueError(f"prediction: got shape {tuple(prediction.shape)}, expected that of x, {tuple(x.shape)}")
    t = as_time(t, x)
    a, b = process.coefficients(t)
    if source == "score":
        prediction, source = -b * prediction, "noise"
    if source == target:
        return prediction
    p, q = _mixture(source, t, a, b, process)
    det = a * q - b * p
    if target == "score":
        return (p * x - a * prediction) / (b * det)
    wanted_p, wanted_q = _mixture(target, t, a, b, process)
    return (wanted_p * (q * x - b * prediction) + wanted_q * (a * prediction - p * x)) / det


def _mixture(kind: str, t: Tensor, a: Tensor, b: Tensor, process: NoiseProcess) -> tuple:
    """p and q of p x_0 + q n."""
    if kind == "velocity":
        return process.rates(t)
    return {"data": (1.0, 0.0), "noise": (0.0, 1.0), "v": (-b, a), "score": (0.0, -1 / b)}[kind]


def target_of(
    kind: str,
    x0: Float[Tensor, "*batch dim"],
    noise: Float[Tensor, "*batch dim"],
    t: Tensor | float | int,
    process: NoiseProcess,
) -> Float[Tensor, "*batch dim"]:
    """What a network of this kind is trained on: p x_0 + q n (see `convert`) for known data and noise.

    >>> from refimpl.diffusion.process import FlowPath
    >>> target_of("velocity", torch.tensor([3.0]), torch.tensor([1.0]), 0.5, FlowPath())
    tensor([2.])
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {KINDS}")
    t = as_time(t, x0)
    p, q = _mixture(kind, t, *process.coefficients(t), process)
    return p * x0 + q * noise


def check_process(process: NoiseProcess, network: Callable = len) -> None:
    """Raise TypeError unless the process is one, and the network can be called."""
    if not callable(network):
        raise TypeError(f"network: got {type(network).__name__}, expected a function of (x, t)")
    if not isinstance(process, NoiseProcess):
        raise TypeError(f"process: got {type(process).__name__}, expected a NoiseProcess such as VP()")


class DiffusionModel(nn.Module):
    """A network with its noise process: gives every kind of prediction, and counts how often the network is asked.

    Args:
        network: called as network(x, t), or network(x, t, context) if there is a context, with x (*batch, dim) and t
            (*batch, 1); returns (*batch, dim). May be any function, such as an exact denoiser.
        process: how the states are made.
        predicts: which of `KINDS` the network predicts; what its own attribute `predicts` says, or else noise, if None.

    Attributes:
        calls: network evaluations, of a whole batch each, since `reset_counts()`.
        pullbacks: backward passes through the network since then.

    >>> from refimpl.diffusion.process import EDM
    >>> model = DiffusionModel(lambda x, t: x / (1 + t**2), EDM(), predicts="data")  # exact for data ~ N(0, I)
    >>> model.score(torch.tensor([2.0]), 1.0), model.calls
    (tensor([-1.]), 1)
    """

    def __init__(self, network: Callable, process: NoiseProcess, predicts: str | None = None):
        super().__init__()
        check_process(process, network)
        own = getattr(network, "predicts", None)
        predicts = predicts or own or "noise"
        if predicts not in KINDS or (own in KINDS and predicts != own):
            raise ValueError(f"predicts: got {predicts!r}, expected one of {(own,) if own in KINDS else KINDS}")
        self.network, self.process, self.predicts = network, process, predicts
        self.reset_counts()

    def reset_counts(self) -> None:
        self.calls = self.pullbacks = 0

    def forward(
        self,
        x: Float[Tensor, "*batch dim"],
        t: Tensor | float | int,
        kind: str | None = None,
        context: Tensor | None = None,
    ) -> Float[Tensor, "*batch dim"]:
        """The prediction of this kind; of the network's own if None."""
        t = as_time(t, x)
        self.calls += 1
        spread = t.expand(*x.shape[:-1], 1)
        out = self.network(x, spread) if context is None else self.network(x, spread, context)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"network: returned {got}, expected the shape of x, {tuple(x.shape)}")
        if out.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(out):
            out.register_hook(self._count)
        if kind is None or kind == self.predicts:
            return out
        return convert(out, x, t, self.process, source=self.predicts, target=kind)

    def _count(self, gradient: Tensor) -> None:
        self.pullbacks += 1

    def data(self, x: Tensor, t: Tensor | float | int, context: Tensor | None = None) -> Tensor:
        """Estimate of E[x_0 | x_t]."""
        return self(x, t, "data", context)

    def noise(self, x: Tensor, t: Tensor | float | int, context: Tensor | None = None) -> Tensor:
        """Estimate of E[n | x_t]."""
        return self(x, t, "noise", context)

    def score(self, x: Tensor, t: Tensor | float | int, context: Tensor | None = None) -> Tensor:
        """Estimate of the gradient of log p_t at x_t."""
        return self(x, t, "score", context)

    def velocity(self, x: Tensor, t: Tensor | float | int, context: Tensor | None = None) -> Tensor:
        """Estimate of E[dx_t/dt | x_t], the velocity of the probability-flow ODE."""
        return self(x, t, "velocity", context)

    def data_and_noise(
        self, x: Tensor, t: Tensor | float | int, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both estimates from one call."""
        own = self(x, t, None, context)
        both = (convert(own, x, t, self.process, source=self.predicts, target=kind) for kind in ("data", "noise"))
        return tuple(both)


def exact_model(p: NormalMixture, process: NoiseProcess) -> DiffusionModel:
    """The model that a perfect network would be: E[x_0 | x_t] of a mixture, in its dtype.

    >>> from refimpl.diffusion.process import VP
    >>> p = NormalMixture(torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.01))
    >>> exact_model(p, VP()).data(torch.tensor([0.0]), 0.5)
    tensor([0.])
    """
    return DiffusionModel(lambda x, t: p.denoise(x, *process.coefficients(t)), process, predicts="data")
