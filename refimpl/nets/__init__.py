"""Small networks with plain constructors."""

from refimpl.nets.convolutional import BasicBlock, cnn, densenet, resnet
from refimpl.nets.egnn import egnn
from refimpl.nets.fourier import FourierFeatures
from refimpl.nets.mlp import mlp
from refimpl.nets.residual import ResidualMLP, residual_mlp
from refimpl.nets.siren import Sine, siren
from refimpl.nets.stack import Stack
from refimpl.nets.timed import TimedMLP, timed_mlp
from refimpl.nets.unet import UNet, unet

__all__ = [
    "BasicBlock",
    "FourierFeatures",
    "ResidualMLP",
    "Sine",
    "Stack",
    "TimedMLP",
    "UNet",
    "cnn",
    "densenet",
    "egnn",
    "mlp",
    "residual_mlp",
    "resnet",
    "siren",
    "timed_mlp",
    "unet",
]
