"""Many independent networks of one architecture, evaluated and trained together."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

__all__ = ["Stack"]


class Stack(nn.Module):
    """``size`` networks with one architecture as one module: parameters are stacked along a new first dimension.

    One batched product takes the place of ``size`` small ones, which is what makes repetitions over seeds cheap, above
    all on a GPU. The networks stay independent: no parameter is shared, and the gradient of a *sum* of their losses is
    each network's own gradient.

    Args:
        networks: modules of the same architecture (differing in weights and buffers only).

    Raises:
        ValueError: if there is no network, the networks differ in structure or in a parameter's shape or type, or x has
            another first dimension.

    >>> stack = Stack([nn.Linear(2, 1) for _ in range(3)])
    >>> stack(torch.zeros(3, 5, 2)).shape
    torch.Size([3, 5, 1])
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        if isinstance(networks, nn.Module) or not all(isinstance(net, nn.Module) for net in networks):
            raise TypeError("networks: expected a list of modules")
        if len(networks) == 0:
            raise ValueError("networks: got none, expected at least one")
        # The text of a module shows its layers and their settings, so that equal shapes with other activations differ.
        kinds = [(str(net), {n: (p.shape, p.dtype) for n, p in net.state_dict().items()}) for net in networks]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError("networks: got different architectures, expected the same layers, shapes and types")
        parameters, buffers = stack_module_state(list(networks))
        self._names = {name.replace(".", "/"): name for name in [*parameters, *buffers]}
        for name, value in parameters.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(value.detach()))
        for name, value in buffers.items():
            self.register_buffer(name.replace(".", "/"), value)
        self.size = len(networks)
        # The skeleton gives the forward pass its structure only; in a tuple it is hidden from parameters().
        self._skeleton = (copy.deepcopy(networks[0]).to("meta"),)

    def forward(self, x: Float[Tensor, "size *batch dim"]) -> Float[Tensor, "size *outputs out"]:
        if x.ndim < 2 or x.shape[0] != self.size:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected ({self.size}, *batch, dim)")
        return vmap(lambda state, xi: functional_call(self._skeleton[0], state, (xi,)))(self.state(), x)

    def train(self, mode: bool = True) -> "Stack":
        """As for any module: ``mode`` reaches the networks too."""
        self._skeleton[0].train(mode)
        return super().train(mode)

    def state(self) -> dict[str, Tensor]:
        """Stacked parameters and buffers under the single network's names."""
        return {
            name: self.get_parameter(n) if n in self._parameters else self.get_buffer(n)
            for n, name in self._names.items()
        }

    def network(self, index: int, into: nn.Module) -> nn.Module:
        """Copy network ``index`` into ``into`` (a module of the same architecture) and return it.

        Raises:
            ValueError: if there is no such network, or ``into`` has other parameters.
        """
        if not 0 <= index < self.size:
            raise ValueError(f"index: got {index!r}, expected 0 to {self.size - 1}")
        state = {name: value[index] for name, value in self.state().items()}
        have = {name: value.shape for name, value in into.state_dict().items()}
        if have != {name: value.shape for name, value in state.items()}:
            raise ValueError("into: got a module with other parameters, expected the architecture of the stack")
        with torch.no_grad():
            into.load_state_dict(state)
        return into
