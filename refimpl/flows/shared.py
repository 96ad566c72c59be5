"""NanoFlow: all couplings of a flow share one network, so that depth costs few parameters."""

import torch
from torch import Tensor, nn

from refimpl._checks import check_sizes
from refimpl.flows.bijection import Chain
from refimpl.flows.conditioners import join, zero_last
from refimpl.flows.coupling import Coupling
from refimpl.flows.elementwise import ElementwiseMap, check_map
from refimpl.nets import mlp

__all__ = ["NanoFlow"]


class _Step(nn.Module):
    """Conditioner of one coupling: the shared module after (passive, context, embedding), then one of its own."""

    def __init__(self, shared: nn.Module, own: nn.Module, embedding: Tensor | None, dim_context: int):
        super().__init__()
        self.shared, self.own, self.dim_context = shared, own, dim_context
        self.embedding = None if embedding is None else nn.Parameter(embedding.clone())

    def forward(self, passive: Tensor, context: Tensor | None = None) -> Tensor:
        x = join(passive, context, self.dim_context)
        if self.embedding is not None:
            x = torch.cat([x, self.embedding.expand(*x.shape[:-1], -1)], -1)
        return self.own(self.shared(x))


def _forget_copies(flow: nn.Module, state: dict, prefix: str, metadata: object) -> None:
    """Keep the shared numbers once, under `shared`: some formats of files take no tensor twice."""
    for i in range(len(flow.bijections)):
        for key in flow.shared.state_dict():
            state.pop(f"{prefix}bijections.{i}.net.shared.{key}", None)


def _restore_copies(flow: nn.Module, state: dict, prefix: str, *others: object) -> None:
    for i in range(len(flow.bijections)):
        for key in flow.shared.state_dict():
            if f"{prefix}shared.{key}" in state:
                state[f"{prefix}bijections.{i}.net.shared.{key}"] = state[f"{prefix}shared.{key}"]


class NanoFlow(Chain):
    """Couplings with alternate halves whose conditioners share one estimator.

    Args:
        dim: number of features, even, because both halves feed the same estimator.
        num_layers: number of couplings K.
        tau: elementwise map.
        mode: what a step has for its own: "naive" nothing, so that all steps are the same map but for the halves;
            "decomposed" a projection from the estimator's features to the raw parameters; "full" also a learned
            embedding that the estimator sees. Projections start at zero, embeddings orthogonal.
        width: units of each hidden layer.
        depth: linear layers of estimator and projection together, at least 2.
        dim_embedding: features of an embedding.
        dim_context: features of the context, 0 for none.

    Each step owns the shared network too, so that a part of the flow is complete; `state_dict` of the flow has it once.

    Attributes:
        num_parameters: how many numbers are learned, the shared ones counted once.

    Raises:
        ValueError: if `dim` is odd, `depth` below 2 or `mode` unknown.

    Source: Lee, Kim, Yoon 2020 (arXiv 2006.06280); there the embedding also scales the estimator's hidden channels.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        tau: ElementwiseMap,
        mode: str = "full",
        *,
        width: int = 128,
        depth: int = 3,
        dim_embedding: int = 4,
        dim_context: int = 0,
    ):
        check_sizes(dim=dim, num_layers=num_layers, width=width, depth=depth, dim_embedding=dim_embedding)
        check_map(tau)
        if dim % 2:
            raise ValueError(f"dim: got {dim}, expected an even number, because both halves feed one network")
        if depth < 2:
            raise ValueError(f"depth: got {depth}, expected at least 2: an estimator and a projection")
        if mode not in ("full", "decomposed", "naive"):
            raise ValueError(f"mode: got {mode!r}, expected 'full', 'decomposed' or 'naive'")
        dim_in = dim // 2 + dim_context + (dim_embedding if mode == "full" else 0)
        shared = mlp(dim_in, width, width=width, depth=depth - 1, activation=nn.SiLU).append(nn.SiLU())

        def projection() -> nn.Sequential:
            return zero_last(nn.Sequential(nn.Linear(width, dim // 2 * tau.num_params)))

        if mode == "naive":
            shared = shared.append(projection()[0])
        couplings = []
        for i, embedding in enumerate(nn.init.orthogonal_(torch.empty(num_layers, dim_embedding))):
            own = nn.Identity() if mode == "naive" else projection()
            step = _Step(shared, own, embedding if mode == "full" else None, dim_context)
            couplings.append(Coupling(dim, tau, lambda dim_in, dim_out, step=step: step, swap=i % 2 == 1))
        super().__init__(*couplings)
        self.shared = shared
        self.register_state_dict_post_hook(_forget_copies)
        self.register_load_state_dict_pre_hook(_restore_copies)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
