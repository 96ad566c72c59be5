"""Continuous flows (neural ODE, FFJORD): follow a velocity field; the log-determinant is the integral of its trace."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes
from refimpl.autodiff import probe_vectors
from refimpl.flows.bijection import Bijection, Pair
from refimpl.flows.conditioners import Conditioner
from refimpl.flows.residual import unit_probes

__all__ = ["Continuous", "Velocity"]


class Velocity(nn.Module):
    """v(t, x, context): a multilayer perceptron of all three, zero at first.

    Args:
        dim: number of features.
        **settings: of `Conditioner`: width, depth, activation (smooth, for the solver's sake), dim_context.
    """

    def __init__(self, dim: int, **settings):
        super().__init__()
        self.net = Conditioner(dim + 1, dim, **settings)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(torch.cat([x, t.to(x).expand(*x.shape[:-1], 1)], -1), context)


class Continuous(Bijection):
    """dx/dt = v(t, x, context) from data at t = 0 to latent at t = 1; log|det| = integral of tr dv/dx.

    The gradient goes through the solver's steps, so that it is that of the numbers computed, or with `adjoint=True` by
    a second equation solved backwards, in constant memory.

    Args:
        dim: number of features.
        velocity: v, a module called with (t, x, context); a `Velocity` if None.
        num_steps: of the fourth-order Runge-Kutta method; None for Dormand and Prince's adaptive steps, which depend on
            all of a batch, so that its samples are not quite independent, and which `torch.func` cannot transform.
        tolerance: relative and absolute, of the adaptive steps.
        trace: "exact", `dim` backward passes an evaluation, or "hutchinson", one probe a sample drawn for each solve:
            unbiased, and of other noise in the two directions.
        kind: distribution of the probes, see `refimpl.autodiff.probe_vectors`.
        adjoint: whether the gradient comes from the adjoint equation.
        generator: of the probes; its state is no part of the module. Give the same one to `fit(generator=...)`: then a
            run that is resumed from its checkpoint continues exactly.
        **settings: of `Velocity`.

    Attributes:
        num_evaluations: of v in the last solve.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Chen et al. 2018 (arXiv 1806.07366), Theorem 1; Grathwohl et al. 2019 (arXiv 1810.01367).
    """

    def __init__(
        self,
        dim: int,
        velocity: Callable | None = None,
        *,
        num_steps: int | None = 20,
        tolerance: float | int = 1e-5,
        trace: str = "exact",
        kind: str = "rademacher",
        adjoint: bool = False,
        generator: torch.Generator | None = None,
        **settings,
    ):
        super().__init__()
        check_sizes(dim=dim, **{} if num_steps is None else {"num_steps": num_steps})
        check_positive("tolerance", tolerance)
        if trace not in ("exact", "hutchinson"):
            raise ValueError(f"trace: got {trace!r}, expected 'exact' or 'hutchinson'")
        if velocity is not None and (not callable(velocity) or settings):
            got = f"settings {sorted(settings)} beside it" if callable(velocity) else repr(velocity)
            raise TypeError(f"velocity: got {got}, expected a function of (t, x, context) and no settings")
        self.dim = dim
        self.velocity = Velocity(dim, **settings) if velocity is None else velocity
        self.num_steps, self.tolerance, self.trace, self.kind = num_steps, tolerance, trace, kind
        self.adjoint, self.generator, self.num_evaluations = adjoint, generator, 0

    def _solve(self, x: Tensor, context: Tensor | None, times: tuple[float, float]) -> Pair:
        from torchdiffeq import odeint, odeint_adjoint

        self.check_width("x" if times[0] == 0 else "z", x, self.dim)
        if x.numel() == 0:
            return x, self.zeros(x)
        self.num_evaluations = 0
        exact = self.trace == "exact"
        probes = unit_probes(x) if exact else probe_vectors(x, kind=self.kind, generator=self.generator)

        def field(t: Tensor, state: Pair) -> Pair:
            self.num_evaluations += 1
            v, pull = torch.func.vjp(lambda x: self.velocity(t, x, context), state[0])
            if v.shape != x.shape:
                raise ValueError(f"velocity: returned shape {tuple(v.shape)}, expected that of x, {tuple(x.shape)}")
            return v, (torch.vmap(lambda w: pull(w)[0])(probes) * probes).sum(-1).mean(0)

        steps: dict = {"method": "dopri5", "rtol": self.tolerance, "atol": self.tolerance}
        if self.num_steps is not None:
            n = self.num_steps + 1
            steps = {
                "method": "rk4",
                "options": {"grid_constructor": lambda f, y, t: torch.linspace(t[0], t[-1], n).to(t)},
            }
        solve = odeint
        if self.adjoint:
            solve = odeint_adjoint
            steps["adjoint_params"] = (*self.parameters(), *([] if context is None else [context]))
        t = torch.tensor(times, dtype=x.dtype, device=x.device)
        path, log_det = solve(field, (x, self.zeros(x)), t, **steps)
        return path[-1], log_det[-1]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return self._solve(x, context, (0.0, 1.0))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return self._solve(z, context, (1.0, 0.0))
