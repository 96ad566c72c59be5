"""Loss landscapes: elastic bands, AutoNEB, curves, alignment of permutations, exploration of many minima, curvature."""

from refimpl.landscape.alignment import chain_permutations, matching_objective, permute, weight_matching
from refimpl.landscape.auto_neb import PAPER_SCHEDULE, AutoNEBPath, Cycle, auto_neb, insert_pivots
from refimpl.landscape.band import (
    band_gradient,
    between,
    nudged_elastic_band,
    path_length,
    redistribute,
    tangents,
    value_and_gradient,
)
from refimpl.landscape.curves import BezierCurve, PolygonalChain, fit_curve
from refimpl.landscape.exploration import explore, merge_tree, saddle_matrix, spanning_tree, suggest
from refimpl.landscape.hessian import hessian_eigenvalues, rayleigh_quotient
from refimpl.landscape.network_loss import NetworkLoss
from refimpl.landscape.surfaces import CURVY_VALLEY_MINIMA, EGG_CARTON_MINIMA, curvy_valley, egg_carton

__all__ = [
    "CURVY_VALLEY_MINIMA",
    "EGG_CARTON_MINIMA",
    "PAPER_SCHEDULE",
    "AutoNEBPath",
    "BezierCurve",
    "Cycle",
    "NetworkLoss",
    "PolygonalChain",
    "auto_neb",
    "band_gradient",
    "between",
    "chain_permutations",
    "curvy_valley",
    "egg_carton",
    "explore",
    "fit_curve",
    "hessian_eigenvalues",
    "insert_pivots",
    "matching_objective",
    "merge_tree",
    "nudged_elastic_band",
    "path_length",
    "permute",
    "rayleigh_quotient",
    "redistribute",
    "saddle_matrix",
    "spanning_tree",
    "suggest",
    "tangents",
    "value_and_gradient",
    "weight_matching",
]
