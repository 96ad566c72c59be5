"""Tail indices of known laws, and flows that keep heavy features away from light ones."""

import math

import pytest
import torch

from refimpl import runtime
from refimpl.autodiff import jacobian
from refimpl.flows import (
    AffineMap,
    BlockTriangularLinear,
    Chain,
    MaskedAutoregressive,
    Permutation,
    SplineMap,
    StudentT,
    hill_index,
    sample_heavy_copula,
    tail_adaptive_flow,
    tail_index,
)

F64 = torch.float64


def student(nu, n, dim, seed=0):
    return StudentT([nu] * dim, learned=False).double().sample([n], runtime.generator(seed))


def shaken(module, scale=0.2):
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def test_hill_of_a_pareto_law_is_its_index_within_the_known_error():
    u = torch.rand(2000, 500, dtype=F64, generator=runtime.generator(0))
    for index in (0.5, 2.0, 5.0):
        found = hill_index(u ** (-1 / index), 1000)  # exact power law: 1 / found is a mean of 1000 exponentials
        z = (1 / found - 1 / index) * index * math.sqrt(1000)
        assert abs(z.mean()) < 4 / math.sqrt(500) and 0.88 < z.std() < 1.12
    assert hill_index(u[:, 0], 10).shape == ()


def test_light_and_heavy_laws_are_told_apart():
    """20 samples of each law; a cut through Hill's index alone would call the Laplace law heavier than t with 5."""
    n, generator = 5000, runtime.generator(1)
    normal = torch.randn(n, 20, dtype=F64, generator=generator)
    laplace = torch.empty(n, 20, dtype=F64).exponential_(generator=generator) * normal.sign()
    modes = normal + 4 * (torch.rand(n, 20, dtype=F64, generator=generator) < 0.5)
    for light, mistakes in ((normal, 0), (modes, 0), (laplace, 6)):
        assert tail_index(light + 7).isfinite().sum() <= mistakes
    for nu in (1.0, 2.0, 3.0):
        found = tail_index(student(nu, n, 20))
        assert found.isfinite().all() and found.mean() == pytest.approx(nu, rel=0.2)
    assert hill_index(laplace, 250).mean() < 5  # finite, and not large


@pytest.mark.parametrize("tau", [AffineMap(), SplineMap()])
def test_a_triangular_map_keeps_the_index_of_a_heavy_feature_and_the_wrong_order_spoils_the_light_one(tau):
    n, nu = 100_000, 2.0
    z = torch.stack([torch.randn(n, dtype=F64, generator=runtime.generator(2)), student(nu, n, 1)[:, 0]], 1)
    right = shaken(MaskedAutoregressive(2, tau, width=16))
    with torch.no_grad():
        x = right.inverse(z)[0]
        assert hill_index(x[:, 1], 500) == pytest.approx(nu, abs=0.35)
        assert tail_index(x)[0] == math.inf
        # A linear layer with the heavy feature first: now the light one is moved by it.
        wrong = Chain(Permutation([1, 0]), BlockTriangularLinear(1, 1), Permutation([1, 0])).double()
        wrong.bijections[1].mix.fill_(0.5)
        assert tail_index(wrong.inverse(z)[0])[0] < 3


@pytest.mark.parametrize(
    "tails", [[2.0, math.inf, 3.0, math.inf, 2.0], [math.inf] * 3, [2.0, 3.0], [math.inf, 2.0]], ids=str
)
def test_heavy_features_never_feed_light_ones(tails):
    flow = tail_adaptive_flow(tails, 3, width=16, generator=runtime.generator(3))
    flow = shaken(flow)
    light = torch.tensor(tails).isinf()
    x = torch.randn(10, len(tails), dtype=F64, generator=runtime.generator(4))
    j = jacobian(lambda x: flow.bijection(x)[0], x)
    base_light = flow.base.df.isinf()
    assert base_light.sum() == light.sum()
    assert (j[:, base_light][:, :, ~light] == 0).all()
    rest = j[:, ~base_light]
    assert (rest != 0).any(0).all()  # heavy ones listen to all
    torch.testing.assert_close(flow.bijection.inverse(flow.bijection(x)[0])[0], x)


def test_degrees_of_freedom_come_from_the_data_and_are_learned_or_not():
    x = torch.stack([student(2.0, 8000, 1)[:, 0], torch.randn(8000, dtype=F64, generator=runtime.generator(5))], 1)
    flow = tail_adaptive_flow(x, 2, learned=False, width=8)
    assert flow.base.df[0] == math.inf and 1.6 < flow.base.df[1] < 2.4
    assert not flow.base.log_df.requires_grad
    assert tail_adaptive_flow([2.0], 1).base.log_df.requires_grad
    assert flow.double().log_prob(x).shape == (8000,)


def test_the_flow_keeps_its_tails_through_sampling():
    flow = shaken(tail_adaptive_flow([math.inf, 2.0, math.inf], 2, width=16), 0.1)
    with torch.no_grad():
        x = flow.sample([40_000], generator=runtime.generator(6))
    found = tail_index(x)
    assert found[0] == found[2] == math.inf and 1.6 < found[1] < 2.4


@pytest.mark.parametrize(("num_heavy", "df"), [(1, 3.0), (4, 2.0)])
def test_copula_data_have_the_promised_tails_and_dependence(num_heavy, df):
    x = sample_heavy_copula(10_000, num_heavy, df, generator=runtime.generator(7))
    torch.testing.assert_close(x.mean(0), torch.zeros(8, dtype=F64), atol=1e-9, rtol=0)
    found = tail_index(x)
    assert found[: 8 - num_heavy].isinf().all()
    assert ((found[8 - num_heavy :] - df).abs() < 0.8).all()
    ranks = x.argsort(0).argsort(0).double()
    spearman = torch.corrcoef(ranks.T).tril(-1).abs()
    # A pair with 0.25 in the copula has a rank correlation of 6 / pi asin(0.125) = 0.239.
    assert 8 <= (spearman > 0.15).sum() <= 20 and spearman.max() < 0.35
    same = sample_heavy_copula(10_000, num_heavy, df, generator=runtime.generator(7))
    assert torch.equal(x, same)


def test_copula_marginals_are_uniform_at_their_own_quantiles():
    """The first feature is normal: Kolmogorov's distance of 20000 samples to it stays below its 99.9 % point."""
    x = sample_heavy_copula(20_000, 4, 2.0, generator=runtime.generator(8))[:, 0].sort().values
    distance = (torch.special.ndtr(x) - torch.arange(20_000) / 20_000).abs().max()
    assert distance < 1.95 / math.sqrt(20_000)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="k: got 10, expected a whole number from 1 to 9"):
        hill_index(torch.randn(10), 10)
    with pytest.raises(ValueError, match="x: has values"):
        tail_index(torch.full((10, 2), math.nan))
    with pytest.raises(TypeError, match="^order: "):
        tail_adaptive_flow([2.0, math.inf], 1, order=[1, 0])
    with pytest.raises(ValueError, match="num_heavy: got"):
        sample_heavy_copula(10, 9)
