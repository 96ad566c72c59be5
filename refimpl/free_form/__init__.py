"""Free-form flows: likelihood training of networks that no architecture makes invertible."""

from refimpl.free_form.diagnosis import Diagnosis, diagnose, grid_integral, importance_integral
from refimpl.free_form.equivariant import MeanFreeNormal
from refimpl.free_form.flow import FreeFormFlow, VolumeChange, fff_loss, volume_change_surrogate
from refimpl.free_form.hyperbolic import PoincareBall, moebius_add
from refimpl.free_form.injective import (
    InjectiveFlow,
    LatentMixture,
    curvature,
    exact_loss,
    log_volume,
    on_manifold_loss,
    volume_term,
)
from refimpl.free_form.manifold_bases import Uniform, VonMisesFisherMixture, WrappedNormalMixture
from refimpl.free_form.manifold_flow import (
    ManifoldFlow,
    manifold_log_det,
    manifold_loss,
    model_integral,
    tangent_probes,
)
from refimpl.free_form.manifold_matching import MatchingFlow
from refimpl.free_form.manifolds import Euclidean, Product, Sphere
from refimpl.free_form.rotations import SO3
from refimpl.free_form.spherical import AngleBox, log_sphere_volume, to_angles, to_unit
from refimpl.free_form.star_like import StarLike, log_area, lp_radius

__all__ = [
    "SO3",
    "AngleBox",
    "Diagnosis",
    "Euclidean",
    "FreeFormFlow",
    "InjectiveFlow",
    "LatentMixture",
    "ManifoldFlow",
    "MatchingFlow",
    "MeanFreeNormal",
    "PoincareBall",
    "Product",
    "Sphere",
    "StarLike",
    "Uniform",
    "VolumeChange",
    "VonMisesFisherMixture",
    "WrappedNormalMixture",
    "curvature",
    "diagnose",
    "exact_loss",
    "fff_loss",
    "grid_integral",
    "importance_integral",
    "log_area",
    "log_sphere_volume",
    "log_volume",
    "lp_radius",
    "manifold_log_det",
    "manifold_loss",
    "model_integral",
    "moebius_add",
    "on_manifold_loss",
    "tangent_probes",
    "to_angles",
    "to_unit",
    "volume_change_surrogate",
    "volume_term",
]
