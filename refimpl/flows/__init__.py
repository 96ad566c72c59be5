"""Normalizing flows: bijections with exact log-determinants, and the densities built from them."""

from refimpl.flows.autoregressive import MADE, MaskedAutoregressive, iaf, maf
from refimpl.flows.bases import Base, RadialMixture, StandardNormal, StudentT
from refimpl.flows.bijection import Bijection, Chain, Diagonal, Inverse, Permutation, Reshape
from refimpl.flows.conditioners import Conditioner
from refimpl.flows.continuous import Continuous, Velocity
from refimpl.flows.coupling import Coupling, coupling_flow, nice
from refimpl.flows.elementwise import AdditiveMap, AffineMap, ElementwiseMap, GINMap
from refimpl.flows.flow import Flow, FlowDistribution
from refimpl.flows.gaussianization import Gaussianization, MarginalGaussianization, gaussianize
from refimpl.flows.image import ConvConditioner, MultiScale, Squeeze, glow, glow_step, realnvp_image
from refimpl.flows.kernelised import KernelConditioner
from refimpl.flows.layerwise import BinnedCoupling, fit_affine_block, fit_affine_layers
from refimpl.flows.linear import ActNorm, BlockTriangularLinear, InvertibleLinear, Rotation, random_rotation
from refimpl.flows.mixer import Mixing, mixer_flow
from refimpl.flows.pixels import Logit, bits_per_dim, dequantise
from refimpl.flows.planar import Planar, Radial
from refimpl.flows.residual import LipschitzLinear, LipSwish, Residual, residual_flow, roulette_weights
from refimpl.flows.shared import NanoFlow
from refimpl.flows.splines import SplineMap
from refimpl.flows.stochastic import (
    HMC,
    Kernel,
    Langevin,
    Metropolis,
    StochasticFlow,
    effective_sample_size,
    interpolate,
    log_mean_weight,
)
from refimpl.flows.tails import hill_index, sample_heavy_copula, tail_adaptive_flow, tail_index
from refimpl.flows.tarflow import Patches, TarBlock, tarflow, tweedie
from refimpl.flows.universality import (
    ConditionalMoments,
    Rearrangement,
    additive_improvement,
    affine_improvement,
    best_volume_preserving,
    conditional_moments,
    gaussian_profile,
    height_profile,
    separated_modes_gap,
)
from refimpl.flows.whitening import (
    loss_only_bound,
    nonstandardness,
    unitary_bound,
    var_max_bound,
    whiten,
    whitening_block,
    whitening_ratio,
)

__all__ = [
    "ActNorm",
    "AdditiveMap",
    "AffineMap",
    "Base",
    "Bijection",
    "BinnedCoupling",
    "BlockTriangularLinear",
    "Chain",
    "ConditionalMoments",
    "Conditioner",
    "Continuous",
    "ConvConditioner",
    "Coupling",
    "Diagonal",
    "ElementwiseMap",
    "Flow",
    "FlowDistribution",
    "GINMap",
    "Gaussianization",
    "HMC",
    "Inverse",
    "InvertibleLinear",
    "Kernel",
    "KernelConditioner",
    "Langevin",
    "LipSwish",
    "LipschitzLinear",
    "Logit",
    "MADE",
    "MarginalGaussianization",
    "MaskedAutoregressive",
    "Metropolis",
    "Mixing",
    "MultiScale",
    "NanoFlow",
    "Patches",
    "Permutation",
    "Planar",
    "Radial",
    "RadialMixture",
    "Rearrangement",
    "Reshape",
    "Residual",
    "Rotation",
    "SplineMap",
    "Squeeze",
    "StandardNormal",
    "StochasticFlow",
    "StudentT",
    "TarBlock",
    "Velocity",
    "additive_improvement",
    "affine_improvement",
    "best_volume_preserving",
    "bits_per_dim",
    "conditional_moments",
    "coupling_flow",
    "dequantise",
    "effective_sample_size",
    "fit_affine_block",
    "fit_affine_layers",
    "gaussian_profile",
    "gaussianize",
    "glow",
    "glow_step",
    "height_profile",
    "hill_index",
    "iaf",
    "interpolate",
    "log_mean_weight",
    "loss_only_bound",
    "maf",
    "mixer_flow",
    "nice",
    "nonstandardness",
    "random_rotation",
    "realnvp_image",
    "residual_flow",
    "roulette_weights",
    "sample_heavy_copula",
    "separated_modes_gap",
    "tail_adaptive_flow",
    "tail_index",
    "tarflow",
    "tweedie",
    "unitary_bound",
    "var_max_bound",
    "whiten",
    "whitening_block",
    "whitening_ratio",
]
