"""Permutations keep the function and are undone; planted ones are found; matching against all permutations of small nets."""

import itertools

import pytest
import torch
from torch import nn

from refimpl import runtime
from refimpl.landscape.alignment import (
    chain_permutations,
    matching_objective,
    permute,
    weight_matching,
)
from refimpl.nets import cnn, mlp, resnet, siren

F64 = torch.float64


def fully_convolutional():
    """Ends in a convolution and its norm, whose channels are outputs; has parts within parts."""
    first = nn.Sequential(nn.Conv2d(2, 6, 3), nn.LeakyReLU(), nn.Sequential(nn.BatchNorm2d(6), nn.AvgPool2d(2)))
    return nn.Sequential(first, nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3))


def norms_around_flatten():
    """A norm and dropout between flattening and the layer that reads the pixels, and a norm of the inputs."""
    net = [nn.BatchNorm2d(2), nn.Conv2d(2, 5, 3), nn.GELU(), nn.Flatten(), nn.BatchNorm1d(180), nn.Dropout(0.0)]
    return nn.Sequential(*net, nn.Linear(180, 7), nn.Tanh(), nn.Linear(7, 3))


NETS = {
    "mlp": lambda: mlp(4, 3, width=9, depth=4),
    "mlp without biases": lambda: mlp(4, 3, width=9, depth=3, bias=False, activation=nn.Tanh),
    "siren": lambda: siren(4, 3, width=9, depth=3, omega=2.0),
    "one layer": lambda: mlp(4, 3, width=9, depth=1),
    "cnn that flattens pixels": lambda: cnn(2, 3, channels=[5, 7], hidden=6, image_size=8),
    "cnn with pooling": lambda: cnn(2, 3, channels=[5, 7], kernel_size=5, pool="max", image_size=8),
    "cnn of any image": lambda: cnn(2, 3, channels=[5, 7]),
    "fully convolutional": fully_convolutional,
    "norms around flatten": norms_around_flatten,
    "resnet": lambda: resnet(14, in_channels=2, num_classes=3, width=5, stages=2),
}


def network(name, seed=0, dtype=F64):
    """Network whose every number is random: norms that scale nothing would hide a mistake."""
    generator = runtime.generator(seed)
    net = NETS[name]().to(dtype)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, dtype=F64, generator=generator)
                scale = value[0].numel() ** -0.5 if value.ndim > 1 else 1.0
                value.copy_(noise.abs() + 0.5 if "running_var" in key else noise * scale)
    return net


def inputs(name):
    shape = (6, 4) if name in ("mlp", "mlp without biases", "siren", "one layer") else (6, 2, 8, 8)
    return torch.randn(shape, dtype=F64, generator=runtime.generator(99))


def random_permutations(net, spec, seed=7):
    generator, sizes = runtime.generator(seed), {}
    for key, value in net.state_dict().items():
        for axis, size in zip(spec[key], value.shape, strict=True):
            if isinstance(axis, str):
                sizes[axis] = size
    return {group: torch.randperm(size, generator=generator) for group, size in sizes.items()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_and_the_weights_move(name, training):
    net = network(name)
    spec, state, x = chain_permutations(net), net.state_dict(), inputs(name)
    assert list(spec) == list(state) and all(len(spec[key]) == value.ndim for key, value in state.items())
    state = {key: value.clone() for key, value in state.items()}
    expected = net.train(training)(x)
    permuted = permute(state, spec, random_permutations(net, spec))
    other = network(name, seed=5).train(training)
    assert not torch.allclose(other(x), expected)
    other.load_state_dict(permuted)
    torch.testing.assert_close(other(x), expected, rtol=1e-10, atol=1e-10)
    hidden = [key for key, axes in spec.items() if any(axes)]
    assert bool(hidden) == (name != "one layer")
    assert not any(torch.equal(permuted[key], state[key]) for key in hidden)


@pytest.mark.parametrize("name", NETS)
def test_the_inverse_undoes_it_and_two_in_a_row_are_one(name):
    net = network(name)
    spec, state = chain_permutations(net), net.state_dict()
    one, two = random_permutations(net, spec, 1), random_permutations(net, spec, 2)
    back = permute(permute(state, spec, one), spec, {group: order.argsort() for group, order in one.items()})
    both = permute(permute(state, spec, one), spec, two)
    at_once = permute(state, spec, {group: one[group][two[group]] for group in one})
    for key, value in state.items():
        assert torch.equal(back[key], value) and torch.equal(both[key], at_once[key])
        assert back[key].dtype == value.dtype


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_a_planted_permutation_is_found(name, seed, dtype):
    net = network(name, seed, dtype)
    spec, state = chain_permutations(net), net.state_dict()
    planted = random_permutations(net, spec, seed + 10)
    moving = permute(state, spec, planted)
    tries = [weight_matching(spec, state, moving, generator=runtime.generator(k)) for k in range(5)]
    # A narrow network without biases may end in a local maximum, which its objective tells.
    found = max(tries, key=lambda found: matching_objective(spec, state, permute(moving, spec, found)).item())
    assert found.keys() == planted.keys()
    for group, order in planted.items():
        assert found[group].dtype == torch.long and torch.equal(found[group], order.argsort()), group
    assert all(torch.equal(value, state[key]) for key, value in permute(moving, spec, found).items())


def test_entries_name_who_orders_an_axis():
    net = resnet(10, in_channels=1, width=2, stages=2, num_classes=3)
    spec = chain_permutations(net)
    stream, next_stream, inner = "conv", "stages.1.0.shortcut", "stages.1.0.conv1"
    assert spec["conv.weight"] == (stream, None, None, None)
    assert spec["stages.0.1.conv2.weight"] == (stream, "stages.0.1.conv1", None, None)
    assert spec["stages.0.1.bn2.running_var"] == (stream,)
    assert spec["stages.1.0.conv1.weight"] == (inner, stream, None, None)
    assert spec["stages.1.0.conv2.weight"] == (next_stream, inner, None, None)
    assert spec["stages.1.0.shortcut.0.weight"] == (next_stream, stream, None, None)
    assert spec["stages.1.1.bn2.weight"] == spec["stages.1.0.shortcut.1.bias"] == (next_stream,)
    assert spec["linear.weight"] == (None, next_stream) and spec["linear.bias"] == (None,)
    assert spec["bn.num_batches_tracked"] == ()
    assert chain_permutations(cnn(1, 10, channels=[3, 4], image_size=8))["7.weight"] == (None, ("3", 4))
    assert chain_permutations(cnn(1, 10, channels=[3, 4]))["8.weight"] == (None, "3")


@pytest.mark.parametrize("name", ["mlp", "cnn that flattens pixels", "resnet"])
def test_the_objective_never_decreases_and_measures_the_distance(name):
    one, other = network(name, 1), network(name, 2)
    spec, a, b = chain_permutations(one), one.state_dict(), other.state_dict()
    parameters = [key for key, _ in one.named_parameters()]

    def after(sweeps):
        found = weight_matching(spec, a, b, max_sweeps=sweeps, generator=runtime.generator(0))
        moved = permute(b, spec, found)
        norms = sum(a[key].square().sum() + b[key].square().sum() for key in parameters)
        distance = sum((a[key] - moved[key]).square().sum() for key in parameters)
        objective = matching_objective(spec, a, moved)
        torch.testing.assert_close(2 * objective, norms - distance)
        return objective.item()

    values = [matching_objective(spec, a, b).item(), *map(after, [1, 2, 3, 50, 10**9])]
    assert values == sorted(values) and values[0] < values[1] and values[-2] == values[-1]


@pytest.mark.parametrize("seed", range(4))
def test_one_hidden_layer_is_matched_exactly(seed):
    one, other = (mlp(3, 2, width=5, depth=2).double() for _ in range(2))
    spec, a, b = chain_permutations(one), one.state_dict(), other.state_dict()
    best = max(
        matching_objective(spec, a, permute(b, spec, {"0": torch.tensor(order)})).item()
        for order in itertools.permutations(range(5))
    )
    found = weight_matching(spec, a, b, generator=runtime.generator(seed))
    assert matching_objective(spec, a, permute(b, spec, found)).item() == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_no_change_of_a_single_group_does_better(name):
    make = {
        "mlp": lambda: mlp(3, 2, width=4, depth=4),
        "cnn": lambda: cnn(1, 2, channels=[3, 4], hidden=4, image_size=8),
        "resnet": lambda: resnet(10, in_channels=1, num_classes=2, width=2, stages=2),
    }[name]
    torch.manual_seed(3)
    one, other = make().double(), make().double()
    spec, a, b = chain_permutations(one), one.state_dict(), other.state_dict()
    found = weight_matching(spec, a, b, generator=runtime.generator(0))
    best = matching_objective(spec, a, permute(b, spec, found)).item()
    for group, order in found.items():
        for changed in itertools.permutations(range(len(order))):
            tried = permute(b, spec, found | {group: torch.tensor(changed)})
            assert matching_objective(spec, a, tried).item() <= best + 1e-9


def test_statistics_of_batch_norm_move_but_do_not_match():
    one, other = network("resnet", 1), network("resnet", 2)
    spec, a, b = chain_permutations(one), one.state_dict(), other.state_dict()
    found = weight_matching(spec, a, b, generator=runtime.generator(0))
    louder = {key: 100 * value if "running" in key else value for key, value in b.items()}
    for state in (louder, dict(other.named_parameters())):
        again = weight_matching(spec, a, state, generator=runtime.generator(0))
        assert all(torch.equal(again[group], found[group]) for group in found)


def test_groups_that_are_not_named_stay_and_gradients_pass():
    net = network("mlp")
    spec, parameters = chain_permutations(net), dict(net.named_parameters())
    order = torch.randperm(9, generator=runtime.generator(0))
    moved = permute(parameters, spec, {"2": order})
    assert torch.equal(moved["0.weight"], parameters["0.weight"])
    assert torch.equal(moved["2.bias"], parameters["2.bias"][order])
    moved["4.weight"][:, 0].sum().backward()
    assert net[4].weight.grad[:, order[0]].eq(1).all() and net[4].weight.grad.sum() == 9


def test_matching_draws_from_its_generator_only():
    one, other = network("mlp", 1), network("mlp", 2)
    before = torch.random.get_rng_state()
    weight_matching(chain_permutations(one), one.state_dict(), other.state_dict(), generator=runtime.generator(0))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (nn.Softmax(-1), "module 1, Softmax"),
        (nn.GLU(), "module 1, GLU"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups=1"),
        (nn.Flatten(0), "module 1, Flatten"),
        (nn.PReLU(4), "module 1, PReLU"),
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), "module 1.1, LayerNorm"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(4, 4)), "nn.Flatten in front"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "module 1, Parametrized"),
    ],
)
def test_modules_that_have_no_free_order_are_named(part, told):
    with pytest.raises(ValueError, match=r"^network: ") as caught:
        chain_permutations(nn.Sequential(nn.Linear(2, 4), part, nn.Linear(4, 1)))
    assert told in str(caught.value)


def test_a_layer_that_stands_in_two_places_is_named():
    shared = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="module 1.0.*two places"):
        chain_permutations(nn.Sequential(shared, nn.Sequential(shared), nn.Linear(4, 1)))
    relu = nn.ReLU()
    assert chain_permutations(nn.Sequential(nn.Linear(2, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 1)))
