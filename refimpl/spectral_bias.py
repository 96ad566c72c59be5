r"""Which frequencies has a network learned, and how firmly?

Fourier diagnostics in time of training, perturbation of parameters, bounds on the Lipschitz constant, and the neural
tangent kernel's prediction of the residual. Conventions: frequencies in cycles over the grid, the discrete transform
carries the factor 1/n, so that a component :math:`A\sin(2\pi kz+\phi)` has magnitude A/2.
Source: Rahaman et al. 2019 (arXiv 1806.08734); Jacot et al. 2018 (arXiv 1806.07572) for the kernel.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor

__all__ = [
    "circulant_energy",
    "coefficients",
    "empirical_ntk",
    "gaussian_kernel_eigenbasis",
    "learning_order",
    "linearized_residual",
    "lipschitz_bound",
    "local_slope",
    "perturbation_robustness",
    "recovered",
    "whole_frequencies",
]


def whole_frequencies(frequencies: Sequence[int], num_points: int) -> list[int]:
    """The frequencies themselves, once it is sure that a grid of ``num_points`` can tell them apart.

    Raises:
        ValueError: if there is none, or one is not a whole number in [0, num_points / 2).
    """
    check_numbers("frequencies", frequencies, low=0, high=num_points / 2, whole=True)
    return [int(k) for k in frequencies]


def coefficients(y: Float[Tensor, "*batch n"], frequencies: Sequence[int]) -> Complex[Tensor, "*batch modes"]:
    r"""Fourier coefficients :math:`F_k=\frac1n\sum_j y_j e^{-2\pi ikj/n}` of samples at j/n. Exact.

    Args:
        y: samples on the equispaced grid without its end point, shape (*batch, n).
        frequencies: whole numbers below n/2, in cycles over the grid.

    Raises:
        TypeError, ValueError: if y is not a finite real tensor, or a frequency is not a whole number in [0, n/2).

    >>> z = torch.arange(8) / 8
    >>> coefficients(3 * torch.sin(2 * torch.pi * z), [1, 2]).abs()
    tensor([1.5000e+00, ...])
    """
    check_tensor("y", y, "(*batch, n)")
    return torch.fft.rfft(y, norm="forward")[..., whole_frequencies(frequencies, y.shape[-1])]


def recovered(
    y: Float[Tensor, "*batch n"],
    target: Float[Tensor, "*#batch n"],
    frequencies: Sequence[int],
    kind: str = "magnitude",
) -> Float[Tensor, "*batch modes"]:
    """How much of the target's component at each frequency y has.

    Args:
        y: network's outputs on the grid, shape (*batch, n).
        target: target on the same grid, one for all of y or one for each.
        frequencies: whole numbers below n/2, in cycles over the grid.
        kind: ``"magnitude"`` for |F_k| / |T_k| (1 is perfect; blind to phase, may overshoot), or
            ``"residual"`` for |F_k - T_k| / |T_k| (0 is perfect; sees phase).

    Raises:
        TypeError, ValueError: if ``kind`` is unknown, inputs are not finite or differ in n, or the target lacks a frequency.
    """
    if kind not in ("magnitude", "residual"):
        raise ValueError(f"kind: got {kind!r}, expected 'magnitude' or 'residual'")
    check_tensor("y", y, "(*batch, n)")
    check_tensor("target", target, f"(*batch, {y.shape[-1]})")
    have, want = coefficients(y, frequencies), coefficients(target, frequencies)
    if (want.abs() <= 1e-4 * target.square().mean(-1, keepdim=True).sqrt()).any():
        raise ValueError(f"target: has no component at some of the frequencies {list(frequencies)}")
    return have.abs() / want.abs() if kind == "magnitude" else (have - want).abs() / want.abs()


def learning_order(history: Float[Tensor, "time modes"], frequencies: Sequence[float | int]) -> tuple[Tensor, float]:
    """Time average of the recovered magnitude, clipped to [0, 1], and its rank correlation with frequency.

    A mode that is learned earlier has a larger average; -1 means that lower frequencies always come first. An untrained
    network, whose spectrum falls, gives -1 too: see first that something was learned.

    Args:
        history: recovered magnitudes, shape (time, modes).
        frequencies: one for each mode.

    Returns:
        Averages, shape (modes,), and Spearman's correlation in [-1, 1].

    Raises:
        TypeError, ValueError: if ``history`` is not finite and of shape (time, modes) with at least two modes, or all modes
            have the same average or the same frequency, so that there is no order.
    """
    from scipy.stats import spearmanr

    check_numbers("frequencies", frequencies)
    if len(set(frequencies)) < 2:
        raise ValueError(f"frequencies: got {frequencies!r}, expected at least two different ones, one for each mode")
    check_tensor("history", history, f"(time, {len(frequencies)})")
    average = history.clamp(0, 1).mean(0)
    if len(history) == 0 or (average == average[0]).all():
        raise ValueError("history: all modes have the same average, so that they have no order")
    return average, float(spearmanr(list(frequencies), average.tolist()).statistic)


def perturbation_robustness(
    net: nn.Module,
    x: Float[Tensor, "n dim"],
    frequencies: Sequence[int],
    norms: Sequence[float | int],
    *,
    num_draws: int = 32,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "norms modes"]:
    r"""Mean of :math:`|F_k|` under random parameter perturbations, relative to the unperturbed network.

    Perturbations are isotropic in the space of all parameters: theta + delta u with a uniformly random unit vector u.
    Magnitudes are averaged, not complex coefficients: random phases would cancel and show another, faster decay.

    Args:
        net: trained network, (n, dim) to (n, 1).
        x: inputs in the order of the grid on which the spectrum is taken, shape (n, dim).
        frequencies: whole numbers below n/2.
        norms: lengths delta >= 0 of the perturbation.
        num_draws: directions u for each length.
        generator: source of the directions.

    Raises:
        TypeError, ValueError: if x is not a finite (n, dim), a norm is negative, ``num_draws`` < 1, the network outputs more
            than one feature, a frequency is not a whole number in [0, n/2), or the network lacks it.

    Source: Rahaman et al. 2019, Experiment 2 and Figure 3.
    """
    check_tensor("x", x, "(n, dim)")
    check_sizes(num_draws=num_draws)
    check_numbers("norms", norms, low=0)
    ks = whole_frequencies(frequencies, len(x))
    theta = {name: p.detach() for name, p in net.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in theta.values()])
    with torch.no_grad():
        y = net(x)
    if y.shape != (len(x), 1):
        raise ValueError(f"net: maps x to shape {tuple(y.shape)}, expected ({len(x)}, 1)")
    reference = torch.fft.rfft(y[:, 0], norm="forward")[ks].abs()
    if not (reference > 0).all():
        raise ValueError(f"net: its output has no component at some of the frequencies {ks}")

    def spectrum(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in theta.values()])
        state = {name: part.view_as(p) for (name, p), part in zip(theta.items(), parts, strict=True)}
        return torch.fft.rfft(functional_call(net, state, (x,))[:, 0], norm="forward")[ks].abs()

    device = generator.device if generator is not None else flat.device
    rows = []
    with torch.no_grad():
        for delta in norms:
            u = torch.randn(num_draws, len(flat), generator=generator, device=device).to(flat)
            u = u / u.norm(dim=1, keepdim=True)
            rows.append(vmap(spectrum, chunk_size=8)(flat + delta * u).mean(0) / reference)
    return torch.stack(rows)


def lipschitz_bound(net: nn.Module, kind: str = "spectral") -> float:
    r"""Upper bound on the Lipschitz constant of a ReLU network.

    ``"spectral"``: :math:`\prod_l\|W^{(l)}\|_2`. ``"max_norm"``: the looser
    :math:`\|\theta\|_\infty^{L+1}\sqrt{d}\prod_l d_l`, the norm taken over weights (biases move no slope).

    Raises:
        ValueError: if ``kind`` is unknown or the network holds anything but linear layers and ReLU.

    Source: Rahaman et al. 2019, Equation (7) and Proposition 3.
    """
    if kind not in ("spectral", "max_norm"):
        raise ValueError(f"kind: got {kind!r}, expected 'spectral' or 'max_norm'")
    leaves = [m for m in net.modules() if not list(m.children())]
    if not all(isinstance(m, nn.Linear | nn.ReLU) for m in leaves):
        raise ValueError("net: the bound is for networks of nn.Linear and nn.ReLU in sequence")
    weights = [m.weight.detach() for m in leaves if isinstance(m, nn.Linear)]
    if not weights:
        raise ValueError("net: got no nn.Linear layer")
    if kind == "spectral":
        return math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in weights)
    largest = max(float(w.abs().max()) for w in weights)
    return math.prod(largest * math.sqrt(w.shape[0] * w.shape[1]) for w in weights)


def local_slope(net: nn.Module, x: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """Norm of the input gradient at each point: the network's slope on the linear region that holds it. Exact.

    Raises:
        TypeError, ValueError: if x is not a finite (n, dim), or the network has more than one output.
    """
    _check_one_output(net, x)
    return vmap(grad(lambda xi: net(xi).sum()))(x).norm(dim=-1)


def _check_one_output(net: nn.Module, x: Tensor) -> None:
    check_tensor("x", x, "(n, dim)")
    with torch.no_grad():
        shape = tuple(net(x[:1]).shape)
    if shape != (1, 1):
        raise ValueError(f"net: maps one point to shape {shape}, expected one output feature, (1, 1)")


def gaussian_kernel_eigenbasis(
    x: Float[Tensor, "n dim"], sigma: float | int
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    r"""Eigenvalues (falling) and eigenvectors (columns) of :math:`K_{ij}=\exp(-\|x_i-x_j\|^2/2\sigma^2)`.

    The leading eigenvectors vary slowly over the data: they take the place of low frequencies where no grid exists.

    Raises:
        TypeError, ValueError: if ``sigma`` is not positive or x is not a finite (n, dim).

    Source: Rahaman et al. 2019, Experiment 4 (its Equation 16 lacks the square and the minus sign).
    """
    check_tensor("x", x, "(n, dim)")
    check_positive("sigma", sigma, "units of x")
    squared = torch.cdist(x.double(), x.double()).square()
    values, vectors = torch.linalg.eigh(torch.exp(-squared / (2 * sigma**2)))
    return values.flip(0), vectors.flip(1)


def empirical_ntk(net: nn.Module, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n n"]:
    r"""Neural tangent kernel :math:`K_{ij}=\nabla_\theta f(x_i)\cdot\nabla_\theta f(x_j)` of a scalar network, in float64.

    Raises:
        TypeError, ValueError: if x is not a finite (n, dim) or the network has more than one output.
    """
    _check_one_output(net, x)
    theta = {name: p.detach() for name, p in net.named_parameters()}
    rows = vmap(jacrev(lambda state, xi: functional_call(net, state, (xi,))[0]), (None, 0))(theta, x)
    kernel = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for row in rows.values():
        row = row.reshape(len(x), -1).double()
        kernel += row @ row.T
    return kernel


def circulant_energy(kernel: Float[Tensor, "n n"], frequencies: Sequence[int]) -> Float[Tensor, " modes"]:
    r"""Energy :math:`\lambda_k=\frac1n e_k^*Ke_k` of a kernel on a closed grid in the Fourier mode :math:`e_k`.

    For inputs equispaced on a circle and a rotation-invariant kernel, K is circulant and these are its eigenvalues.

    Raises:
        TypeError, ValueError: if the kernel is not a finite square matrix, or a frequency is not a whole number in [0, n/2).
    """
    check_tensor("kernel", kernel, "(n, n)")
    n = len(kernel)
    k = torch.tensor(whole_frequencies(frequencies, n), dtype=torch.float64, device=kernel.device)
    wave = torch.exp(2j * math.pi * k[:, None] * torch.arange(n, device=kernel.device) / n)
    return torch.einsum("ki,ij,kj->k", wave.conj(), kernel.to(torch.complex128), wave).real / n


def linearized_residual(
    kernel: Float[Tensor, "n n"], residual: Float[Tensor, " n"], *, lr: float | int, steps: Sequence[int]
) -> Float[Tensor, "times n"]:
    r"""Residual f - y of a network linear in its parameters after gradient descent on :math:`\frac1{2n}\|f-y\|^2`. Exact.

    :math:`r_t=(1-\tfrac{\eta}{n}K)^t\,r_0`: each eigenvector of the kernel decays at its own rate. Real networks follow
    while their kernel stays what it was at the start (wide networks, small steps, not too long).

    Args:
        kernel: tangent kernel at the start, shape (n, n).
        residual: r_0, shape (n,).
        lr: step size eta; stable below 2 n / (largest eigenvalue).
        steps: numbers of steps t at which the residual is wanted.

    Raises:
        TypeError, ValueError: if inputs are not finite, shapes do not match, the kernel is not symmetric, ``lr`` is not
            positive or makes the iteration unstable, or a number of steps is not a whole number >= 0.

    Source: Jacot et al. 2018, Section 5, for gradient flow; here with finite steps.
    """
    check_tensor("residual", residual, "(n,)")
    check_tensor("kernel", kernel, f"({len(residual)}, {len(residual)})")
    if not torch.allclose(kernel, kernel.T, rtol=1e-4, atol=1e-4 * float(kernel.abs().max())):
        raise ValueError("kernel: expected a symmetric matrix")
    check_numbers("steps", steps, low=0, whole=True)
    values, vectors = torch.linalg.eigh(kernel.double())
    limit = 2 * len(residual) / max(float(values[-1]), 1e-300)
    if not isinstance(lr, int | float) or not 0 < lr < limit:
        raise ValueError(f"lr: got {lr!r}, expected a number in (0, {limit:.4g}), else the iteration is unstable")
    start = vectors.T @ residual.double()
    decay = 1 - lr * values / len(residual)
    return torch.stack([vectors @ (decay**t * start) for t in steps]).to(residual)
