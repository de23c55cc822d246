"""The mechanism and its exact accounting: no language model in here.

Names are imported when they are first used: the client needs the accountant and the secure sampler, and must reach
neither torch nor the float sampler of simulations.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from del_lightning.privacy.accountant import BinomialAccountant
    from del_lightning.privacy.gaussian import GaussianAccountant
    from del_lightning.privacy.ledger import BudgetLedger
    from del_lightning.privacy.quantizer import StochasticQuantizer
    from del_lightning.privacy.secure import SecureSampler
    from del_lightning.privacy.statement import PrivacyStatement

__all__ = [
    "BinomialAccountant",
    "BudgetLedger",
    "GaussianAccountant",
    "PrivacyStatement",
    "SecureSampler",
    "StochasticQuantizer",
]

_MODULES = {
    "BinomialAccountant": "accountant",
    "BudgetLedger": "ledger",
    "GaussianAccountant": "gaussian",
    "PrivacyStatement": "statement",
    "SecureSampler": "secure",
    "StochasticQuantizer": "quantizer",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
