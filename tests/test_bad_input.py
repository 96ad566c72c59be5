"""What a learner gets wrong: each malformed call raises ValueError or TypeError that names the argument.

The annotations' run-time check would raise first, so it is off here: learners run without it.
"""

import math
import re
from types import SimpleNamespace

import jaxtyping
import networkx as nx
import pytest
import torch
from torch import nn

from refimpl import autodiff, metrics, plots, polytopes, runtime
from refimpl import flows as zoo
from refimpl import spectral_bias as sb
from refimpl.claims import Claim, Claims
from refimpl.data import GaussianMixture, augment, cifar, digits, flower, grid, moons, radial_noise, ring, sum_of_sines
from refimpl.data.tabular import load_tabular, split_folds
from refimpl.flows import gaussian_recursion, gaussian_rotations
from refimpl.landscape import (
    BezierCurve,
    NetworkLoss,
    PolygonalChain,
    alignment,
    egg_carton,
    exploration,
    fit_curve,
    hessian,
    insert_pivots,
)
from refimpl.landscape import auto_neb as neb
from refimpl.landscape import band as bands
from refimpl.landscape import curvy_valley as valley
from refimpl.nets import BasicBlock, FourierFeatures, Sine, Stack, cnn, densenet, mlp, resnet, siren
from refimpl.nets.convolutional import DenseLayer
from refimpl.training import fit

F64 = torch.float64
NAN = math.nan
torch.manual_seed(0)  # some random networks this small are constant, which is another error
net, two_outputs, on_plane = mlp(1, 1, width=3, depth=2), mlp(1, 2, width=3, depth=2), mlp(2, 1, width=3, depth=2)
line, points, matrix = torch.zeros(8), torch.zeros(8, 1), torch.eye(8)
bad_line, bad_points, bad_matrix = line + NAN, points + NAN, matrix + NAN
z = grid(8)
sine = torch.sin(2 * math.pi * z)
square = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
wave, knots, far = torch.ones(1, 2), torch.tensor([0.0, 1.0, 2.0]), torch.logspace(0, 2, 20)
regions = polytopes.linear_regions(on_plane, square)
claims = Claims("00_demo", [Claim("GS-1", "a", "b", "c", "d", "<=", 1)])
order_of_net = alignment.chain_permutations(net)


def landscape(*losses, **run):
    """Minima with these losses, and a run from the first to the second if there is one."""
    graph = nx.MultiGraph()
    graph.add_nodes_from((i, {"loss": loss}) for i, loss in enumerate(losses))
    graph.add_edges_from([(0, 1, run)] if run else [])
    return graph


def declare(**changes):
    fields = dict(id="GS-1", statement="s", where="w", reported="-", quantity="q", op="<=", bound=1.0)
    return Claim(**fields | changes)


def train(**changes):
    wanted = dict(parameters=net, loss_fn=lambda: net(points).square().mean(), num_steps=1, progress=False) | changes
    return fit(wanted.pop("parameters"), wanted.pop("loss_fn"), **wanted)


chain, heights, even = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), torch.zeros(3), torch.full((2,), 0.5)
image_loss = NetworkLoss(cnn(1, 10, channels=[4]), nn.functional.cross_entropy)
two_nets, pictures = torch.zeros(2, image_loss.dim), torch.zeros(5, 1, 8, 8)
classes = torch.zeros(5, dtype=torch.long)
norms = image_loss.batch_norm_statistics(two_nets, pictures)


def relax(pivots=chain, loss=valley, **changes):
    return bands.nudged_elastic_band(pivots, loss, **dict(num_steps=1, lr=0.1) | changes)


def grow(start=chain[0], end=chain[2], loss=valley, **changes):
    return neb(start, end, loss, **dict(schedule=[(1, 0.1)]) | changes)


def bend(curve=None, loss=valley, **changes):
    curve = BezierCurve(chain[0], chain[2]) if curve is None else curve
    return fit_curve(curve, loss, **dict(num_steps=1, lr=0.1) | changes)


plane, space, normal, affine = torch.zeros(5, 2), torch.zeros(5, 3), zoo.StandardNormal([2]), zoo.AffineMap()
flow = zoo.Flow(zoo.Diagonal(2), normal)
conditional = zoo.Flow(zoo.coupling_flow(2, affine, 2, width=4, dim_context=3), normal)
of_maf = zoo.Flow(zoo.maf(2, 1, width=4, dim_context=3), normal)
of_images = zoo.Flow(zoo.glow(1, 8, num_steps=1, width=4, dim_context=3), zoo.StandardNormal([1, 8, 8]))
normals, identity, flat = torch.randn(50, 3), torch.eye(3), torch.zeros(4, 4)
lopsided = torch.tensor([[1.0, 0.9], [0.0, 1.0]])


def bowl(x):
    return x.square().sum(-1)


def kernel(kind=zoo.Metropolis, energy=bowl, step=0.1, **settings):
    return kind(energy, step, **settings)


def paths(layers=(), base=normal, energy=bowl):
    return zoo.StochasticFlow(layers, base, energy)


CALLS = {
    "spectral_bias": [
        ("y", lambda: sb.coefficients([0.0, 1.0, 0.0], [1])),
        ("y", lambda: sb.coefficients(sine.to(torch.complex64), [1])),
        ("y", lambda: sb.coefficients(torch.arange(8), [1])),
        ("y", lambda: sb.coefficients(torch.tensor(1.0), [0])),
        ("y", lambda: sb.coefficients(bad_line, [1])),
        ("frequencies", lambda: sb.coefficients(sine, [4])),
        ("frequencies", lambda: sb.coefficients(sine, [-1])),
        ("frequencies", lambda: sb.coefficients(sine, [1.5])),
        ("frequencies", lambda: sb.coefficients(sine, [NAN])),
        ("frequencies", lambda: sb.coefficients(sine, [math.inf])),
        ("frequencies", lambda: sb.coefficients(sine, "12")),
        ("frequencies", lambda: sb.coefficients(sine, [])),
        ("frequencies", lambda: sb.coefficients(sine, 3)),
        ("frequencies", lambda: sb.whole_frequencies([9], 8)),
        ("kind", lambda: sb.recovered(sine, sine, [1], kind="phase")),
        ("y", lambda: sb.recovered(bad_line, sine, [1])),
        ("target", lambda: sb.recovered(sine, sine[:4], [1])),
        ("target", lambda: sb.recovered(sine, sine, [2])),
        ("target", lambda: sb.recovered(sine, line, [1])),
        ("history", lambda: sb.learning_order(torch.rand(5, 3), [1, 2])),
        ("history", lambda: sb.learning_order(torch.rand(3), [1, 2, 3])),
        ("history", lambda: sb.learning_order(torch.full((5, 2), NAN), [1, 2])),
        ("history", lambda: sb.learning_order(torch.zeros(5, 2), [1, 2])),
        ("history", lambda: sb.learning_order(torch.zeros(0, 2), [1, 2])),
        ("frequencies", lambda: sb.learning_order(torch.rand(5, 1), [1])),
        ("norms", lambda: sb.perturbation_robustness(net, z[:, None], [1], [-1.0])),
        ("norms", lambda: sb.perturbation_robustness(net, z[:, None], [1], [])),
        ("norms", lambda: sb.perturbation_robustness(net, z[:, None], [1], 2.0)),
        ("num_draws", lambda: sb.perturbation_robustness(net, z[:, None], [1], [1.0], num_draws=0)),
        ("x", lambda: sb.perturbation_robustness(net, z, [1], [1.0])),
        ("net", lambda: sb.perturbation_robustness(two_outputs, z[:, None], [1], [1.0])),
        ("net", lambda: sb.perturbation_robustness(net, points, [1], [1.0])),
        ("frequencies", lambda: sb.perturbation_robustness(net, z[:, None], [4], [1.0])),
        ("kind", lambda: sb.lipschitz_bound(net, "frobenius")),
        ("net", lambda: sb.lipschitz_bound(siren(1, 1, width=3, depth=2))),
        ("net", lambda: sb.lipschitz_bound(nn.ReLU())),
        ("x", lambda: sb.local_slope(net, line)),
        ("x", lambda: sb.local_slope(net, bad_points)),
        ("net", lambda: sb.local_slope(two_outputs, points)),
        ("sigma", lambda: sb.gaussian_kernel_eigenbasis(points, 0)),
        ("sigma", lambda: sb.gaussian_kernel_eigenbasis(points, NAN)),
        ("sigma", lambda: sb.gaussian_kernel_eigenbasis(points, "1")),
        ("x", lambda: sb.gaussian_kernel_eigenbasis(line, 1.0)),
        ("x", lambda: sb.gaussian_kernel_eigenbasis(bad_points, 1.0)),
        ("x", lambda: sb.empirical_ntk(net, line)),
        ("net", lambda: sb.empirical_ntk(two_outputs, points)),
        ("kernel", lambda: sb.circulant_energy(torch.zeros(3, 4), [1])),
        ("kernel", lambda: sb.circulant_energy(bad_matrix, [1])),
        ("frequencies", lambda: sb.circulant_energy(matrix, [4])),
        ("kernel", lambda: sb.linearized_residual(torch.eye(3), line, lr=0.1, steps=[1])),
        ("kernel", lambda: sb.linearized_residual(matrix.cumsum(1), line, lr=0.1, steps=[1])),
        ("residual", lambda: sb.linearized_residual(matrix, bad_line, lr=0.1, steps=[1])),
        ("lr", lambda: sb.linearized_residual(matrix, line, lr=17.0, steps=[1])),
        ("lr", lambda: sb.linearized_residual(matrix, line, lr=0, steps=[1])),
        ("lr", lambda: sb.linearized_residual(matrix, line, lr="0.1", steps=[1])),
        ("steps", lambda: sb.linearized_residual(matrix, line, lr=0.1, steps=[-1])),
        ("steps", lambda: sb.linearized_residual(matrix, line, lr=0.1, steps=5)),
    ],
    "polytopes": [
        ("knots", lambda: polytopes.piecewise_linear_transform(knots.flip(0), knots, far)),
        ("knots", lambda: polytopes.piecewise_linear_transform(knots[:1], knots[:1], far)),
        ("values", lambda: polytopes.piecewise_linear_transform(knots, knots[:2], far)),
        ("k", lambda: polytopes.piecewise_linear_transform(knots, knots, torch.zeros(1))),
        ("k", lambda: polytopes.piecewise_linear_transform(knots, knots, 3.0)),
        ("b", lambda: polytopes.shallow_relu_transform(knots + 1, knots[:2], knots, far)),
        ("v", lambda: polytopes.shallow_relu_transform(knots + 1, knots, knots[:2], far)),
        ("w", lambda: polytopes.shallow_relu_transform(knots, knots, knots, far)),
        ("k", lambda: polytopes.shallow_relu_transform(knots + 1, knots, knots, torch.zeros(1))),
        ("vertices", lambda: polytopes.polygon_transform(square.flip(0), wave)),
        ("vertices", lambda: polytopes.polygon_transform(square[:2], wave)),
        ("vertices", lambda: polytopes.polygon_transform(square.tolist(), wave)),
        ("vertices", lambda: polytopes.polygon_transform(square + NAN, wave)),
        ("k", lambda: polytopes.polygon_transform(square, torch.ones(2))),
        ("k", lambda: polytopes.polygon_transform(square, wave.double())),
        ("net", lambda: polytopes.inside_tent(mlp(2, 1, width=3, depth=3))),
        ("net", lambda: polytopes.inside_tent(mlp(3, 1, width=3, depth=2))),
        ("net", lambda: polytopes.linear_regions(net, square)),
        ("net", lambda: polytopes.linear_regions(siren(2, 1, width=3, depth=2), square)),
        ("corners", lambda: polytopes.linear_regions(on_plane, square.flip(0))),
        ("corners", lambda: polytopes.linear_regions(on_plane, torch.cat([square, torch.zeros(1, 2)]))),
        ("corners", lambda: polytopes.linear_regions(on_plane, square[0])),
        ("regions", lambda: polytopes.network_transform([], wave)),
        ("regions", lambda: polytopes.network_transform(regions, wave)),
        ("k", lambda: polytopes.network_transform(regions, 0 * wave)),
        ("regions", lambda: polytopes.facets([])),
        ("k", lambda: polytopes.decay_exponent(far.flip(0), far)),
        ("k", lambda: polytopes.decay_exponent(1 + far / 1e3, far)),
        ("magnitude", lambda: polytopes.decay_exponent(far, far[:5])),
        ("magnitude", lambda: polytopes.decay_exponent(far, 0 * far)),
        ("magnitude", lambda: polytopes.decay_exponent(far, far - 50)),
    ],
    "nets": [
        ("width", lambda: mlp(1, 1, width=0, depth=2)),
        ("width", lambda: mlp(1, 1, width=2.0, depth=2)),
        ("depth", lambda: mlp(1, 1, width=2, depth=True)),
        ("dim_in", lambda: mlp(None, 1, width=2, depth=2)),
        ("activation", lambda: mlp(1, 1, width=2, depth=2, activation=nn.ReLU())),
        ("activation", lambda: mlp(1, 1, width=2, depth=2, activation="relu")),
        ("num_features", lambda: FourierFeatures(1, 0, sigma=1.0)),
        ("sigma", lambda: FourierFeatures(1, 2, sigma=0.0)),
        ("sigma", lambda: FourierFeatures(1, 2, sigma="10")),
        ("x", lambda: FourierFeatures(1, 2, sigma=1.0)(torch.zeros(3, 2))),
        ("omega", lambda: Sine(-30.0)),
        ("omega", lambda: siren(1, 1, width=2, depth=2, omega=math.inf)),
        ("depth", lambda: siren(1, 1, width=2, depth=1)),
        ("networks", lambda: Stack([])),
        ("networks", lambda: Stack(net)),
        ("networks", lambda: Stack([net, two_outputs])),
        ("networks", lambda: Stack([net, 3])),
        ("x", lambda: Stack([net, net])(torch.zeros(3, 5, 1))),
        ("index", lambda: Stack([net, net]).network(2, mlp(1, 1, width=3, depth=2))),
        ("into", lambda: Stack([net, net]).network(0, two_outputs)),
    ],
    "data": [
        ("num_points", lambda: grid(1)),
        ("num_points", lambda: grid(8.0)),
        ("z", lambda: sum_of_sines(0.5, [1])),
        ("z", lambda: sum_of_sines(points, [1])),
        ("z", lambda: sum_of_sines(torch.arange(4), [1])),
        ("frequencies", lambda: sum_of_sines(z, [])),
        ("frequencies", lambda: sum_of_sines(z, [NAN])),
        ("frequencies", lambda: sum_of_sines(z, None)),
        ("amplitudes", lambda: sum_of_sines(z, [1, 2], [1.0])),
        ("amplitudes", lambda: sum_of_sines(z, [1, 2], [1.0, math.inf])),
        ("amplitudes", lambda: sum_of_sines(z, [1], "1")),
        ("num_signals", lambda: sum_of_sines(z, [1], num_signals=0)),
        ("petals", lambda: flower(z, -1)),
        ("petals", lambda: flower(z, 2.5)),
        ("z", lambda: flower(points, 2)),
        ("frequency", lambda: radial_noise(points, NAN)),
        ("frequency", lambda: radial_noise(points, "1")),
        ("x", lambda: radial_noise(line, 1.0)),
        ("x", lambda: radial_noise(bad_points, 1.0)),
        ("reference", lambda: radial_noise(points, 1.0, reference=torch.rand(3, 2))),
        ("reference", lambda: radial_noise(points, 1.0, reference=points)),
        ("reference", lambda: radial_noise(points, 0.0, reference=torch.rand(9, 1))),
        ("classes", lambda: digits([10])),
        ("classes", lambda: digits([])),
        ("classes", lambda: digits(3)),
        ("classes", lambda: digits(["3"])),
        ("name", lambda: load_tabular("titanic")),
        ("features", lambda: load_tabular("iris", ["petal colour"])),
        ("num_folds", lambda: split_folds(5, 1)),
    ],
    "images": [
        ("in_channels", lambda: cnn(0, 10, channels=[4])),
        ("num_classes", lambda: cnn(1, 2.0, channels=[4])),
        ("channels", lambda: cnn(1, 10, channels=4)),
        ("channels", lambda: cnn(1, 10, channels=[])),
        ("channels", lambda: cnn(1, 10, channels=[4, 8.0])),
        ("kernel_size", lambda: cnn(1, 10, channels=[4], kernel_size=4)),
        ("pool", lambda: cnn(1, 10, channels=[4], pool="average")),
        ("hidden", lambda: cnn(1, 10, channels=[4], hidden=0)),
        ("image_size", lambda: cnn(1, 10, channels=[4], image_size=(8, 8))),
        ("image_size", lambda: cnn(1, 10, channels=[4, 4], pool="max", image_size=3)),
        ("depth", lambda: resnet(18)),
        ("depth", lambda: resnet(2)),
        ("depth", lambda: resnet("20")),
        ("width", lambda: resnet(8, width=0.5)),
        ("stages", lambda: resnet(8, stages=0)),
        ("stride", lambda: BasicBlock(4, 4, stride=0)),
        ("depth", lambda: densenet(41)),
        ("depth", lambda: densenet(4)),
        ("depth", lambda: densenet(43, bottleneck=True)),
        ("growth", lambda: densenet(40, growth=0)),
        ("growth", lambda: DenseLayer(4, 0)),
        ("compression", lambda: densenet(40, compression=0)),
        ("compression", lambda: densenet(40, compression=1.5)),
        ("blocks", lambda: densenet(40, blocks=0)),
        ("classes", lambda: cifar(20)),
        ("classes", lambda: cifar([10])),
        ("folder", lambda: cifar(folder=3)),
        ("images", lambda: augment([0.0])),
        ("images", lambda: augment(torch.zeros(3, 32, 32))),
        ("padding", lambda: augment(torch.zeros(2, 3, 8, 8), padding=-1)),
        ("padding", lambda: augment(torch.zeros(2, 3, 8, 8), padding=1.5)),
    ],
    "claims": [
        ("chapter", lambda: Claims("spectral bias", [declare()])),
        ("chapter", lambda: Claims.declared("99_nothing")),
        ("claims", lambda: Claims("00_demo", [])),
        ("claims", lambda: Claims("00_demo", [declare(), declare()])),
        ("id", lambda: declare(id="SB1")),
        ("id", lambda: claims("GS-2", 1.0)),
        ("statement", lambda: declare(statement="two\nlines")),
        ("op", lambda: declare(op="<")),
        ("bound", lambda: declare(bound=NAN)),
        ("bound", lambda: declare(op="in", bound=(2.0, 1.0))),
        ("bound", lambda: declare(op="in", bound=1.0)),
        ("value", lambda: claims("GS-1", [])),
        ("value", lambda: claims("GS-1", None)),
        ("value", lambda: claims("GS-1", "1.0")),
        ("value", lambda: claims("GS-1", torch.zeros(2, 2))),
    ],
    "runtime": [
        ("seed", lambda: runtime.generator(-1)),
        ("seed", lambda: runtime.generator(1.5)),
        ("device", lambda: runtime.generator(0, "nonsense")),
    ],
    "plots": [
        ("n", lambda: plots.sequential(0)),
        ("n", lambda: plots.sequential("3")),
        ("titles", lambda: plots.label_panels([None, None], ["one"])),
        ("draw", lambda: plots.play(None)),
        ("moment", lambda: plots.play(lambda moment: None, moment=3)),
    ],
    "training": [
        ("num_steps", lambda: train(num_steps=0)),
        ("num_steps", lambda: train(num_steps=10.0)),
        ("lr", lambda: train(lr=-1e-3)),
        ("lr", lambda: train(lr=NAN)),
        ("schedule", lambda: train(schedule="step")),
        ("data", lambda: train(data=bad_points)),
        ("data", lambda: train(data=[1.0, 2.0])),
        ("batch_size", lambda: train(data=points, batch_size=9)),
        ("ema", lambda: train(ema=1.0)),
        ("parameters", lambda: train(parameters=nn.ReLU())),
        ("loss_fn", lambda: train(loss_fn=lambda: 1.0)),
        ("loss_fn", lambda: train(loss_fn=lambda: net(points))),
        ("loss_fn", lambda: train(loss_fn=lambda: net(points).sum().detach())),
        ("optimizer", lambda: train(optimizer=lambda p: None)),
    ],
    "autodiff": [
        ("x", lambda: autodiff.jacobian(torch.sin, torch.arange(3))),
        ("mode", lambda: autodiff.jacobian(torch.sin, line, mode="both")),
        ("f", lambda: autodiff.log_det_jacobian(lambda x: x[..., :2], line)),
        ("v", lambda: autodiff.jvp(torch.sin, line, line[:3])),
        ("kind", lambda: autodiff.probe_vectors(line, kind="uniform")),
        ("num_probes", lambda: autodiff.probe_vectors(line, num_probes=0)),
    ],
    "alignment": [
        ("network", lambda: alignment.chain_permutations(nn.Linear(1, 1))),
        ("network", lambda: alignment.chain_permutations(nn.Sequential(nn.Softmax(-1)))),
        ("state", lambda: alignment.permute(two_outputs.state_dict() | {"4.bias": line}, order_of_net, {})),
        ("state", lambda: alignment.permute({"0.weight": line}, order_of_net, {})),
        ("state", lambda: alignment.permute(net.state_dict() | {"0.bias": line}, order_of_net, {})),
        ("permutations", lambda: alignment.permute(net.state_dict(), order_of_net, {"0": torch.arange(2)})),
        ("permutations", lambda: alignment.permute(net.state_dict(), order_of_net, {"0": torch.zeros(3).long()})),
        ("permutations", lambda: alignment.permute(net.state_dict(), order_of_net, {"0": knots})),
        ("permutations", lambda: alignment.permute(net.state_dict(), order_of_net, {"0": [2, 1, 0]})),
        ("permutations", lambda: alignment.permute(net.state_dict(), order_of_net, {"2": torch.arange(1)})),
        ("fixed", lambda: alignment.weight_matching(order_of_net, {}, net.state_dict())),
        ("moving", lambda: alignment.weight_matching(order_of_net, net.state_dict(), {"0.bias": knots})),
        ("moving", lambda: alignment.matching_objective(order_of_net, net.state_dict(), on_plane[:1].state_dict())),
        ("spec", lambda: alignment.weight_matching({"w": ("g", "g")}, {"w": matrix}, {"w": matrix})),
        (
            "max_sweeps",
            lambda: alignment.weight_matching(order_of_net, net.state_dict(), net.state_dict(), max_sweeps=0),
        ),
    ],
    "exploration": [
        ("graph", lambda: exploration.suggest(nx.Graph())),
        ("graph", lambda: exploration.suggest(nx.MultiDiGraph())),
        ("graph", lambda: exploration.spanning_tree([[0, 1]])),
        ("graph", lambda: exploration.saddle_matrix(nx.MultiGraph([(0, 1)]))),
        ("graph", lambda: exploration.saddle_matrix(landscape(0.0, 1.0, saddle=None))),
        ("graph", lambda: exploration.saddle_matrix(landscape(0.0, 1.0, saddle=NAN))),
        ("graph", lambda: exploration.saddle_matrix(landscape(0.0, NAN, saddle=1.0))),
        ("graph", lambda: exploration.merge_tree(landscape(0.0, 1.0))),
        ("graph", lambda: exploration.explore([0.0], max, graph="old")),
        ("num_cycles", lambda: exploration.suggest(landscape(0.0, 1.0), num_cycles=0)),
        ("max_runs", lambda: exploration.explore([0.0, 1.0], max, max_runs=0)),
        ("losses", lambda: exploration.explore([], max)),
        ("losses", lambda: exploration.explore([0.0, NAN], max)),
        ("losses", lambda: exploration.explore([0.0], max, graph=landscape(0.0, 1.0))),
        ("losses", lambda: exploration.explore([0.0, 2.0], max, graph=landscape(0.0, 1.0))),
        ("connect", lambda: exploration.explore([0.0, 1.0], 3.0)),
        ("connect", lambda: exploration.explore([0.0, 1.0], lambda i, j: None)),
        ("connect", lambda: exploration.explore([0.0, 1.0], lambda i, j: NAN)),
        ("connect", lambda: exploration.explore([0.0, 1.0], lambda i, j: 0.5)),
    ],
    "hessian": [
        ("x", lambda: hessian.hessian_eigenvalues(torch.sum, points)),
        ("x", lambda: hessian.hessian_eigenvalues(torch.sum, bad_line)),
        ("x", lambda: hessian.hessian_eigenvalues(torch.sum, [1.0])),
        ("num", lambda: hessian.hessian_eigenvalues(torch.sum, line, num=0)),
        ("num", lambda: hessian.hessian_eigenvalues(torch.sum, line, num=9)),
        ("which", lambda: hessian.hessian_eigenvalues(torch.sum, line, which="LM")),
        ("tolerance", lambda: hessian.hessian_eigenvalues(torch.sum, line, tolerance=0)),
        ("max_iterations", lambda: hessian.hessian_eigenvalues(torch.sum, line, max_iterations=0)),
        ("loss", lambda: hessian.hessian_eigenvalues(torch.sin, line)),
        ("loss", lambda: hessian.hessian_eigenvalues(lambda x: x.sqrt().sum(), line)),
        ("direction", lambda: hessian.rayleigh_quotient(torch.sum, line, knots)),
        ("direction", lambda: hessian.rayleigh_quotient(torch.sum, line, line)),
        ("direction", lambda: hessian.rayleigh_quotient(torch.sum, line, far[:8].double())),
        ("loss", lambda: hessian.rayleigh_quotient(torch.sin, line, far[:8])),
    ],
    "bands": [
        ("points", lambda: valley([[0.0, 0.0]])),
        ("points", lambda: valley(torch.zeros(3, 2, dtype=torch.long))),
        ("points", lambda: egg_carton(torch.zeros(2, 3))),
        ("points", lambda: egg_carton(torch.tensor(0.0))),
        ("pivots", lambda: bands.path_length(line)),
        ("pivots", lambda: bands.redistribute(chain[:1])),
        ("pivots", lambda: bands.redistribute(chain + NAN)),
        ("pivots", lambda: bands.redistribute(chain.long())),
        ("weights", lambda: bands.redistribute(chain, torch.ones(3))),
        ("weights", lambda: bands.redistribute(chain, torch.tensor([1.0, 0.0]))),
        ("weights", lambda: bands.redistribute(chain, [0.5, 0.5])),
        ("pivots", lambda: bands.tangents(chain[:2], heights[:2])),
        ("values", lambda: bands.tangents(chain, heights[:2])),
        ("values", lambda: bands.tangents(chain, heights + NAN)),
        ("gradients", lambda: bands.band_gradient(chain, heights, chain[1:])),
        ("spring", lambda: bands.band_gradient(chain, heights, chain, spring=-1.0)),
        ("spring", lambda: bands.band_gradient(chain, heights, chain, spring=NAN)),
        ("loss", lambda: bands.value_and_gradient(lambda p: p.sum(), chain)),
        ("loss", lambda: bands.value_and_gradient(lambda p: p, chain)),
        ("loss", lambda: bands.value_and_gradient(lambda p: 0.0, chain)),
        ("num_between", lambda: bands.between(chain, 0)),
        ("pivots", lambda: bands.between(line, 2)),
        ("pivots", lambda: relax(chain[:2])),
        ("pivots", lambda: relax(chain + NAN)),
        ("num_steps", lambda: relax(num_steps=0)),
        ("lr", lambda: relax(lr=0)),
        ("momentum", lambda: relax(momentum=1.0)),
        ("weight_decay", lambda: relax(weight_decay=-0.1)),
        ("spring", lambda: relax(spring=0)),
        ("weights", lambda: relax(weights=torch.ones(5))),
        ("loss", lambda: relax(loss=lambda p: p.sum())),
        ("batch_size", lambda: relax(batch_size=3)),
    ],
    "auto_neb": [
        ("values", lambda: insert_pivots(chain, even, torch.zeros(6))),
        ("values", lambda: insert_pivots(chain, even, heights)),
        ("values", lambda: insert_pivots(chain, even, torch.zeros(5) + NAN)),
        ("weights", lambda: insert_pivots(chain, torch.ones(3), torch.zeros(5))),
        ("pivots", lambda: insert_pivots(line, even, torch.zeros(5))),
        ("max_insertions", lambda: insert_pivots(chain, even, torch.zeros(5), max_insertions=0)),
        ("threshold", lambda: insert_pivots(chain, even, torch.zeros(5), threshold=-0.1)),
        ("start", lambda: grow(start=chain)),
        ("start", lambda: grow(start=[0.0, 0.0])),
        ("end", lambda: grow(end=torch.zeros(3))),
        ("end", lambda: grow(end=chain[2].double())),
        ("num_pivots", lambda: grow(num_pivots=0)),
        ("num_between", lambda: grow(num_between=0)),
        ("max_insertions", lambda: grow(max_insertions=0.5)),
        ("threshold", lambda: grow(threshold=NAN)),
        ("schedule", lambda: grow(schedule=[])),
        ("schedule", lambda: grow(schedule=[100, 0.1])),
        ("initial", lambda: grow(initial=chain.flip(0))),
        ("initial", lambda: grow(initial=line)),
        ("evaluate", lambda: grow(evaluate=lambda p: p)),
        ("lr", lambda: grow(schedule=[(1, -0.1)])),
    ],
    "curves": [
        ("start", lambda: BezierCurve(chain, chain)),
        ("end", lambda: BezierCurve(chain[0], torch.zeros(3))),
        ("end", lambda: PolygonalChain(chain[0], chain[2] + NAN)),
        ("num_bends", lambda: PolygonalChain(chain[0], chain[2], num_bends=0)),
        ("t", lambda: BezierCurve(chain[0], chain[2])(torch.tensor(0.5))),
        ("t", lambda: PolygonalChain(chain[0], chain[2])(torch.arange(2))),
        ("curve", lambda: bend(curve=net)),
        ("lr", lambda: bend(lr=NAN)),
        ("momentum", lambda: bend(momentum=2)),
        ("weight_decay", lambda: bend(weight_decay="1e-4")),
        ("points_per_step", lambda: bend(points_per_step=0)),
        ("num_steps", lambda: bend(num_steps=0)),
    ],
    "network_loss": [
        ("network", lambda: NetworkLoss(net.forward, nn.functional.mse_loss)),
        ("network", lambda: NetworkLoss(nn.ReLU(), nn.functional.mse_loss)),
        ("network", lambda: NetworkLoss(mlp(1, 1, width=2, depth=2).requires_grad_(False), nn.functional.mse_loss)),
        ("loss_fn", lambda: NetworkLoss(net, "mse")),
        ("chunk_size", lambda: NetworkLoss(net, nn.functional.mse_loss, chunk_size=0)),
        ("state", lambda: image_loss.vector(net)),
        ("state", lambda: image_loss.vector({"0.weight": torch.zeros(2)})),
        ("points", lambda: image_loss(two_nets[0], pictures, classes)),
        ("points", lambda: image_loss(two_nets[:, 1:], pictures, classes)),
        ("points", lambda: image_loss(two_nets.long(), pictures, classes)),
        ("points", lambda: image_loss.batch_norm_statistics(two_nets[0], pictures)),
        ("batch_size", lambda: image_loss.batch_norm_statistics(two_nets, pictures, batch_size=0)),
        ("point", lambda: image_loss.network(two_nets)),
        ("buffers", lambda: image_loss.network(two_nets[0], norms)),
        ("buffers", lambda: image_loss.evaluate(two_nets, pictures, classes)),
        ("buffers", lambda: image_loss.evaluate(two_nets, pictures, classes, {})),
        ("buffers", lambda: image_loss.evaluate(two_nets[:1], pictures, classes, norms)),
        ("buffers", lambda: image_loss.outputs(two_nets, pictures, dict(norms, scale=heights))),
        ("batch_size", lambda: image_loss.evaluate(two_nets, pictures, classes, norms, batch_size=-1)),
    ],
    "metrics": [
        ("x", lambda: metrics.sliced_wasserstein(bad_points, points)),
        ("y", lambda: metrics.sliced_wasserstein(points, torch.zeros(3, 2))),
        ("p", lambda: metrics.sliced_wasserstein(points, points, p=0)),
        ("num_projections", lambda: metrics.sliced_wasserstein(points, points, num_projections=0)),
        ("bandwidth", lambda: metrics.mmd_squared(points, points, bandwidth=-1.0)),
        ("x", lambda: metrics.median_bandwidth(points, points)),
    ],
    "flows.bijection": [
        ("bijections", lambda: zoo.Chain()),
        ("bijections", lambda: zoo.Chain(zoo.Diagonal(2), zoo.Squeeze())),
        ("bijections", lambda: zoo.Chain([zoo.Diagonal(2)])),
        ("bijections", lambda: zoo.Chain(nn.Linear(2, 2))),
        ("bijections", lambda: zoo.Chain(zoo.Planar)),
        ("bijection", lambda: zoo.Inverse(nn.Linear(2, 2))),
        ("dim", lambda: zoo.Diagonal(0)),
        ("dim", lambda: zoo.Diagonal(2.0)),
        ("scale", lambda: zoo.Diagonal(2, scale=0.0)),
        ("scale", lambda: zoo.Diagonal(2, scale=-1.0)),
        ("order", lambda: zoo.Permutation([0, 0, 1])),
        ("order", lambda: zoo.Permutation([1, 2])),
        ("order", lambda: zoo.Permutation([0.0, 1.0])),
        ("order", lambda: zoo.Permutation([])),
        ("order", lambda: zoo.Permutation(3)),
        ("bijection", lambda: zoo.Reshape(zoo.Squeeze(), (1, 8, 8))),
        ("event_shape", lambda: zoo.Reshape(zoo.Diagonal(64), 64)),
        ("event_shape", lambda: zoo.Reshape(zoo.Diagonal(64), (0, 8, 8))),
    ],
    "flows.bases": [
        ("event_shape", lambda: zoo.StandardNormal([0])),
        ("event_shape", lambda: zoo.StandardNormal([2.0])),
        ("event_shape", lambda: zoo.StandardNormal(2)),
        ("event_shape", lambda: zoo.StandardNormal([])),
        ("dim", lambda: zoo.RadialMixture(0)),
        ("num_components", lambda: zoo.RadialMixture(2, 0)),
        ("spread", lambda: zoo.RadialMixture(2, spread=-1)),
        ("df", lambda: zoo.StudentT([2.0, 0.0])),
        ("df", lambda: zoo.StudentT([2.0, NAN])),
        ("df", lambda: zoo.StudentT(2.0)),
        ("df", lambda: zoo.StudentT([[2.0]])),
        ("df", lambda: zoo.StudentT([])),
    ],
    "flows.flow": [
        ("base", lambda: zoo.Flow(zoo.Squeeze(), normal)),
        ("base", lambda: zoo.Flow(zoo.Diagonal(2), torch.distributions.Normal(0, 1))),
        ("bijection", lambda: zoo.Flow(nn.Linear(2, 2), normal)),
        ("x", lambda: flow.log_prob(space)),
        ("x", lambda: flow.log_prob(torch.tensor(0.0))),
        ("x", lambda: flow.log_prob(plane.long())),
        ("x", lambda: flow.log_prob([0.0, 0.0])),
        ("x", lambda: conditional.log_prob(plane.double(), torch.zeros(3))),
        ("x", lambda: of_maf.log_prob(plane.double(), torch.zeros(3).double())),
        ("context", lambda: conditional.log_prob(plane)),
        ("context", lambda: conditional.log_prob(plane, torch.zeros(5, 2))),
        ("context", lambda: conditional.log_prob(plane, torch.zeros(4, 3))),
        ("context", lambda: conditional.log_prob(plane, [0.0, 0.0, 0.0])),
        ("context", lambda: conditional.log_prob(plane, torch.tensor(0.0))),
        ("context", lambda: conditional.log_prob(plane, torch.zeros(5).long())),
        ("context", lambda: of_maf.log_prob(plane)),
        ("context", lambda: of_maf.log_prob(plane, torch.zeros(5, 2))),
        ("context", lambda: of_images.log_prob(pictures)),
        ("context", lambda: of_images.log_prob(pictures, torch.zeros(5, 2))),
        ("context", lambda: of_images.log_prob(pictures, torch.zeros(4, 3))),
        ("context", lambda: conditional.sample([4])),
        ("context", lambda: conditional.sample([4], torch.zeros(2))),
        ("context", lambda: conditional.sample([4], [0.0] * 3)),
        ("shape", lambda: flow.sample(4)),
        ("shape", lambda: flow.sample([-1])),
        ("shape", lambda: flow.sample([4.0])),
        ("context", lambda: conditional.as_distribution([0.0] * 3)),
        ("context", lambda: conditional.as_distribution().log_prob(plane)),
    ],
    "flows.coupling": [
        ("dim", lambda: zoo.Coupling(1, affine)),
        ("dim", lambda: zoo.Coupling(0, affine)),
        ("tau", lambda: zoo.Coupling(2, zoo.AffineMap)),
        ("tau", lambda: zoo.coupling_flow(2, "affine", 2)),
        ("net", lambda: zoo.Coupling(2, affine, nn.Linear(1, 2))),
        ("x", lambda: zoo.Coupling(2, affine)(space)),
        ("z", lambda: zoo.Coupling(2, affine).inverse(space)),
        ("num_layers", lambda: zoo.coupling_flow(2, affine, 0)),
        ("dim", lambda: zoo.coupling_flow(1, affine, 2)),
        ("width", lambda: zoo.coupling_flow(2, affine, 2, width=0)),
        ("depth", lambda: zoo.coupling_flow(2, affine, 2, depth=0)),
        ("mix", lambda: zoo.coupling_flow(2, affine, 2, mix=zoo.Rotation(2))),
        ("num_layers", lambda: zoo.nice(2, 0)),
        ("bound", lambda: zoo.AffineMap(0)),
        ("bound", lambda: zoo.GINMap(bound=-1)),
        ("bound", lambda: zoo.AffineMap(NAN)),
        ("gate", lambda: zoo.AffineMap(gate="softplus")),
        ("bins", lambda: zoo.SplineMap(0)),
        ("bound", lambda: zoo.SplineMap(8, -1)),
        ("smallest", lambda: zoo.SplineMap(8, smallest=0.2)),
        ("smallest", lambda: zoo.SplineMap(8, smallest=0)),
        ("dim_in", lambda: zoo.Conditioner(0, 2)),
        ("dim_out", lambda: zoo.Conditioner(1, 0)),
        ("width", lambda: zoo.Conditioner(1, 2, width=0)),
        ("depth", lambda: zoo.Conditioner(1, 2, depth=0)),
        ("context", lambda: zoo.Conditioner(1, 2, dim_context=2)(plane[:, :1])),
        ("num_points", lambda: zoo.KernelConditioner(1, 2, num_points=0)),
        ("length", lambda: zoo.KernelConditioner(1, 2, length=-1.0)),
        ("length", lambda: zoo.KernelConditioner(1, 2, length=0.0)),
        ("dim_in", lambda: zoo.KernelConditioner(0, 2)),
        ("context", lambda: zoo.KernelConditioner(1, 2, dim_context=2)(plane[:, :1])),
        ("dim", lambda: zoo.NanoFlow(3, 2, affine)),
        ("depth", lambda: zoo.NanoFlow(2, 2, affine, depth=1)),
        ("mode", lambda: zoo.NanoFlow(2, 2, affine, "shared")),
        ("num_layers", lambda: zoo.NanoFlow(2, 0, affine)),
        ("dim_embedding", lambda: zoo.NanoFlow(2, 2, affine, dim_embedding=0)),
        ("context", lambda: zoo.NanoFlow(2, 2, affine, dim_context=1)(plane)),
    ],
    "flows.autoregressive": [
        ("order", lambda: zoo.MADE(2, 1, order=[1, 2])),
        ("num_params", lambda: zoo.MADE(2, 0)),
        ("dim", lambda: zoo.MADE(0, 1)),
        ("width", lambda: zoo.MADE(2, 1, width=0)),
        ("depth", lambda: zoo.MADE(2, 1, depth=0)),
        ("context", lambda: zoo.MADE(2, 1, dim_context=1)(plane)),
        ("tau", lambda: zoo.MaskedAutoregressive(2, zoo.GINMap())),
        ("tau", lambda: zoo.MaskedAutoregressive(2, zoo.AffineMap)),
        ("x", lambda: zoo.MaskedAutoregressive(2, affine)(space)),
        ("num_layers", lambda: zoo.maf(2, 0)),
        ("dim", lambda: zoo.maf(0, 1)),
        ("num_layers", lambda: zoo.iaf(2, 0)),
        ("width", lambda: zoo.maf(2, 2, width=0)),
    ],
    "flows.linear": [
        ("dim", lambda: zoo.ActNorm(0)),
        ("event_ndim", lambda: zoo.ActNorm(2, 0)),
        ("x", lambda: zoo.ActNorm(2)(space)),
        ("dim", lambda: zoo.InvertibleLinear(0)),
        ("event_ndim", lambda: zoo.InvertibleLinear(2, 0)),
        ("x", lambda: zoo.InvertibleLinear(2)(space)),
        ("dim", lambda: zoo.Rotation(0)),
        ("matrix", lambda: zoo.Rotation(2, matrix=torch.eye(3))),
        ("matrix", lambda: zoo.Rotation(2, matrix=2 * torch.eye(2))),
        ("matrix", lambda: zoo.Rotation(2, matrix=[[1.0, 0.0], [0.0, 1.0]])),
        ("x", lambda: zoo.Rotation(2)(space)),
        ("dim", lambda: zoo.random_rotation(0)),
        ("dim", lambda: zoo.random_rotation(-1)),
        ("dim_light", lambda: zoo.BlockTriangularLinear(0, 1)),
        ("dim_heavy", lambda: zoo.BlockTriangularLinear(1, 0)),
        ("x", lambda: zoo.BlockTriangularLinear(1, 1)(space)),
        ("dim", lambda: zoo.Planar(0)),
        ("dim", lambda: zoo.Radial(1.5)),
        ("x", lambda: zoo.Planar(2)(space)),
        ("x", lambda: zoo.Radial(2)(space)),
    ],
    "flows.images": [
        ("x", lambda: zoo.Squeeze()(torch.zeros(1, 1, 3, 3))),
        ("x", lambda: zoo.Squeeze()(torch.zeros(4))),
        ("size", lambda: zoo.glow(1, 6)),
        ("channels", lambda: zoo.glow(0, 8)),
        ("num_scales", lambda: zoo.glow(1, 8, num_scales=0)),
        ("num_steps", lambda: zoo.glow(1, 8, num_steps=0)),
        ("width", lambda: zoo.glow(1, 8, width=0)),
        ("tau", lambda: zoo.glow(1, 8, tau="affine")),
        ("size", lambda: zoo.realnvp_image(1, 6)),
        ("num_steps", lambda: zoo.realnvp_image(1, 8, num_steps=0)),
        ("x", lambda: zoo.glow(1, 8)(torch.zeros(2, 3, 8, 8))),
        ("x", lambda: zoo.glow(1, 8)(torch.zeros(2, 64))),
        ("scale", lambda: zoo.MultiScale(nn.Conv2d(4, 4, 1))),
        ("rest", lambda: zoo.MultiScale(zoo.ActNorm(4, 3), nn.Conv2d(2, 2, 1))),
        ("channels_in", lambda: zoo.ConvConditioner(0, 1)),
        ("width", lambda: zoo.ConvConditioner(1, 1, width=0)),
        ("context", lambda: zoo.ConvConditioner(1, 1, dim_context=1)(pictures)),
        ("across", lambda: zoo.Mixing(zoo.Diagonal(4), 2, "pixels")),
        ("patch", lambda: zoo.Mixing(zoo.Diagonal(4), 0)),
        ("x", lambda: zoo.Mixing(zoo.Diagonal(4), 2)(torch.zeros(1, 1, 3, 3))),
        ("size", lambda: zoo.mixer_flow(1, 8, 3, 1)),
        ("size", lambda: zoo.mixer_flow(1, 8, 8, 1)),
        ("num_layers", lambda: zoo.mixer_flow(1, 8, 2, 0)),
        ("patch", lambda: zoo.mixer_flow(1, 8, 0, 1)),
        ("alpha", lambda: zoo.Logit(0.5)),
        ("alpha", lambda: zoo.Logit(0)),
        ("levels", lambda: zoo.dequantise(torch.zeros(2), 0)),
        ("x", lambda: zoo.dequantise(torch.rand(2), 17)),
        ("x", lambda: zoo.dequantise(torch.tensor([17]), 17)),
        ("x", lambda: zoo.dequantise(torch.tensor([-1]), 17)),
        ("x", lambda: zoo.dequantise(torch.tensor([NAN]), 17)),
        ("x", lambda: zoo.dequantise([1, 2], 17)),
        ("dims", lambda: zoo.bits_per_dim(torch.zeros(2), 0, 17)),
        ("levels", lambda: zoo.bits_per_dim(torch.zeros(2), 64, 0)),
        ("dims", lambda: zoo.bits_per_dim(torch.zeros(2), (1, 8, 8), 17)),
        ("num_heads", lambda: zoo.tarflow((1, 8, 8), width=30)),
        ("patch", lambda: zoo.tarflow((1, 8, 8), 3)),
        ("patch", lambda: zoo.tarflow((1, 8, 8), 0)),
        ("num_blocks", lambda: zoo.tarflow((1, 8, 8), 2, 0)),
        ("event_shape", lambda: zoo.tarflow((8, 8))),
        ("event_shape", lambda: zoo.tarflow(64)),
        ("tau", lambda: zoo.tarflow((1, 8, 8), tau=zoo.GINMap())),
        ("tau", lambda: zoo.tarflow((1, 8, 8), tau="affine")),
        ("num_layers", lambda: zoo.tarflow((1, 8, 8), num_layers=0)),
        ("context", lambda: zoo.tarflow((1, 8, 8), dim_context=3)(pictures)),
        ("context", lambda: zoo.tarflow((1, 8, 8), dim_context=3)(pictures, torch.zeros(5, 2))),
        ("x", lambda: zoo.tarflow((1, 8, 8))(torch.zeros(2, 1, 4, 4))),
        ("x", lambda: zoo.tarflow((1, 8, 8))(torch.zeros(2, 3, 8, 8))),
        ("num_tokens", lambda: zoo.TarBlock(0, 1, affine)),
        ("dim", lambda: zoo.TarBlock(1, 0, affine)),
        ("tau", lambda: zoo.TarBlock(1, 1, zoo.GINMap())),
        ("size", lambda: zoo.Patches(zoo.TarBlock(4, 4, affine), (1, 8, 8), 3)),
        ("size", lambda: zoo.Patches(zoo.TarBlock(4, 4, affine), (1, 8, 8), 0)),
        ("event_shape", lambda: zoo.Patches(zoo.TarBlock(4, 4, affine), (8, 8), 2)),
        ("sigma", lambda: zoo.tweedie(flow, plane, -1.0)),
        ("sigma", lambda: zoo.tweedie(flow, plane, NAN)),
        ("x", lambda: zoo.tweedie(flow, space, 1.0)),
    ],
    "flows.residual": [
        ("lipschitz", lambda: zoo.Residual(2, lipschitz=1.0)),
        ("lipschitz", lambda: zoo.Residual(2, lipschitz=NAN)),
        ("method", lambda: zoo.Residual(2, method="trace")),
        ("num_terms", lambda: zoo.Residual(2, method="series", num_terms=0)),
        ("num_exact", lambda: zoo.Residual(2, method="roulette", num_exact=2)),
        ("num_probes", lambda: zoo.Residual(2, method="series", num_probes=0)),
        ("tail", lambda: zoo.Residual(2, method="roulette", tail="uniform")),
        ("rate", lambda: zoo.Residual(2, method="roulette", rate=0)),
        ("dim", lambda: zoo.Residual(0)),
        ("width", lambda: zoo.Residual(2, width=0)),
        ("depth", lambda: zoo.Residual(2, depth=0)),
        ("num_iterations", lambda: zoo.Residual(2, num_iterations=0)),
        ("max_iterations", lambda: zoo.Residual(2, max_iterations=0)),
        ("context", lambda: zoo.Residual(2, dim_context=1)(plane)),
        ("x", lambda: zoo.Residual(2)(space)),
        ("num_layers", lambda: zoo.residual_flow(2, 0)),
        ("lipschitz", lambda: zoo.residual_flow(2, 1, lipschitz=2)),
        ("dim", lambda: zoo.residual_flow(0, 1)),
        ("lipschitz", lambda: zoo.LipschitzLinear(2, 2, 0)),
        ("num_iterations", lambda: zoo.LipschitzLinear(2, 2, 0.9, 0)),
        ("dim_in", lambda: zoo.LipschitzLinear(0, 2, 0.9)),
        ("tail", lambda: zoo.roulette_weights(2, "uniform")),
        ("rate", lambda: zoo.roulette_weights(2, rate=1.0)),
        ("rate", lambda: zoo.roulette_weights(2, rate=0)),
        ("rate", lambda: zoo.roulette_weights(2, rate=NAN)),
        ("rate", lambda: zoo.roulette_weights(2, "poisson", rate=-1)),
        ("num_exact", lambda: zoo.roulette_weights(-1)),
        ("num_exact", lambda: zoo.roulette_weights(1.5)),
    ],
    "flows.continuous": [
        ("dim", lambda: zoo.Continuous(0)),
        ("num_steps", lambda: zoo.Continuous(2, num_steps=0)),
        ("tolerance", lambda: zoo.Continuous(2, tolerance=0)),
        ("trace", lambda: zoo.Continuous(2, trace="hutch")),
        ("velocity", lambda: zoo.Continuous(2, "field")),
        ("velocity", lambda: zoo.Continuous(2, lambda t, x, c: x[..., :1])(plane)),
        ("velocity", lambda: zoo.Continuous(2, zoo.Velocity(2), width=3)),
        ("width", lambda: zoo.Continuous(2, width=0)),
        ("context", lambda: zoo.Continuous(2, dim_context=1)(plane)),
        ("x", lambda: zoo.Continuous(2)(space)),
    ],
    "flows.stochastic": [
        ("step", lambda: kernel(step=0)),
        ("step", lambda: kernel(zoo.Langevin, step=NAN)),
        ("num_steps", lambda: kernel(num_steps=0)),
        ("num_leapfrog", lambda: kernel(zoo.HMC, num_leapfrog=0)),
        ("energy", lambda: kernel(energy=3.0)),
        ("energy", lambda: kernel(energy=torch.sum)(plane)),
        ("energy", lambda: kernel(zoo.Langevin, energy=lambda x: x)(plane)),
        ("energy", lambda: kernel(zoo.Langevin, energy=torch.sum)(plane)),
        ("energy", lambda: kernel(zoo.HMC, energy=lambda x: x[..., :1])(plane)),
        ("layers", lambda: paths([nn.Linear(2, 2)])),
        ("layers", lambda: zoo.StochasticFlow(zoo.Diagonal(2), normal, bowl)),
        ("base", lambda: paths(base=torch.distributions.Normal(0, 1))),
        ("energy", lambda: paths(energy=None)),
        ("energy", lambda: paths(energy=torch.sum).sample([4])),
        ("energy", lambda: paths(energy=lambda x: x).sample([4])),
        ("x", lambda: paths([zoo.Diagonal(2)]).log_weight(space)),
        ("log_w", lambda: zoo.effective_sample_size(plane)),
        ("log_w", lambda: zoo.effective_sample_size(torch.zeros(0))),
        ("log_w", lambda: zoo.effective_sample_size([0.0])),
        ("log_w", lambda: zoo.log_mean_weight(plane)),
        ("log_w", lambda: zoo.log_mean_weight(torch.zeros(0))),
        ("log_w", lambda: zoo.log_mean_weight(torch.tensor(0.0))),
    ],
    "flows.tails": [
        ("k", lambda: zoo.hill_index(torch.rand(9), 9)),
        ("k", lambda: zoo.hill_index(torch.rand(9), 0)),
        ("k", lambda: zoo.hill_index(torch.rand(9), 2.5)),
        ("x", lambda: zoo.hill_index([1.0, 2.0], 1)),
        ("x", lambda: zoo.hill_index(torch.tensor(1.0), 1)),
        ("x", lambda: zoo.hill_index(torch.full((9,), NAN), 2)),
        ("x", lambda: zoo.hill_index(torch.arange(9), 2)),
        ("x", lambda: zoo.tail_index(torch.rand(9))),
        ("share", lambda: zoo.tail_index(torch.rand(9, 2))),
        ("share", lambda: zoo.tail_index(torch.rand(9, 2), 1.0)),
        ("share", lambda: zoo.tail_index(torch.rand(9, 2), -0.1)),
        ("share", lambda: zoo.tail_index(torch.rand(9, 2), NAN)),
        ("tails", lambda: zoo.tail_adaptive_flow([0.0, 2.0])),
        ("tails", lambda: zoo.tail_adaptive_flow([NAN, 2.0])),
        ("tails", lambda: zoo.tail_adaptive_flow([])),
        ("tails", lambda: zoo.tail_adaptive_flow(2.0)),
        ("tails", lambda: zoo.tail_adaptive_flow(torch.zeros(2, 2, 2))),
        ("num_layers", lambda: zoo.tail_adaptive_flow([2.0], 0)),
        ("tau", lambda: zoo.tail_adaptive_flow([2.0, 2.0], tau=zoo.GINMap())),
        ("n", lambda: zoo.sample_heavy_copula(0)),
        ("num_heavy", lambda: zoo.sample_heavy_copula(9, 9)),
        ("num_heavy", lambda: zoo.sample_heavy_copula(9, -1)),
        ("df", lambda: zoo.sample_heavy_copula(9, df=0)),
        ("df", lambda: zoo.sample_heavy_copula(9, df=NAN)),
        ("dim", lambda: zoo.sample_heavy_copula(9, dim=0)),
    ],
    "toy": [
        ("means", lambda: GaussianMixture([1.0], 1.0)),
        ("means", lambda: GaussianMixture([[1]], 1.0)),
        ("means", lambda: GaussianMixture(torch.zeros(0, 2), 1.0)),
        ("means", lambda: GaussianMixture([[NAN]], 1.0)),
        ("std", lambda: GaussianMixture([[1.0]], 0.0)),
        ("std", lambda: GaussianMixture([[1.0]], NAN)),
        ("std", lambda: GaussianMixture([[1.0], [2.0]], [1.0, 1.0, 1.0])),
        ("std", lambda: GaussianMixture([[1.0]], math.inf)),
        ("weights", lambda: GaussianMixture([[1.0], [2.0]], 1.0, [1.0, -1.0])),
        ("weights", lambda: GaussianMixture([[1.0], [2.0]], 1.0, [1.0])),
        ("weights", lambda: GaussianMixture([[1.0], [2.0]], 1.0, [1.0, math.inf])),
        ("x", lambda: moons().log_prob(space)),
        ("x", lambda: moons().log_prob(torch.zeros(5, 1))),
        ("x", lambda: moons().log_prob([[0.0, 0.0]])),
        ("x", lambda: moons().log_prob(torch.tensor(0.0))),
        ("n", lambda: moons().sample(0)),
        ("n", lambda: moons().sample([3])),
        ("n", lambda: moons().sample(2.5)),
        ("noise", lambda: moons(0)),
        ("points", lambda: moons(points=0)),
        ("modes", lambda: ring(0)),
        ("radius", lambda: ring(radius=-1)),
        ("std", lambda: ring(std=0)),
        ("std", lambda: ring(std=NAN)),
    ],
    "flows.universality": [
        ("cell", lambda: zoo.height_profile(flat, 0)),
        ("log_p", lambda: zoo.height_profile(flat + NAN, 1.0)),
        ("log_p", lambda: zoo.height_profile([0.0, 1.0], 1.0)),
        ("log_p", lambda: zoo.height_profile(torch.zeros(0), 1.0)),
        ("dim", lambda: zoo.best_volume_preserving(flat, 1.0, dim=0)),
        ("volume", lambda: zoo.gaussian_profile(-torch.ones(2), 1.0, 2)),
        ("volume", lambda: zoo.gaussian_profile([1.0], 1.0, 2)),
        ("passive", lambda: zoo.conditional_moments(normals, normals, 2)),
        ("passive", lambda: zoo.conditional_moments(normals[:, 0] + NAN, normals, 2)),
        ("active", lambda: zoo.conditional_moments(normals[:, 0], normals[:-1], 2)),
        ("active", lambda: zoo.conditional_moments(normals[:, 0], normals[:, 1], 2)),
        ("cell", lambda: zoo.best_volume_preserving(flat, NAN)),
        ("log_p", lambda: zoo.best_volume_preserving(flat + NAN, 1.0)),
        ("jacobian", lambda: zoo.gaussian_profile(torch.ones(2), 0.0, 2)),
        ("dim", lambda: zoo.gaussian_profile(torch.ones(2), 1.0, 0)),
        ("variances", lambda: zoo.separated_modes_gap([1.0, -1.0])),
        ("variances", lambda: zoo.separated_modes_gap([])),
        ("weights", lambda: zoo.separated_modes_gap([1.0, 2.0], [1.0])),
        ("weights", lambda: zoo.separated_modes_gap([1.0, 2.0], [1.0, -1.0])),
        ("num_bins", lambda: zoo.conditional_moments(normals[:, 0], normals[:, 1:], 0)),
        ("num_bins", lambda: zoo.conditional_moments(normals[:, 0], normals[:, 1:], 99)),
    ],
    "flows.whitening": [
        ("covariance", lambda: zoo.nonstandardness(identity[:2])),
        ("covariance", lambda: zoo.nonstandardness(identity + NAN)),
        ("covariance", lambda: zoo.nonstandardness(-identity)),
        ("covariance", lambda: zoo.nonstandardness(lopsided)),
        ("covariance", lambda: zoo.whiten(lopsided, 1)),
        ("covariance", lambda: zoo.whitening_block(-identity, 1)),
        ("eigenvalues", lambda: zoo.var_max_bound(torch.tensor([-1.0, 3.0]))),
        ("eigenvalues", lambda: zoo.unitary_bound(torch.tensor([-1.0, 3.0]))),
        ("eigenvalues", lambda: zoo.unitary_bound(identity)),
        ("covariance", lambda: zoo.whiten(identity[:2], 1)),
        ("covariance", lambda: zoo.whiten(identity + NAN, 1)),
        ("covariance", lambda: zoo.whiten([[1.0]], 1)),
        ("covariance", lambda: zoo.whitening_block(identity[0], 1)),
        ("active", lambda: zoo.whitening_block(identity, 0)),
        ("active", lambda: zoo.whitening_block(identity, 3)),
        ("num_blocks", lambda: zoo.whiten(identity, 0)),
        ("active", lambda: zoo.whiten(identity, 1, active=3)),
        ("active", lambda: zoo.whitening_ratio(3, 3)),
        ("eigenvalues", lambda: zoo.var_max_bound(torch.tensor([1.0, 2.0]))),
        ("active", lambda: zoo.var_max_bound(torch.ones(3), 3)),
        ("loss", lambda: zoo.loss_only_bound(-1.0, 3)),
        ("eigenvalues", lambda: zoo.unitary_bound(torch.tensor([1.0, 2.0]))),
        ("active", lambda: zoo.unitary_bound(torch.ones(3), 3)),
    ],
    "flows.layerwise": [
        ("step", lambda: zoo.fit_affine_block(normals, step=0)),
        ("step", lambda: zoo.fit_affine_block(normals, step=2)),
        ("num_bins", lambda: zoo.fit_affine_block(normals, num_bins=0)),
        ("num_bins", lambda: zoo.fit_affine_block(normals, num_bins=64)),
        ("num_rotations", lambda: zoo.fit_affine_block(normals, num_rotations=0)),
        ("num_layers", lambda: zoo.fit_affine_layers(normals, 0)),
        ("x", lambda: zoo.fit_affine_block(normals + NAN)),
        ("x", lambda: zoo.fit_affine_block(normals[:, 0])),
        ("x", lambda: zoo.fit_affine_block(normals[:, :1])),
        ("x", lambda: zoo.fit_affine_block(torch.ones(64, 2), num_bins=4)),
        ("num_bins", lambda: zoo.fit_affine_block(normals, num_bins=1)),
        ("step", lambda: zoo.fit_affine_block(normals, step="a")),
        ("x", lambda: zoo.fit_affine_layers(torch.randn(64, 3), 1, num_bins=4)(torch.zeros(5, 2))),
        (
            "rotation",
            lambda: zoo.BinnedCoupling(2 * identity, torch.tensor([0.0, 1.0]), torch.ones(2, 2), torch.zeros(2, 2)),
        ),
        ("position", lambda: zoo.BinnedCoupling(identity, [0.0, 1.0], torch.ones(2, 2), torch.zeros(2, 2))),
        (
            "position",
            lambda: zoo.BinnedCoupling(identity, torch.tensor([1.0, 0.0]), torch.ones(2, 2), torch.zeros(2, 2)),
        ),
        ("scale", lambda: zoo.BinnedCoupling(identity, torch.tensor([0.0, 1.0]), -torch.ones(2, 2), torch.zeros(2, 2))),
        ("shift", lambda: zoo.BinnedCoupling(identity, torch.tensor([0.0, 1.0]), torch.ones(2, 2), torch.zeros(2, 3))),
    ],
    "flows.gaussianization": [
        ("x", lambda: zoo.gaussianize(normals[:, 0], 1)),
        ("x", lambda: zoo.gaussianize(normals + NAN, 1)),
        ("x", lambda: zoo.gaussianize(normals.long(), 1)),
        ("x", lambda: zoo.gaussianize([[0.0]], 1)),
        ("num_layers", lambda: zoo.gaussianize(normals, 0)),
        ("rotation", lambda: zoo.gaussianize(normals, 1, rotation="haar")),
        ("held_out", lambda: zoo.gaussianize(normals, 1, held_out=normals[:, :2])),
        ("held_out", lambda: zoo.gaussianize(normals, 1, held_out=normals.double())),
        ("dim", lambda: zoo.MarginalGaussianization(0)),
        ("bins", lambda: zoo.MarginalGaussianization(2, 0)),
        ("x", lambda: zoo.MarginalGaussianization(2).fit(normals)),
        ("x", lambda: zoo.MarginalGaussianization(1).fit(normals[:, 0])),
        ("x", lambda: zoo.MarginalGaussianization(3).fit(normals + NAN)),
        ("x", lambda: zoo.MarginalGaussianization(3).fit(normals[:1])),
        ("x", lambda: zoo.MarginalGaussianization(2)(torch.zeros(4, 3))),
        ("x", lambda: zoo.MarginalGaussianization(2)(torch.full((4, 2), NAN))),
        ("z", lambda: zoo.MarginalGaussianization(2).inverse(torch.zeros(4))),
        ("z", lambda: zoo.MarginalGaussianization(2).inverse(torch.full((4, 2), NAN))),
        ("tail", lambda: zoo.MarginalGaussianization(3).fit(normals, tail=-1)),
        ("tail", lambda: zoo.MarginalGaussianization(3).fit(normals, tail=NAN)),
        ("prior", lambda: zoo.MarginalGaussianization(3).fit(normals, prior=-1)),
        ("x", lambda: zoo.gaussianize(torch.ones(9, 2), 1)),
        ("rotation", lambda: zoo.gaussianize(normals, 1, rotation=None)),
        ("x", lambda: gaussian_rotations.pca_rotation(normals + NAN)),
        ("x", lambda: gaussian_rotations.ica_rotation(normals[0])),
        ("x", lambda: gaussian_rotations.sliced_rotation(normals + NAN)),
        ("factor", lambda: gaussian_recursion.expected_layers(8, 0.5)),
        ("batch", lambda: gaussian_recursion.haar(3, -1)),
        ("sigma", lambda: gaussian_recursion.gain_bounds(2 * identity)),
        ("sigma", lambda: gaussian_recursion.gain_bounds(identity[:2])),
        ("sigma", lambda: gaussian_recursion.loss_curve(torch.ones(3, 3))),
        ("to", lambda: gaussian_recursion.loss_curve(identity, to=0)),
        ("sigma", lambda: gaussian_recursion.best_scales(torch.ones(3, 3), identity[None])),
        ("rotations", lambda: gaussian_recursion.best_scales(identity, identity)),
        ("rotations", lambda: gaussian_recursion.best_scales(identity, 2 * identity[None])),
        ("share", lambda: gaussian_recursion.layers_to(torch.ones(3), 0)),
        ("losses", lambda: gaussian_recursion.layers_to(torch.ones(3) + NAN, 0.5)),
        ("losses", lambda: gaussian_recursion.layers_to([1.0, 0.5], 0.5)),
        ("sigma", lambda: gaussian_recursion.correlation(identity[:2])),
        ("sigma", lambda: gaussian_recursion.correlation(identity + NAN)),
        ("sigma", lambda: gaussian_recursion.correlation(-identity)),
        ("dim", lambda: gaussian_recursion.haar(0)),
        ("factor", lambda: gaussian_recursion.expected_layers(3, 0)),
    ],
}
ROWS = [(module, i, name, call) for module, rows in CALLS.items() for i, (name, call) in enumerate(rows)]


@pytest.fixture(autouse=True)
def no_type_checks(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("name", "call"), [row[2:] for row in ROWS], ids=[f"{m}-{i}-{n}" for m, i, n, _ in ROWS])
def test_malformed_calls_name_the_argument(name, call):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert re.match(rf"{name}\b", message) or re.search(rf"(^|, ){name}(:| must| returned| holds|=)", message), message


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("REFIMPL_SIZE", "medium", runtime.size_name),
        ("REFIMPL_SEED", "-1", runtime.seed),
        ("REFIMPL_SEED", "one", runtime.seed),
        ("REFIMPL_DEVICE", "gpu", runtime.device),
        ("REFIMPL_DEVICE", "cuda:99", runtime.device),
    ],
)
def test_malformed_environment_names_the_variable(monkeypatch, variable, value, read):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"^{variable}: "):
        read()


def test_correct_calls_next_to_them_pass():
    """The fixtures of this file are sound, so that the calls above fail for the reason that they name."""
    sb.perturbation_robustness(net, z[:, None], [1], [1.0], num_draws=1)
    sb.learning_order(torch.rand(5, 2), [1, 2])
    sb.linearized_residual(matrix, line, lr=0.1, steps=[1])
    polytopes.polygon_transform(square, wave)
    polytopes.shallow_relu_transform(knots + 1, knots, knots, far)
    polytopes.decay_exponent(far, far)
    Stack([net, net]).network(1, mlp(1, 1, width=3, depth=2))
    alignment.permute(net.state_dict(), order_of_net, {"0": torch.tensor([2, 0, 1])})
    exploration.explore([0.0, 1.0], max, graph=landscape(0.0, 1.0, saddle=1.0))
    relax()
    grow(initial=chain)
    bend()
    insert_pivots(chain, even, torch.zeros(5))
    image_loss.evaluate(two_nets, pictures, classes, norms)
    hessian.rayleigh_quotient(torch.sum, line, far[:8])
    radial_noise(points, 1.0, reference=torch.rand(9, 1))
    assert declare().holds(1.0)
    plots.play(lambda moment: None, moment=SimpleNamespace(value=1))
    train(data=points, batch_size=8, loss_fn=lambda x: net(x).square().mean())
    for each in (conditional, of_maf):
        each.log_prob(plane, torch.zeros(5, 3))
        each.sample([4], torch.zeros(3))
    of_images.log_prob(pictures, torch.zeros(3))
    paths([zoo.Diagonal(2), kernel(), kernel(zoo.Langevin), kernel(zoo.HMC)]).sample([4])
    zoo.tarflow((1, 8, 8), dim_context=3)(pictures, torch.zeros(5, 3))
    zoo.BinnedCoupling(identity, torch.tensor([0.0, 1.0]), torch.ones(2, 2), torch.zeros(2, 2))
    zoo.fit_affine_block(normals, num_bins=4)
    zoo.gaussianize(normals, 1, held_out=normals)
    moons().log_prob(plane)
