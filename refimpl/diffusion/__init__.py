"""Diffusion and flow matching: noise processes, what networks predict, samplers, likelihoods, guidance, control."""

from refimpl.diffusion.measurement import Measurement
from refimpl.diffusion.model import DiffusionModel, convert
from refimpl.diffusion.process import DDPM, EDM, VE, VP, FlowPath, NoiseProcess, TrigonometricPath

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "DiffusionModel",
    "FlowPath",
    "Measurement",
    "NoiseProcess",
    "TrigonometricPath",
    "convert",
]
