"""Utility, attack and communication metrics: pure functions and ``torchmetrics.Metric`` classes on top."""

from del_lightning.metrics.agreement import NextTokenAgreement
from del_lightning.metrics.attack import AttackSuccessRate
from del_lightning.metrics.certified import certified_alone, certified_recovery, check_certified, largest_share
from del_lightning.metrics.classification import binary_figures, differences, over_examples, over_seeds
from del_lightning.metrics.coherence import Coherence, SentenceEncoder
from del_lightning.metrics.communication import PayloadBits
from del_lightning.metrics.intervals import bootstrap_mean, bootstrap_ratio, clopper_pearson
from del_lightning.metrics.perplexity import ConditionalPerplexity
from del_lightning.metrics.recovery import (
    content_tokens,
    paired_difference,
    recovery,
    rouge_l,
    unknown_pieces,
    worst_case,
)
from del_lightning.metrics.retained import information_retained

__all__ = [
    "AttackSuccessRate",
    "Coherence",
    "ConditionalPerplexity",
    "NextTokenAgreement",
    "PayloadBits",
    "SentenceEncoder",
    "binary_figures",
    "bootstrap_mean",
    "bootstrap_ratio",
    "certified_alone",
    "certified_recovery",
    "check_certified",
    "clopper_pearson",
    "content_tokens",
    "differences",
    "information_retained",
    "largest_share",
    "over_examples",
    "over_seeds",
    "paired_difference",
    "recovery",
    "rouge_l",
    "unknown_pieces",
    "worst_case",
]
