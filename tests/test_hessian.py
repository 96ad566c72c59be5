"""Eigenvalues from Hessian-vector products against spectra known beforehand and against the full Hessian of a network."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from refimpl import runtime
from refimpl.landscape.hessian import hessian_eigenvalues, rayleigh_quotient
from refimpl.nets import mlp

F64 = torch.float64


def quadratic(spectrum, dtype=F64, seed=0):
    """x -> x^T H x / 2 + b^T x for a random symmetric H with this spectrum, and H."""
    spectrum = torch.as_tensor(spectrum, dtype=F64)
    n = len(spectrum)
    q = torch.linalg.qr(torch.randn(n, n, dtype=F64, generator=runtime.generator(seed)))[0]
    h = (q * spectrum @ q.T).to(dtype)
    b = torch.ones(n, dtype=dtype)
    return lambda x: x @ h @ x / 2 + b @ x, h


def wanted(spectrum, num, which):
    return torch.as_tensor(spectrum, dtype=F64).sort(descending=which == "largest").values[:num]


SPECTRA = {
    "spread": torch.linspace(-3, 7, 60),
    "bulk at zero with outliers": torch.cat([torch.linspace(-0.011, 0.001, 80), torch.tensor([1.0, 2.33])]),
    "negative": -torch.logspace(-6, 1, 50),
    "one value": torch.full((40,), -3.0),
    "zero": torch.zeros(30),
    "few dimensions": torch.tensor([2.0, -1.0, 0.5, 0.0]),
    "one dimension": torch.tensor([-4.0]),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("name", SPECTRA)
def test_ends_of_a_known_spectrum(name, which, dtype):
    spectrum = SPECTRA[name]
    num = min(3, len(spectrum))
    loss, h = quadratic(spectrum, dtype)
    tolerance = 1e-4
    values, vectors = hessian_eigenvalues(
        loss,
        torch.ones(len(h), dtype=dtype),
        num=num,
        which=which,
        tolerance=tolerance,
        generator=runtime.generator(0),
    )
    assert values.dtype == vectors.dtype == dtype and vectors.shape == (num, len(h))
    scale = spectrum.abs().max().item()
    torch.testing.assert_close(values.double(), wanted(spectrum, num, which), atol=tolerance * scale + 1e-12, rtol=0)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(num, dtype=dtype), atol=1e-5, rtol=0)
    residual = vectors @ h - values[:, None] * vectors
    assert residual.norm(dim=1).max() <= 2 * tolerance * scale + 1e-12


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_networks_hessian(which, activation):
    net = mlp(3, 2, width=6, depth=3, activation=activation).double()
    generator = runtime.generator(1)
    shapes = {name: p.shape for name, p in net.named_parameters()}
    x, y = torch.randn(20, 3, dtype=F64, generator=generator), torch.randn(20, 2, dtype=F64, generator=generator)
    theta = torch.randn(sum(s.numel() for s in shapes.values()), dtype=F64, generator=generator)

    def loss(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        state = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return (functional_call(net, state, x) - y).square().mean()

    full = torch.autograd.functional.hessian(loss, theta)
    values, vectors = hessian_eigenvalues(loss, theta, num=4, which=which, tolerance=1e-6, generator=generator)
    exact = torch.linalg.eigvalsh(full)
    torch.testing.assert_close(values, wanted(exact, 4, which), rtol=0, atol=1e-6 * exact.abs().max().item())
    for value, vector in zip(values, vectors, strict=True):
        torch.testing.assert_close(rayleigh_quotient(loss, theta, vector), value, rtol=0, atol=1e-5)
    direction = torch.randn(len(theta), dtype=F64, generator=generator)
    expected = direction @ full @ direction / direction.square().sum()
    torch.testing.assert_close(rayleigh_quotient(loss, theta, direction), expected)


def test_a_looser_tolerance_takes_fewer_products_and_the_matrix_is_never_formed():
    counts = []
    for tolerance in (1e-2, 1e-8):
        loss, _ = quadratic(torch.linspace(0, 1, 400))
        calls = []
        hessian_eigenvalues(
            lambda x, loss=loss, calls=calls: calls.append(1) or loss(x),
            torch.zeros(400, dtype=F64),
            tolerance=tolerance,
            generator=runtime.generator(0),
        )
        counts.append(len(calls))
    assert counts[0] < 60 < counts[1] < 400


def test_the_start_vectors_come_from_the_generator():
    loss, _ = quadratic(torch.linspace(0, 1, 100))
    x = torch.zeros(100, dtype=F64)

    def run(seed):
        return hessian_eigenvalues(loss, x, tolerance=1e-2, generator=runtime.generator(seed))[1]

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    before = torch.random.get_rng_state()
    run(0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_too_few_iterations_are_an_error_not_a_number():
    loss, _ = quadratic(torch.linspace(0, 1, 400))
    with pytest.raises(RuntimeError, match="^max_iterations: "):
        hessian_eigenvalues(loss, torch.zeros(400, dtype=F64), tolerance=1e-10, max_iterations=1)


@pytest.mark.parametrize("length", [1e-30, 1.0, 1e30])
def test_the_quotient_does_not_depend_on_the_length(length):
    quotient = rayleigh_quotient(lambda x: x[0] ** 2 - 3 * x[1] ** 2, torch.ones(2), torch.tensor([1.0, 1.0]) * length)
    assert quotient.item() == pytest.approx(-2)


def test_a_path_of_constant_loss_has_no_curvature_along_itself():
    """On the circle of minima of (|x|^2 - 1)^2 the tangent is flat and the radius has curvature 8."""
    x = torch.tensor([0.6, 0.8], dtype=F64)

    def loss(x):
        return (x.square().sum() - 1) ** 2

    assert rayleigh_quotient(loss, x, torch.tensor([-0.8, 0.6], dtype=F64)).abs() < 1e-12
    assert rayleigh_quotient(loss, x, x).item() == pytest.approx(8)
    assert hessian_eigenvalues(loss, x, num=2)[0].tolist() == pytest.approx([8, 0], abs=1e-12)
