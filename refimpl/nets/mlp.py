"""Multilayer perceptron."""

from collections.abc import Callable

from torch import nn

from refimpl._checks import check_sizes

__all__ = ["mlp"]


def mlp(
    dim_in: int,
    dim_out: int,
    *,
    width: int,
    depth: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
) -> nn.Sequential:
    """Fully connected network with ``depth`` linear layers (so ``depth - 1`` hidden ones) and a linear output.

    Args:
        dim_in: number of input features.
        dim_out: number of output features.
        width: units of each hidden layer.
        depth: number of linear layers, >= 1.
        activation: makes the module between two layers.
        bias: whether the layers have biases.

    Returns:
        Module that maps (*batch, dim_in) to (*batch, dim_out), initialised as PyTorch does by default.

    Raises:
        ValueError: if a size is not a whole number >= 1.
        TypeError: if ``activation`` is a module instead of something that makes one.

    >>> [tuple(p.shape) for p in mlp(2, 1, width=8, depth=3).parameters()]
    [(8, 2), (8,), (8, 8), (8,), (1, 8), (1,)]
    """
    check_sizes(dim_in=dim_in, dim_out=dim_out, width=width, depth=depth)
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(f"activation: got {activation!r}, expected something that makes a module, such as nn.ReLU")
    sizes = [dim_in, *[width] * (depth - 1), dim_out]
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])
