"""The mechanism and its exact accounting: no language model in here."""

from del_lightning.privacy.accountant import BinomialAccountant
from del_lightning.privacy.quantizer import StochasticQuantizer
from del_lightning.privacy.statement import PrivacyStatement

__all__ = ["BinomialAccountant", "PrivacyStatement", "StochasticQuantizer"]
