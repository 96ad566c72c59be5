"""Sums of sinusoids, curves in the plane, and label noise of a chosen frequency."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_sizes, check_tensor

__all__ = ["flower", "grid", "radial_noise", "sum_of_sines"]


def grid(num_points: int, *, device: torch.device | str | None = None) -> Float[Tensor, " n"]:
    """Points j/n of the unit interval, end point excluded, so that whole frequencies fall on DFT bins without leakage.

    >>> grid(4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    if not isinstance(num_points, int) or isinstance(num_points, bool) or num_points < 2:
        raise ValueError(f"num_points: got {num_points!r}, expected a whole number >= 2")
    return torch.arange(num_points, device=device) / num_points


def sum_of_sines(
    z: Float[Tensor, " n"],
    frequencies: Sequence[float | int],
    amplitudes: Sequence[float | int] | float | int = 1.0,
    *,
    num_signals: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "signals n"]:
    r"""Signals :math:`\sum_i A_i\sin(2\pi k_i z+\phi_i)`, each with its own phases drawn from U(0, 2 pi).

    Args:
        z: positions, shape (n,).
        frequencies: k_i in cycles per unit of z.
        amplitudes: A_i, or one number for all.
        num_signals: how many signals to draw.
        generator: source of the phases.

    Raises:
        TypeError, ValueError: if z is not a vector, frequencies are empty, amplitudes do not match them, a number is not
            finite, or ``num_signals`` < 1.

    Source: Rahaman et al. 2019 (arXiv 1806.08734), Experiment 1.
    """
    check_tensor("z", z, "(n,)")
    check_sizes(num_signals=num_signals)
    check_numbers("frequencies", frequencies)
    values = [amplitudes] * len(frequencies) if isinstance(amplitudes, int | float) else amplitudes
    check_numbers("amplitudes", values)
    if len(values) != len(frequencies):
        raise ValueError(f"amplitudes: got {len(values)}, expected one for each of {len(frequencies)} frequencies")
    k = torch.tensor(list(frequencies), dtype=z.dtype, device=z.device)
    a = torch.tensor(values, dtype=z.dtype, device=z.device)
    device = generator.device if generator is not None else z.device
    phase = 2 * math.pi * torch.rand(num_signals, len(frequencies), 1, generator=generator, device=device)
    angle = 2 * math.pi * k[:, None] * z + phase.to(z)  # (signals, frequencies, n)
    return (a[:, None] * angle.sin()).sum(1)


def flower(z: Float[Tensor, " n"], petals: int) -> Float[Tensor, "n 2"]:
    r"""Closed curve :math:`(1+\tfrac12\sin 2\pi Lz)(\cos 2\pi z,\sin 2\pi z)` with L ``petals``; L = 0 is the unit circle.

    Raises:
        TypeError, ValueError: if z is not a vector, or ``petals`` is not a whole number >= 0.

    Source: Rahaman et al. 2019, Section 4.2 (Experiment 5).
    """
    check_tensor("z", z, "(n,)")
    if not isinstance(petals, int) or isinstance(petals, bool) or petals < 0:
        raise ValueError(f"petals: got {petals!r}, expected a whole number >= 0")
    radius = 1 + 0.5 * torch.sin(2 * math.pi * petals * z)
    return radius[:, None] * torch.stack([torch.cos(2 * math.pi * z), torch.sin(2 * math.pi * z)], dim=-1)


def radial_noise(
    x: Float[Tensor, "n dim"], frequency: float | int, *, reference: Float[Tensor, "m dim"] | None = None
) -> Float[Tensor, " n"]:
    r"""Label noise :math:`\sin(2\pi k\|x\|)`; with ``reference``, centred and scaled to power 1/2 on the reference points.

    At low frequency the raw noise is almost the same for all x, i.e. mostly a shift of all labels; centring and scaling
    removes that shift, so that noises of different frequency can be compared.

    Args:
        x: inputs, shape (n, dim).
        frequency: k, in cycles per unit of the norm of x.
        reference: points whose noise gets mean 0 and mean square 1/2, shape (m, dim).

    Raises:
        TypeError, ValueError: if ``frequency`` is not finite, an input is not a matrix of finite numbers, or the noise is
            the same at all reference points, so that nothing is left to scale.

    Source: Rahaman et al. 2019, Experiment 3, with the factor 2 pi of its official code.
    """
    if not isinstance(frequency, int | float) or not math.isfinite(frequency):
        raise ValueError(f"frequency: got {frequency!r}, expected a finite number")
    check_tensor("x", x, "(n, dim)")
    noise = torch.sin(2 * math.pi * frequency * x.norm(dim=-1))
    if reference is None:
        return noise
    check_tensor("reference", reference, f"(m, {x.shape[1]})")
    base = torch.sin(2 * math.pi * frequency * reference.norm(dim=-1))
    spread = base.std(correction=0)
    if not spread > 1e-6:
        raise ValueError(f"reference: the noise of frequency {frequency} does not vary over the reference points")
    return (noise - base.mean()) / spread * math.sqrt(0.5)
