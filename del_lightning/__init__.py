"""Differentially private, bit-efficient split inference of large language models.

Read the package as a token's journey: :mod:`~del_lightning.codec` projects its embedding,
:mod:`~del_lightning.privacy` quantises the code under a guarantee, :mod:`~del_lightning.split` hands it to the
frozen LLM behind a soft prompt (:mod:`~del_lightning.prompt`). :mod:`~del_lightning.methods` holds the same journey
for every method compared, :mod:`~del_lightning.attacks` what an adversary makes of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from del_lightning.split import SplitModel

__version__ = "0.1.0"
__all__ = ["SplitModel", "__version__"]


def __getattr__(name: str) -> object:
    """Import the model on first use: the privacy and wire parts must load without torch's weight."""
    if name == "SplitModel":
        from del_lightning.split import SplitModel

        return SplitModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
