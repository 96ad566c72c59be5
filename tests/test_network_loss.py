"""Losses of stacked parameter vectors against a plain loop over copies of the network."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from refimpl import runtime
from refimpl.landscape import NetworkLoss, between, value_and_gradient
from refimpl.nets import FourierFeatures, Stack, cnn, mlp, resnet

F64 = torch.float64


class Shared(nn.Module):
    """One matrix used twice, and a parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.one, self.scale = nn.Linear(6, 6), nn.Parameter(torch.tensor(0.7))
        self.two, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.two.weight = self.one.weight
        self.state = "a name of its own"

    def forward(self, x):
        return self.out(torch.tanh(self.two(torch.tanh(self.scale * self.one(x.flatten(1)[:, :6])))))


def frozen():
    net = nn.Sequential(nn.Flatten(), *mlp(128, 3, width=5, depth=3))
    net[1].requires_grad_(False)
    net[5].bias.requires_grad_(False)
    return net


def fourier():
    first = FourierFeatures(128, 4, sigma=0.1, generator=runtime.generator(0))
    return nn.Sequential(nn.Flatten(), first, *mlp(8, 3, width=5, depth=2))


def dropout():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(128, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.ReLU(), nn.Linear(7, 3)
    )


NETS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), *mlp(128, 3, width=5, depth=3)),
    "frozen": frozen,
    "fourier features": fourier,
    "shared": Shared,
    "dropout": dropout,
    "norm without statistics": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)
    ),
    "cnn": lambda: cnn(2, 3, channels=[3, 4], hidden=5, image_size=8),
    "resnet": lambda: resnet(8, in_channels=2, num_classes=3, width=2),
}
NORMED = ["dropout", "cnn", "resnet"]
POINTS = 4


@pytest.fixture(params=NETS)
def name(request):
    return request.param


def problem(name):
    """The network in training mode, its loss, random points near it, inputs and labels."""
    torch.manual_seed(0)
    net = NETS[name]().double()
    loss = NetworkLoss(net, F.cross_entropy)
    points = loss.vector(net) + 0.1 * torch.randn(POINTS, loss.dim, dtype=F64)
    return net, loss, points, torch.randn(20, 2, 8, 8, dtype=F64), torch.randint(3, (20,))


def trainable(net):
    return [p for p in net.parameters() if p.requires_grad]


def at(net, point, train_norms=False):
    """A copy with these parameters, put there by torch's own function; dropout is off."""
    net = copy.deepcopy(net).eval()
    vector_to_parameters(point, trainable(net))
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.train(train_norms)
    return net


def state(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def close(a, b, **options):
    torch.testing.assert_close(a, b, **{"atol": 1e-10, "rtol": 1e-8, **options})


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_values_and_gradients_are_those_of_a_loop(name, chunk_size):
    net, loss, points, x, y = problem(name)
    before, loss.chunk_size = state(net), chunk_size
    values, gradients = value_and_gradient(loss, points, x, y)
    points.requires_grad_()
    whole = loss(points, x, y)
    close(torch.autograd.grad(whole.sum(), points)[0], gradients)
    for i in range(POINTS):
        one = at(net, points[i], train_norms=True)
        value = F.cross_entropy(one(x), y)
        close(values[i], value.detach())
        close(gradients[i], parameters_to_vector(torch.autograd.grad(value, trainable(one))))
    assert net.training and before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_vector_and_network_are_inverse(name):
    net, loss, points, x, y = problem(name)
    assert loss.dim == sum(p.numel() for p in trainable(net))
    assert torch.equal(loss.vector(net), parameters_to_vector(trainable(net)).detach())
    loss(points, x, y)  # norms are in training mode here, which must not reach the copies
    loss.batch_norm_statistics(points, x)
    loss.network(points[1])
    copied, twin = loss.network(points[0]), at(net, points[0])
    assert not any(module.training for module in copied.modules())
    assert torch.equal(loss.vector(copied), points[0])
    for key, value in twin.state_dict().items():
        assert torch.equal(copied.state_dict()[key], value)
    assert [getattr(m, "momentum", 0) for m in copied.modules()] == [getattr(m, "momentum", 0) for m in net.modules()]
    close(copied(x), twin(x))
    assert torch.equal(loss.vector(loss.state(points)), points)
    assert all(value.shape[:1] == (POINTS,) for value in loss.state(points).values())


def test_stacked_networks_are_stacked_vectors():
    networks = [NETS["cnn"]() for _ in range(3)]
    loss = NetworkLoss(networks[0], F.cross_entropy)
    assert torch.equal(loss.vector(Stack(networks)), torch.stack([loss.vector(net) for net in networks]))


def test_evaluation_in_batches_is_that_of_a_loop(name):
    net, loss, points, x, y = problem(name)
    buffers = loss.batch_norm_statistics(points, x)
    found = loss.evaluate(points, x, y, buffers, batch_size=20 if name == "norm without statistics" else 7)
    for i in range(POINTS):
        one = loss.network(points[i], {key: value[i] for key, value in buffers.items()})
        output = one(x) if name != "norm without statistics" else at(net, points[i], train_norms=True)(x)
        close(found["loss"][i], F.cross_entropy(output, y).detach())
        close(found["error"][i], (output.argmax(1) != y).double().mean(), atol=1e-6)
    assert not found["loss"].requires_grad


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("name", NORMED)
def test_statistics_are_those_of_cumulative_averages(name, batch_size, chunk_size):
    net, loss, points, x, _ = problem(name)
    loss.chunk_size = chunk_size
    buffers = loss.batch_norm_statistics(points, x, batch_size)
    for i in range(POINTS):
        one = at(net, points[i], train_norms=True)
        for module in one.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
                module.momentum = None
        for batch in x.split(batch_size or 20):
            one(batch)
        wanted = {key: value for key, value in one.state_dict().items() if "running" in key}
        assert wanted.keys() == buffers.keys()
        for key, value in wanted.items():
            close(buffers[key][i], value)


@pytest.mark.parametrize("name", NORMED)
def test_given_statistics_are_used_and_must_be_given(name):
    net, loss, points, x, y = problem(name)
    generator = runtime.generator(1)
    stored = {key: value for key, value in net.state_dict().items() if "running" in key}
    buffers = {
        key: torch.rand(POINTS, *value.shape, dtype=F64, generator=generator) + 0.5 for key, value in stored.items()
    }
    found = loss.outputs(points, x, buffers)
    for i in range(POINTS):
        one = at(net, points[i])
        one.load_state_dict({key: value[i] for key, value in buffers.items()}, strict=False)
        close(found[i], one(x))
    close(loss.outputs(points, x[:1], buffers), found[:, :1])  # no statistics of the batch
    with pytest.raises(ValueError, match="buffers: got None"):
        loss.evaluate(points, x, y)


def test_networks_without_norms_need_no_statistics():
    _, loss, points, x, y = problem("mlp")
    assert loss.batch_norm_statistics(points, x) == {} and not loss.has_batch_norm
    close(loss.evaluate(points, x, y)["loss"], loss(points, x, y))


def test_targets_that_are_no_classes_have_no_error():
    _, loss, points, x, _ = problem("mlp")
    loss.loss_fn = F.mse_loss
    assert list(loss.evaluate(points, x, torch.zeros(20, 3, dtype=F64))) == ["loss"]


def test_dense_evaluation_agrees_with_that_of_the_pivots(name):
    _, loss, points, x, y = problem(name)
    dense = between(points, 2)[1]
    close(loss(dense, x, y)[::3], loss(points, x, y))


def test_single_and_double_precision():
    net = NETS["cnn"]()
    loss, x, y = NetworkLoss(net, F.cross_entropy), torch.randn(9, 2, 8, 8), torch.randint(3, (9,))
    point = loss.vector(net)
    assert loss(point[None], x, y).dtype == torch.float32
    assert loss.network(point)(x).dtype == torch.float32
    double = point.double()
    assert loss(double[None], x.double(), y).dtype == F64
    assert loss.batch_norm_statistics(double[None], x.double())["1.running_mean"].dtype == F64
    assert torch.equal(loss.vector(loss.network(double)), double)
