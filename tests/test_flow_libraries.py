"""The same transform with the same parameters here and in other libraries, float64: largest differences of values and
log-determinants, both ways.

`python tests/test_flow_libraries.py` prints the table. What stands between two libraries is only a change of notation
(the order of raw parameters, the function that makes a scale of them), written out in each comparison.
"""

import functools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily, MultivariateNormal, StudentT, transforms
from torch.nn import functional as F

from refimpl import flows
from refimpl.flows import AdditiveMap, AffineMap, Bijection, Coupling, GINMap, SplineMap
from refimpl.flows.image import space_to_depth

DIM, F64 = 6, torch.float64
FREE = AffineMap(bound=1e9)  # e^s without a clamp
TABLE: dict[str, tuple[str, str, float, Callable]] = {}
Results = list[tuple[Tensor, Tensor]]


def compare(transform: str, library: str, tolerance: float = 1e-12) -> Callable:
    """Enter a comparison, which returns pairs (here, there), into the table."""

    def enter(function: Callable[[], Results]) -> Callable:
        TABLE[f"{transform}, {library}"] = (transform, library, tolerance, function)
        return function

    return enter


def points(*shape: int) -> Tensor:
    return torch.randn(shape or (50, DIM), dtype=F64, generator=torch.Generator().manual_seed(0)) * 1.5


def net(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, 16), nn.Tanh(), nn.Linear(16, dim_out))


class Translated(nn.Module):
    """Another library's network, its raw parameters in our notation."""

    def __init__(self, network: nn.Module, translate: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.translate, self.order = network, translate, range(DIM)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.translate(self.network(x))

    def of_feature(self, i: int, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self(x, context)[..., i::DIM]


def same(raw: Tensor) -> Tensor:
    return raw


def by_feature(scale: Callable[[Tensor], Tensor], scale_first: bool) -> Callable[[Tensor], Tensor]:
    """(a_1, b_1, a_2, b_2, ...) to (log scales, shifts)."""

    def translate(raw: Tensor) -> Tensor:
        s, t = raw.unflatten(-1, (-1, 2)).unbind(-1)[:: 1 if scale_first else -1]
        return torch.cat([scale(s), t], -1)

    return translate


def couple(network: nn.Module, tau: flows.ElementwiseMap, translate: Callable = same, swap: bool = False) -> Coupling:
    return Coupling(DIM, tau, lambda dim_in, dim_out: Translated(network, translate), swap=swap)


def both_ways(ours: Bijection, forward: Callable, inverse: Callable | None, x: Tensor | None = None) -> Results:
    """Pairs of values and log-determinants of f at x and, if the library has it, of the inverse at f(x)."""
    x = points() if x is None else x
    z, log_det = ours(x)
    there, log_det_there = forward(x)
    pairs = [(z, there), (log_det, log_det_there)]
    if inverse:
        pairs += zip(ours.inverse(z), inverse(z), strict=True)
    else:  # then at least ours finds back from theirs
        pairs += [(ours.inverse(there)[0], x)]
    return [(a.detach(), b.detach()) for a, b in pairs]


def freia(module: nn.Module) -> tuple[Callable, Callable]:
    """A FrEIA module's two directions."""

    def run(x: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        (y,), log_det = module((x,), rev=rev)
        return y, torch.as_tensor(log_det, dtype=F64).expand(len(x))

    return run, functools.partial(run, rev=True)


def halves(there: nn.Module) -> tuple[Callable, Callable]:
    """A normflows coupling of two halves; what it calls forward is here compared with our forward."""

    def run(way: Callable, x: Tensor) -> tuple[Tensor, Tensor]:
        pair, log_det = way(list(x.chunk(2, 1)))
        return torch.cat(pair, 1), torch.as_tensor(log_det, dtype=F64).expand(len(x))

    return functools.partial(run, there.forward), functools.partial(run, there.inverse)


def two_sided(block: type, tau: flows.ElementwiseMap, **options) -> Results:
    """FrEIA's blocks move the first half, then the second; its clamp * tanh(u) is ours with bound * u as raw number."""
    there = block([(DIM,)], subnet_constructor=net, **options).double()
    first, second = (there.F, there.G) if hasattr(there, "F") else (there.subnet2, there.subnet1)

    def times_bound(raw: Tensor) -> Tensor:
        if tau.num_params == 1:
            return raw
        u, t = raw.chunk(2, -1)
        return torch.cat([tau.bound * u, t], -1)

    ours = flows.Chain(couple(first, tau, times_bound, swap=True), couple(second, tau, times_bound)).double()
    return both_ways(ours, *freia(there))


@compare("affine coupling", "FrEIA GLOWCouplingBlock")
def affine_freia() -> Results:
    from FrEIA.modules import GLOWCouplingBlock

    return two_sided(GLOWCouplingBlock, AffineMap(bound=2.0), clamp=2.0, clamp_activation="TANH")


@compare("GIN coupling", "FrEIA GINCouplingBlock")
def gin_freia() -> Results:
    from FrEIA.modules import GINCouplingBlock

    return two_sided(GINCouplingBlock, GINMap(bound=2.0), clamp=2.0, clamp_activation="TANH")


@compare("additive coupling", "FrEIA NICECouplingBlock")
def additive_freia() -> Results:
    from FrEIA.modules import NICECouplingBlock

    return two_sided(NICECouplingBlock, AdditiveMap())


@compare("affine coupling", "normflows AffineCoupling")
def affine_normflows() -> Results:
    from normflows.flows import AffineCoupling

    network = net(DIM // 2, DIM).double()
    ours = couple(network, FREE, by_feature(same, scale_first=False))
    return both_ways(ours, *halves(AffineCoupling(network)))


@compare("sigmoid coupling", "normflows AffineCoupling")
def sigmoid_normflows() -> Results:
    from normflows.flows import AffineCoupling

    network = net(DIM // 2, DIM).double()
    ours = couple(network, AffineMap(gate="sigmoid"), by_feature(same, scale_first=False))
    return both_ways(ours, *halves(AffineCoupling(network, scale_map="sigmoid_inv")))


@compare("additive coupling", "normflows AffineCoupling")
def additive_normflows() -> Results:
    from normflows.flows import AffineCoupling

    network = net(DIM // 2, DIM // 2).double()
    return both_ways(couple(network, AdditiveMap()), *halves(AffineCoupling(network, scale=False)))


def nflows_coupling(kind: type, num_params: int, **options) -> tuple[nn.Module, nn.Module]:
    mask = torch.arange(DIM) >= DIM // 2

    class Net(nn.Module):
        hidden_features = 1  # nflows divides widths and heights by its root

        def __init__(self, dim_in: int, dim_out: int):
            super().__init__()
            assert dim_out == num_params * DIM // 2
            self.net = net(dim_in, dim_out)

        def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
            return self.net(x)

    there = kind(mask.int(), Net, **options).double()
    return there, there.transform_net.net


@compare("affine coupling", "nflows AffineCouplingTransform")
def affine_nflows() -> Results:
    from nflows.transforms import AffineCouplingTransform

    there, network = nflows_coupling(AffineCouplingTransform, 2)

    def translate(raw: Tensor) -> Tensor:
        t, s = raw.chunk(2, -1)
        return torch.cat([(torch.sigmoid(s + 2) + 1e-3).log(), t], -1)

    return both_ways(couple(network, FREE, translate), there.forward, there.inverse)


@compare("additive coupling", "nflows AdditiveCouplingTransform")
def additive_nflows() -> Results:
    from nflows.transforms import AdditiveCouplingTransform

    there, network = nflows_coupling(AdditiveCouplingTransform, 1)
    return both_ways(couple(network, AdditiveMap()), there.forward, there.inverse)


def zuko_ways(there: Callable) -> tuple[Callable, Callable]:
    """A lazy zuko transform's two directions."""
    return there().call_and_ladj, lambda z: there().inv.call_and_ladj(z)


def soft_clip(s: Tensor) -> Tensor:
    return s / (1 + abs(s / math.log(1e-3)))


@compare("affine coupling", "zuko RealNVP's transform")
def affine_zuko() -> Results:
    from zuko.flows.coupling import GeneralCouplingTransform

    mask = torch.arange(DIM) < DIM // 2
    there = GeneralCouplingTransform(DIM, mask=mask, hidden_features=[16]).double()
    ours = couple(there.hyper, FREE, by_feature(soft_clip, scale_first=False))
    return both_ways(ours, *zuko_ways(there))


def raw_spline(bins: int) -> Tensor:
    return 1.5 * torch.randn(50, (3 * bins - 1) * DIM, dtype=F64, generator=torch.Generator().manual_seed(1))


def spline_functional(function: Callable) -> Results:
    """The functions that nflows and normflows took from the paper's code; zero is not the identity for their slopes."""
    tau, params, x = SplineMap(7, 2.5), raw_spline(7), points()
    w, h, d = params.unflatten(-1, (20, DIM)).transpose(-1, -2).split([7, 7, 6], -1)
    pairs: Results = []
    for way, backwards in ((tau.forward, False), (tau.inverse, True)):
        there = function(x, w, h, d + tau.slope_at_zero, inverse=backwards, tails="linear", tail_bound=2.5)
        pairs += zip(way(x, params), there, strict=True)
    return pairs


@compare("spline", "nflows' function", 1e-9)
def spline_nflows() -> Results:
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline

    return spline_functional(unconstrained_rational_quadratic_spline)


@compare("spline", "normflows' function", 1e-9)
def spline_normflows() -> Results:
    from normflows.utils.splines import unconstrained_rational_quadratic_spline

    return spline_functional(unconstrained_rational_quadratic_spline)


@compare("spline, equal knots", "zuko MonotonicRQSTransform", 1e-9)
def spline_zuko() -> Results:
    from zuko.transforms import MonotonicRQSTransform

    tau, params, x = SplineMap(7, 2.5), raw_spline(7), points()
    xs, ys, slopes = (v.transpose(-1, -2) for v in tau.knots(params))
    there = MonotonicRQSTransform(xs[..., 1:], xs[..., 1:], xs[..., 1:-1], bound=2.5)
    there.horizontal, there.vertical, there.derivatives = xs, ys, slopes  # its own make them differently
    z, log_slope = tau.forward(x, params)
    back, log_slope_back = tau.inverse(z, params)
    there_back, there_log_slope_back = there.inv.call_and_ladj(z)
    pairs = [*zip((z, log_slope), there.call_and_ladj(x), strict=True)]
    return [*pairs, (back, there_back), (log_slope_back, there_log_slope_back)]


@compare("spline coupling", "nflows PiecewiseRationalQuadraticCouplingTransform", 1e-10)
def spline_coupling_nflows() -> Results:
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform as Spline

    there, network = nflows_coupling(Spline, 14, num_bins=5, tails="linear", tail_bound=3.0)
    tau = SplineMap(5)

    def translate(raw: Tensor) -> Tensor:
        wh, d = raw.unflatten(-1, (DIM // 2, 14)).split([10, 4], -1)
        return torch.cat([wh, d - tau.slope_at_zero], -1).transpose(-1, -2).flatten(-2)

    return both_ways(couple(network, tau, translate), there.forward, there.inverse)


def autoregressive(network: nn.Module, translate: Callable) -> Bijection:
    """Our layer around another library's masked network."""
    ours = flows.MaskedAutoregressive(DIM, FREE)
    ours.made = Translated(network, translate)
    return ours


@compare("MAF", "nflows MaskedAffineAutoregressiveTransform")
def maf_nflows() -> Results:
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    there = MaskedAffineAutoregressiveTransform(DIM, 16, num_blocks=2).double()
    translate = by_feature(lambda s: (F.softplus(s) + 1e-3).log(), scale_first=True)
    return both_ways(autoregressive(there.autoregressive_net, translate), there.forward, there.inverse)


@compare("MAF", "normflows MaskedAffineAutoregressive")
def maf_normflows() -> Results:
    from normflows.flows import MaskedAffineAutoregressive

    there = MaskedAffineAutoregressive(DIM, 16, num_blocks=2).double()
    translate = by_feature(lambda s: (torch.sigmoid(s + 2) + 1e-3).log(), scale_first=True)
    return both_ways(autoregressive(there.autoregressive_net, translate), there.forward, there.inverse)


@compare("IAF", "normflows MaskedAffineAutoregressive, inverted")
def iaf_normflows() -> Results:
    from normflows.flows import MaskedAffineAutoregressive

    there = MaskedAffineAutoregressive(DIM, 16, num_blocks=2).double()
    translate = by_feature(lambda s: (torch.sigmoid(s + 2) + 1e-3).log(), scale_first=True)
    ours = flows.Inverse(autoregressive(there.autoregressive_net, translate))
    return both_ways(ours, there.inverse, there.forward)


@compare("MAF", "zuko MaskedAutoregressiveTransform")
def maf_zuko() -> Results:
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform

    there = MaskedAutoregressiveTransform(DIM, hidden_features=[16, 16]).double()
    ours = autoregressive(there.hyper, by_feature(soft_clip, scale_first=False))
    return both_ways(ours, *zuko_ways(there))


@compare("planar", "normflows Planar")
def planar_normflows() -> Results:
    from normflows.flows import Planar

    ours = flows.Planar(DIM).double()
    nn.init.normal_(ours.u)
    nn.init.normal_(ours.b)
    return both_ways(ours, Planar(DIM, u=ours.u[None], w=ours.w[None], b=ours.b[None]), None)


@compare("radial", "normflows Radial")
def radial_normflows() -> Results:
    from normflows.flows import Radial

    ours, there = flows.Radial(DIM).double(), Radial([DIM]).double()
    with torch.no_grad():
        ours.raw += 0.7
        there.z_0.copy_(ours.centre)
        there.beta.copy_(ours.raw)
        there.alpha.copy_(ours.log_alpha.exp())
    return both_ways(ours, there, None)


def act_norm() -> tuple[Bijection, Tensor]:
    ours, x = flows.ActNorm(3, event_ndim=3).double(), points(20, 3, 4, 2) + 1
    ours(x)  # the first batch sets mean and sigma
    return ours.eval(), x


@compare("ActNorm", "nflows ActNorm")
def act_norm_nflows() -> Results:
    from nflows.transforms import ActNorm

    (ours, x), there = act_norm(), ActNorm(3).double().eval()
    there.log_scale.data = -ours.log_sigma.data.flatten()
    there.shift.data = -(ours.mean * (-ours.log_sigma).exp()).data.flatten()
    return both_ways(ours, there.forward, there.inverse, x)


@compare("ActNorm", "FrEIA ActNorm")
def act_norm_freia() -> Results:
    from FrEIA.modules import ActNorm

    (ours, x), there = act_norm(), ActNorm([(3, 4, 2)]).double()
    there.init_on_next_batch = False
    there.scale.data = -ours.log_sigma.data[None]
    there.bias.data = -(ours.mean * (-ours.log_sigma).exp()).data[None]
    return both_ways(ours, *freia(there), x)


@compare("ActNorm, first batch", "normflows ActNorm", 1e-4)
def act_norm_normflows() -> Results:
    """Its first batch has the sample's standard deviation (n - 1) plus 1e-6, ours the batch's own."""
    from normflows.flows import ActNorm

    ours, x = act_norm()
    z, log_det = ours(x)
    there, log_det_there = ActNorm((3, 1, 1)).double()(x)
    n = len(x) * 8
    factor = math.sqrt((n - 1) / n)
    return [(z * factor, there), (log_det[0] + 24 * math.log(factor), log_det_there)]


@compare("1x1 convolution", "normflows Invertible1x1Conv")
def convolution_normflows() -> Results:
    """Its inverse is from data to latent."""
    from normflows.flows import Invertible1x1Conv

    ours, there = flows.InvertibleLinear(4, event_ndim=3).double(), Invertible1x1Conv(4, use_lu=True).double()
    nn.init.normal_(ours.lu)
    there.P, there.sign_S = ours.permutation, ours.sign
    there.L.data, there.U.data, there.log_S.data = ours.lu.data, ours.lu.data, ours.lu.data.diagonal()
    x = points(7, 4, 3, 2)

    def expanded(way: Callable) -> Callable:
        return lambda x: (way(x)[0], way(x)[1].expand(len(x)))

    return both_ways(ours, expanded(there.inverse), expanded(there.forward), x)


def lu_without_permutation() -> flows.InvertibleLinear:
    ours = flows.InvertibleLinear(DIM).double()
    nn.init.normal_(ours.lu, std=0.5)
    ours.permutation, ours.sign = torch.eye(DIM, dtype=F64), torch.ones(DIM, dtype=F64)
    return ours


@compare("LU", "nflows LULinear")
def lu_nflows() -> Results:
    from nflows.transforms import LULinear

    ours, there = lu_without_permutation(), LULinear(DIM).double()
    lu = ours.lu.data
    there.lower_entries.data, there.upper_entries.data = lu[there.lower_indices], lu[there.upper_indices]
    there.unconstrained_upper_diag.data = (lu.diagonal().exp() - there.eps).expm1().log()
    return both_ways(ours, there.forward, None)  # its inverse calls a function that PyTorch no longer has


@compare("LU", "zuko LULinearTransform")
def lu_zuko() -> Results:
    """Its U has the unit diagonal: L U = (L D) (D^-1 U)."""
    from zuko.transforms import LULinearTransform

    ours = lu_without_permutation()
    _, lower, upper = ours.factors()
    diagonal = upper.diagonal()
    there = LULinearTransform((lower * diagonal).tril() + (upper / diagonal[:, None]).triu(1))
    return both_ways(ours, there.call_and_ladj, there.inv.call_and_ladj)


@compare("rotation", "zuko RotationTransform")
def rotation_zuko() -> Results:
    from zuko.transforms import RotationTransform

    there = RotationTransform(points(DIM, DIM))
    ours = flows.Rotation(DIM, matrix=there.R)
    return both_ways(ours, there.call_and_ladj, there.inv.call_and_ladj)


@compare("residual, exact", "normflows iResBlock")
def residual_normflows() -> Results:
    """Its log-determinant is subtracted; in the plane it computes the Jacobian by brute force."""
    from normflows.flows.residual import iResBlock

    ours = flows.Residual(2, width=16, lipschitz=0.9).double().eval()
    there, x = iResBlock(ours.net, brute_force=True).double(), points(30, 2)
    z, log_det = there(x.clone(), torch.zeros(30, 1, dtype=F64))
    return [(ours(x)[0].detach(), z.detach()), (ours(x)[1].detach(), -log_det[:, 0].detach())]


@compare("residual, 12 terms", "normflows iResBlock")
def residual_series_normflows() -> Results:
    from normflows.flows.residual import iResBlock

    ours = flows.Residual(DIM, width=16, lipschitz=0.9, method="series", num_terms=12).double().eval()
    there, x = iResBlock(ours.net, n_power_series=12, exact_trace=True, neumann_grad=False).double(), points()
    z, log_det = there.train()(x.clone(), torch.zeros(50, 1, dtype=F64))
    return [(ours(x)[0].detach(), z.detach()), (ours(x)[1].detach(), -log_det[:, 0].detach())]


@compare("continuous", "zuko FreeFormJacobianTransform", 1e-8)
def continuous_zuko() -> Results:
    from zuko.transforms import FreeFormJacobianTransform

    ours = flows.Continuous(DIM, num_steps=60, width=16)
    for p in ours.parameters():
        nn.init.normal_(p, std=0.3)
    ours, x = ours.double(), points()
    there = FreeFormJacobianTransform(ours.velocity, atol=1e-11, rtol=1e-11)
    return both_ways(ours, there.call_and_ladj, there.inv.call_and_ladj, x)


@compare("squeeze", "normflows Squeeze", 0)
def squeeze_normflows() -> Results:
    from normflows.flows import Squeeze

    x = points(5, 3, 4, 6)
    return [(flows.Squeeze()(x)[0], Squeeze().inverse(x)[0])]


@compare("squeeze", "FrEIA IRevNetDownsampling", 0)
def squeeze_freia() -> Results:
    from FrEIA.modules import IRevNetDownsampling

    x = points(5, 3, 4, 6)
    return [(flows.Squeeze()(x)[0], IRevNetDownsampling([(3, 4, 6)]).double()((x,))[0][0])]


@compare("squeeze", "PyTorch pixel_unshuffle", 0)
def squeeze_torch() -> Results:
    x = points(5, 3, 6, 9)
    return [(space_to_depth(x, 3), F.pixel_unshuffle(x, 3))]


@compare("logit", "torch.distributions")
def logit_torch() -> Results:
    ours, x = flows.Logit(0.05, event_ndim=1), points().sigmoid()
    there = transforms.ComposeTransform([transforms.AffineTransform(0.05, 0.9), transforms.SigmoidTransform().inv])
    z = there(x)
    return both_ways(ours, lambda x: (z, there.log_abs_det_jacobian(x, z).sum(-1)), None, x)


@compare("Student-t base", "torch.distributions")
def student_torch() -> Results:
    df = torch.tensor([0.5, 1.0, 2.5, 10.0, 100.0, math.inf], dtype=F64)
    ours, z = flows.StudentT(df).double(), points()
    ours.log_df.data = df[:-1].log()  # it was made in float32
    there = StudentT(df[:-1]).log_prob(z[:, :-1]).sum(-1) - 0.5 * (z[:, -1] ** 2 + math.log(2 * math.pi))
    return [(ours.log_prob(z).detach(), there)]


@compare("radial mixture base", "torch.distributions")
def mixture_torch() -> Results:
    ours, z = flows.RadialMixture(DIM, 3).double(), points()
    nn.init.normal_(ours.logits)
    widths = ours.log_width.detach().exp()
    parts = MultivariateNormal(torch.zeros(3, DIM, dtype=F64), widths.square()[:, None, None] * torch.eye(DIM))
    there = MixtureSameFamily(torch.distributions.Categorical(logits=ours.logits.detach()), parts)
    return [(ours.log_prob(z).detach(), there.log_prob(z))]


@compare("flow's log_prob", "torch TransformedDistribution", 1e-11)
def log_prob_torch() -> Results:
    scale, shift = points(DIM).exp(), points(DIM)
    ours = flows.Flow(flows.Diagonal(DIM), flows.StandardNormal([DIM])).double()
    ours.bijection.log_scale.data, ours.bijection.shift.data = -scale.log(), -shift / scale
    base = torch.distributions.Normal(torch.zeros(DIM, dtype=F64), 1)
    there = torch.distributions.TransformedDistribution(base, transforms.AffineTransform(shift, scale))
    return [(ours.log_prob(points()).detach(), there.log_prob(points()).sum(-1))]


def largest_difference(pairs: Results) -> float:
    for ours, there in pairs:
        assert ours.shape == there.shape and ours.isfinite().all()
    return max((ours - there).abs().max().item() for ours, there in pairs)


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")  # FrEIA, where Python first compiles it
@pytest.mark.filterwarnings("ignore:torch.lu is deprecated:UserWarning")  # normflows' convolution
@pytest.mark.parametrize("name", TABLE)
def test_agrees_with(name):
    transform, library, tolerance, function = TABLE[name]
    torch.manual_seed(0)
    difference = largest_difference(function())
    print(f"{transform} | {library} | {difference:.1e}")
    assert difference <= tolerance


def test_a_wrong_translation_is_seen(monkeypatch):
    """The comparison notices scales and shifts that change places, and a log-determinant that is left out."""
    torch.manual_seed(0)
    network = net(DIM // 2, DIM).double()
    right, wrong = (couple(network, FREE, by_feature(same, scale_first=first)) for first in (False, True))
    assert largest_difference(both_ways(right, right.forward, right.inverse)) == 0
    assert largest_difference(both_ways(right, wrong.forward, wrong.inverse)) > 0.1
    assert largest_difference(both_ways(right, lambda x: (right(x)[0], right.zeros(x)), None)) > 0.1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print("| transform | library | largest difference |\n|---|---|---|")
    for transform, library, _, function in TABLE.values():
        torch.manual_seed(0)
        print(f"| {transform} | {library} | {largest_difference(function()):.1e} |")
