"""Attackers that try to read the private tokens, and the calibration of a mechanism to their success."""

from del_lightning.attacks.attribute import AttributeInference, Texts
from del_lightning.attacks.base import Attack
from del_lightning.attacks.calibration import SuccessCurve, calibrate, outline
from del_lightning.attacks.inversion import (
    BayesOptimal,
    NearestNeighbour,
    log_likelihoods,
    log_prior,
    most_likely,
    nearest_neighbour,
)

__all__ = [
    "Attack",
    "AttributeInference",
    "BayesOptimal",
    "NearestNeighbour",
    "SuccessCurve",
    "Texts",
    "calibrate",
    "log_likelihoods",
    "log_prior",
    "most_likely",
    "nearest_neighbour",
    "outline",
]
