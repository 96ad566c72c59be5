"""Convolutional networks against counts made by hand, literal forward passes, and themselves one by one in a stack."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from refimpl import runtime
from refimpl.nets import BasicBlock, Stack, cnn, densenet, resnet

F64 = torch.float64
SMALL = {
    "strided cnn": lambda: cnn(1, 10, channels=[4, 6], image_size=8),
    "pooled cnn": lambda: cnn(1, 10, channels=[4, 6], kernel_size=5, pool="max", hidden=7, image_size=8),
    "averaged cnn": lambda: cnn(1, 10, channels=[4], pool="max"),
    "resnet": lambda: resnet(8, in_channels=1, width=4),
    "resnet of two stages": lambda: resnet(10, in_channels=1, width=4, stages=2),
    "densenet": lambda: densenet(7, growth=3, in_channels=1),
    "densenet-bc": lambda: densenet(7, growth=3, bottleneck=True, compression=0.5, in_channels=1, blocks=2),
}


def images(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=runtime.generator(seed))


def count(net):
    return sum(p.numel() for p in net.parameters())


def dense_count(n, k, first, *, bottleneck, kept, blocks=3):
    """Parameters of a DenseNet for 3 channels and 10 classes, in the order in which the paper describes it."""
    total, c = 3 * first * 9, first
    for block in range(blocks):
        if block > 0:
            total, c = total + 2 * c + c * int(kept * c), int(kept * c)
        for _ in range(n):
            total += 2 * c + 4 * k * c + 8 * k + 9 * 4 * k * k if bottleneck else 2 * c + 9 * c * k
            c += k
    return total + 2 * c + 10 * (c + 1)


def test_networks_of_the_paper_have_their_numbers_of_parameters():
    assert count(resnet(20)) == 272_474
    assert sum(b.numel() for n, b in resnet(20).named_buffers() if "running" in n) == 1_568  # 274,042 coordinates
    assert count(densenet(40)) == dense_count(12, 12, 16, bottleneck=False, kept=1) == 1_019_722
    bc = densenet(100, bottleneck=True, compression=0.5)
    assert count(bc) == dense_count(16, 12, 24, bottleneck=True, kept=0.5) == 769_162
    two = cnn(3, 10, channels=[48, 48], kernel_size=5, pool="max", hidden=256, image_size=32)
    assert count(two) == 25 * (3 * 48 + 48 * 48) + 4 * 48 + 48 * 8 * 8 * 256 + 2 * 256 + 2570


def test_depth_counts_the_layers_with_weights():
    for net, depth in (
        (resnet(20), 20),
        (resnet(10, stages=2), 10),
        (densenet(40), 40),
        (densenet(22, bottleneck=True), 22),
    ):
        shortcuts = {m for b in net.modules() if isinstance(b, BasicBlock) for m in b.shortcut.modules()}
        layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in shortcuts]
        assert len(layers) == depth


@pytest.mark.parametrize("kind", SMALL)
def test_logits_at_both_sizes_and_types(kind):
    net = SMALL[kind]()
    assert not any(getattr(m, "inplace", False) for m in net.modules())
    assert net(images(3, 1, 8, 8)).shape == (3, 10)
    assert net.double()(images(3, 1, 8, 8, dtype=F64)).dtype == F64
    if "cnn" not in kind or kind == "averaged cnn":
        assert net(images(2, 1, 32, 32, dtype=F64)).shape == (2, 10)


@pytest.mark.parametrize(
    ("pool", "size", "left"), [("stride", 8, 2), ("stride", 9, 3), ("stride", 1, 1), ("max", 9, 2), ("max", 32, 8)]
)
def test_each_layer_of_a_cnn_halves_the_image(pool, size, left):
    net = cnn(3, 4, channels=[2, 5], kernel_size=5, pool=pool, image_size=size).eval()
    assert net[-1].in_features == 5 * left**2 and net(images(2, 3, size, size)).shape == (2, 4)


def normalised(bn, x):
    """Batch norm in training mode with scale and shift one and zero, as at the start."""
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + bn.eps).sqrt()


def test_a_residual_network_is_what_its_parts_say():
    net, x = resnet(8, in_channels=3, width=4, stages=3).double(), images(5, 3, 8, 8, dtype=F64)
    h = F.relu(normalised(net.bn, F.conv2d(x, net.conv.weight, padding=1)))
    for i, stage in enumerate(net.stages):
        (block,), stride = stage, 1 if i == 0 else 2
        inner = F.relu(normalised(block.bn1, F.conv2d(h, block.conv1.weight, stride=stride, padding=1)))
        inner = normalised(block.bn2, F.conv2d(inner, block.conv2.weight, padding=1))
        if i > 0:
            h = normalised(block.shortcut[1], F.conv2d(h[:, :, ::2, ::2], block.shortcut[0].weight))
        h = F.relu(inner + h)
    assert h.shape == (5, 16, 2, 2)
    torch.testing.assert_close(net(x), h.mean((2, 3)) @ net.linear.weight.T + net.linear.bias)
    assert [type(b.shortcut) for b in resnet(14).stages[1]] == [nn.Sequential, nn.Identity]


def test_a_dense_network_keeps_all_earlier_channels():
    net, x = densenet(9, growth=3, in_channels=1, blocks=2).eval(), images(2, 1, 8, 8)
    features = [x]
    for layer in net:
        features.append(layer(features[-1]))
    first = features[1]
    assert [f.shape[1] for f in features[:5]] == [1, 16, 19, 22, 25]
    assert torch.equal(features[4][:, :16], first) and torch.equal(features[4][:, :22], features[3])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", SMALL)
def test_a_stack_equals_its_networks_with_their_statistics(kind, training):
    networks = [SMALL[kind]().double().train(training) for _ in range(3)]
    for i, net in enumerate(networks):
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + images(*buffer.shape, seed=i, dtype=F64).abs())
    stack, x = Stack(networks).train(training), images(3, 4, 1, 8, 8, dtype=F64)
    together, alone = stack(x), torch.stack([net(xi) for net, xi in zip(networks, x, strict=True)])
    torch.testing.assert_close(together, alone)
    together.square().sum().backward()
    alone.square().sum().backward()
    for name, p in networks[1].named_parameters():
        torch.testing.assert_close(stack.state()[name].grad[1], p.grad)
    for name, b in networks[1].named_buffers():
        torch.testing.assert_close(stack.state()[name][1], b)


@pytest.mark.parametrize("kind", ["pooled cnn", "resnet", "densenet-bc"])
def test_training_mode_under_vmap_updates_stacked_buffers_and_no_others(kind):
    networks = [SMALL[kind]() for _ in range(2)]
    parameters, buffers = stack_module_state(networks)
    skeleton, x = copy.deepcopy(networks[0]), images(4, 1, 8, 8)
    before = copy.deepcopy(skeleton.state_dict())
    outputs = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(parameters, buffers)
    for i, net in enumerate(networks):
        torch.testing.assert_close(outputs[i], net(x), atol=1e-4, rtol=1e-4)
        for name, b in net.named_buffers():
            torch.testing.assert_close(buffers[name][i], b, atol=1e-5, rtol=1e-4)
            assert "running" not in name or not torch.equal(b, before[name])
    assert all(torch.equal(before[name], value) for name, value in skeleton.state_dict().items())
