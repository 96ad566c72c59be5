"""Diffusion and flow matching: noise processes, what networks predict, samplers, likelihoods, guidance, control."""

from refimpl.diffusion.consistency import (
    ConsistencyModel,
    consistency_loss,
    consistency_sample,
    ct_schedule,
    draw_levels,
    ict_num_levels,
    pseudo_huber,
)
from refimpl.diffusion.control import control_weights, ndtm, ndtm_step
from refimpl.diffusion.gaussian_guidance import gaussian_posterior, guided_moments
from refimpl.diffusion.guidance import (
    METHODS,
    classifier,
    dps,
    exact_log_likelihood,
    freedom,
    guided_start,
    mpgd,
    sample_posterior,
    unguided,
)
from refimpl.diffusion.image_operator import ImageOperator
from refimpl.diffusion.interpolants import Interpolant, interpolant_losses, interpolant_sde
from refimpl.diffusion.label_guidance import classifier_free, classifier_guided, drop_labels
from refimpl.diffusion.likelihood import log_prob
from refimpl.diffusion.losses import denoising_loss, lognormal_times, uniform_times
from refimpl.diffusion.matching import (
    independent_pairs,
    minibatch_ot_pairs,
    reflow_pairs,
    straightness,
    transport_cost,
)
from refimpl.diffusion.measurement import Measurement
from refimpl.diffusion.model import DiffusionModel, convert, exact_model
from refimpl.diffusion.moment_guidance import dps_bayes, pigdm, tmpd
from refimpl.diffusion.operators import (
    BlindBlur,
    average_pooling,
    blind_blur,
    gaussian_blur,
    inpainting,
    jpeg,
    nonlinear_blur,
    phase_retrieval,
    random_pixels,
)
from refimpl.diffusion.optimised import d_flow, red_diff
from refimpl.diffusion.posterior_report import posterior_report
from refimpl.diffusion.preconditioning import GaussianSkip, Preconditioned
from refimpl.diffusion.pretrained import LevelTable, from_adm, from_diffusers, load_weights
from refimpl.diffusion.process import DDPM, EDM, VE, VP, FlowPath, NoiseProcess, TrigonometricPath
from refimpl.diffusion.samplers import ancestral, ddim, ddim_step, euler, heun, integrate

__all__ = [
    "DDPM",
    "EDM",
    "METHODS",
    "VE",
    "VP",
    "BlindBlur",
    "ConsistencyModel",
    "DiffusionModel",
    "FlowPath",
    "GaussianSkip",
    "ImageOperator",
    "Interpolant",
    "LevelTable",
    "Measurement",
    "NoiseProcess",
    "Preconditioned",
    "TrigonometricPath",
    "ancestral",
    "average_pooling",
    "blind_blur",
    "classifier",
    "classifier_free",
    "classifier_guided",
    "consistency_loss",
    "consistency_sample",
    "control_weights",
    "convert",
    "ct_schedule",
    "d_flow",
    "ddim",
    "ddim_step",
    "denoising_loss",
    "dps",
    "dps_bayes",
    "draw_levels",
    "drop_labels",
    "euler",
    "exact_log_likelihood",
    "exact_model",
    "freedom",
    "from_adm",
    "from_diffusers",
    "gaussian_blur",
    "gaussian_posterior",
    "guided_moments",
    "guided_start",
    "heun",
    "ict_num_levels",
    "independent_pairs",
    "inpainting",
    "integrate",
    "interpolant_losses",
    "interpolant_sde",
    "jpeg",
    "load_weights",
    "log_prob",
    "lognormal_times",
    "minibatch_ot_pairs",
    "mpgd",
    "ndtm",
    "ndtm_step",
    "nonlinear_blur",
    "phase_retrieval",
    "pigdm",
    "pseudo_huber",
    "posterior_report",
    "random_pixels",
    "red_diff",
    "reflow_pairs",
    "sample_posterior",
    "straightness",
    "tmpd",
    "transport_cost",
    "unguided",
    "uniform_times",
]
