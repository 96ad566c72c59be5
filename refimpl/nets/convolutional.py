"""Image classifiers with batch normalisation: plain CNN, residual network, densely connected network.

All three are `nn.Sequential`, map (batch, in_channels, height, width) to logits (batch, num_classes), and start from
PyTorch's default weights. Convolutions in front of a batch norm have no bias: the norm would subtract it again. No
activation works in place, so that networks can be stacked (`refimpl.nets.Stack`, `torch.func.vmap`) in either mode.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes

__all__ = ["BasicBlock", "DenseLayer", "cnn", "densenet", "resnet"]


def cnn(
    in_channels: int,
    num_classes: int,
    *,
    channels: Sequence[int],
    kernel_size: int = 3,
    pool: str = "stride",
    hidden: int | None = None,
    image_size: int | None = None,
) -> nn.Sequential:
    """Plain convolutional network; each of its convolutions halves the image.

    Args:
        in_channels, num_classes: channels of the images and number of logits.
        channels: output channels of the convolutions, in their order.
        kernel_size: an odd number; the image is padded by half of it.
        pool: ``"stride"``: convolutions of stride 2 (odd sizes round up; fast, for many small networks at once);
            ``"max"``: convolutions of stride 1, then the largest of 2 x 2 pixels (odd sizes round down).
        hidden: units of a dense layer with batch norm in front of the logits; no such layer if None.
        image_size: height and width of the images; if None, any, and channels are averaged over the pixels left.

    Raises:
        ValueError: if a size is not a whole number >= 1, ``kernel_size`` even, ``pool`` unknown, or no pixel is left.

    Source: Draxler et al. 2018 (arXiv 1803.00885): ``kernel_size=5, pool="max", hidden=256``, 12 to 96 channels.

    >>> net = cnn(1, 10, channels=[8, 16], image_size=8)
    >>> net(torch.zeros(5, 1, 8, 8)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([5, 10]), 1922)
    """
    optional = {k: size for k, size in {"hidden": hidden, "image_size": image_size}.items() if size is not None}
    check_sizes(in_channels=in_channels, num_classes=num_classes, kernel_size=kernel_size, **optional)
    if not isinstance(channels, Sequence) or len(channels) == 0:
        raise ValueError(f"channels: got {channels!r}, expected a list of one or more whole numbers")
    check_sizes(**{f"channels[{i}]": size for i, size in enumerate(channels)})
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
    if pool not in ("stride", "max"):
        raise ValueError(f"pool: got {pool!r}, expected 'stride' or 'max'")
    if pool == "max" and image_size is not None and image_size < 2 ** len(channels):
        raise ValueError(f"image_size: got {image_size}, expected at least {2 ** len(channels)}: each layer halves it")
    layers: list[nn.Module] = []
    stride, left = (2 if pool == "stride" else 1), image_size
    for a, b in zip([in_channels, *channels[:-1]], channels, strict=True):
        pooling = [nn.MaxPool2d(2)] if pool == "max" else []
        layers += [_convolution(a, b, kernel_size, stride), *pooling, nn.BatchNorm2d(b), nn.ReLU()]
        left = left and (left + stride - 1) // 2
    layers += [nn.Flatten()] if left else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    width = channels[-1] * (left or 1) ** 2
    if hidden is not None:
        layers += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden or width, num_classes))


class BasicBlock(nn.Module):
    """Residual block relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut x) with 3 x 3 convolutions.

    ``shortcut`` is the identity where the shape stays, else a 1 x 1 convolution with batch norm (option B of `resnet`).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.conv1, self.bn1 = _convolution(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels)
        self.conv2, self.bn2 = _convolution(out_channels, out_channels, 3), nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            project = _convolution(in_channels, out_channels, 1, stride)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(out_channels))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d h2 w2"]:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def resnet(
    depth: int, *, in_channels: int = 3, num_classes: int = 10, width: int = 16, stages: int = 3
) -> nn.Sequential:
    """Residual network for small images of any size; each stage after the first halves them and doubles the channels.

    Its parts are ``conv, bn, relu, stages, pool, flatten, linear``, and ``net.stages[i][j]`` is a `BasicBlock`.

    Args:
        depth: layers with weights, shortcuts not counted: 2 + 2 ``stages`` n with n >= 1 blocks a stage.
        in_channels, num_classes: channels of the images and number of logits.
        width, stages: channels of the first stage and number of stages.

    Raises:
        ValueError: if a size is not a whole number >= 1 or no number of blocks gives this ``depth``.

    Source: He et al. 2016 (arXiv 1512.03385), Section 4.2, with projection shortcuts as in Draxler et al. 2018.

    >>> sum(p.numel() for p in resnet(20).parameters())
    272474
    """
    check_sizes(depth=depth, in_channels=in_channels, num_classes=num_classes, width=width, stages=stages)
    num_blocks = _repetitions(depth, 2, 2 * stages)
    widths = [width, *(width * 2**i for i in range(stages))]
    groups = []
    for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        first = BasicBlock(a, b, stride=1 if i == 0 else 2)
        groups.append(nn.Sequential(first, *(BasicBlock(b, b) for _ in range(num_blocks - 1))))
    parts: dict[str, nn.Module] = dict(conv=_convolution(in_channels, width, 3), bn=nn.BatchNorm2d(width))
    parts |= dict(relu=nn.ReLU(), stages=nn.Sequential(*groups), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return nn.Sequential(OrderedDict(parts, linear=nn.Linear(widths[-1], num_classes)))


class DenseLayer(nn.Module):
    """Appends channels: [x, conv(relu(bn x))], or [x, conv(relu(bn(conv1x1(relu(bn x)))))] if ``bottleneck``."""

    def __init__(self, in_channels: int, growth: int, *, bottleneck: bool = False):
        super().__init__()
        check_sizes(in_channels=in_channels, growth=growth)
        inner = 4 * growth if bottleneck else in_channels
        squeeze = _preactivated(in_channels, inner, 1) if bottleneck else []
        self.new = nn.Sequential(*squeeze, *_preactivated(inner, growth, 3))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d h w"]:
        return torch.cat([x, self.new(x)], dim=1)


def densenet(
    depth: int,
    *,
    growth: int = 12,
    bottleneck: bool = False,
    compression: float | int = 1.0,
    in_channels: int = 3,
    num_classes: int = 10,
    blocks: int = 3,
) -> nn.Sequential:
    """Densely connected network for small images: every layer sees the output of all earlier ones of its block.

    ``densenet(40)`` is DenseNet-40-12, ``densenet(100, bottleneck=True, compression=0.5)`` DenseNet-100-12-BC.

    Args:
        depth: layers with weights: 1 + ``blocks`` (n + 1), or 1 + ``blocks`` (2 n + 1) with bottlenecks, n >= 1.
        growth, blocks: channels that each layer adds and number of dense blocks.
        bottleneck: whether a 1 x 1 convolution stands before each 3 x 3 convolution.
        compression: share of the channels, in (0, 1], that a transition to the next block keeps; it halves the image.
        in_channels, num_classes: channels of the images (of 2^(``blocks`` - 1) pixels or more) and number of logits.

    Raises:
        ValueError: if a size is no whole number >= 1, no n gives this ``depth``, or ``compression`` is not in (0, 1].

    Source: Huang et al. 2017 (arXiv 1608.06993), Sections 3 and 4.2. The first convolution has 16 channels, or
    2 ``growth`` with bottlenecks (the official code of Draxler et al. 2018 has 2 ``growth`` in both).

    >>> sum(p.numel() for p in densenet(40).parameters())
    1019722
    """
    check_sizes(depth=depth, growth=growth, in_channels=in_channels, num_classes=num_classes, blocks=blocks)
    check_positive("compression", compression)
    if compression > 1:
        raise ValueError(f"compression: got {compression}, expected a number in (0, 1]")
    num_layers = _repetitions(depth, blocks + 1, blocks * (2 if bottleneck else 1))
    width = 2 * growth if bottleneck else 16
    layers: list[nn.Module] = [_convolution(in_channels, width, 3)]
    for block in range(blocks):
        if block > 0:
            kept = max(1, int(compression * width))
            layers += [*_preactivated(width, kept, 1), nn.AvgPool2d(2)]
            width = kept
        layers += [DenseLayer(width + i * growth, growth, bottleneck=bottleneck) for i in range(num_layers)]
        width += num_layers * growth
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
    return nn.Sequential(*layers)


def _convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _preactivated(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(in_channels), nn.ReLU(), _convolution(in_channels, out_channels, kernel_size)]


def _repetitions(depth: int, fixed: int, step: int) -> int:
    if depth <= fixed or (depth - fixed) % step:
        raise ValueError(f"depth: got {depth}, expected {fixed} + {step} n: {fixed + step}, {fixed + 2 * step}, ...")
    return (depth - fixed) // step
