"""Normalizing flows: bijections with exact log-determinants, and the densities built from them."""

from refimpl.flows.bases import Base, RadialMixture, StandardNormal, StudentT
from refimpl.flows.bijection import Bijection, Chain, Diagonal, Inverse, Permutation, Reshape
from refimpl.flows.conditioners import Conditioner
from refimpl.flows.coupling import Coupling, coupling_flow, nice
from refimpl.flows.elementwise import AdditiveMap, AffineMap, ElementwiseMap, GINMap
from refimpl.flows.flow import Flow, FlowDistribution
from refimpl.flows.splines import SplineMap

__all__ = [
    "AdditiveMap",
    "AffineMap",
    "Base",
    "Bijection",
    "Chain",
    "Conditioner",
    "Coupling",
    "Diagonal",
    "ElementwiseMap",
    "Flow",
    "FlowDistribution",
    "GINMap",
    "Inverse",
    "Permutation",
    "RadialMixture",
    "Reshape",
    "SplineMap",
    "StandardNormal",
    "StudentT",
    "coupling_flow",
    "nice",
]
