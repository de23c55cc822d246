"""LightningModules."""

from del_lightning.modules.adapter import LowRankAdapter, low_rank_adapter
from del_lightning.modules.classifier import ClassifierTraining, Head, Verbaliser, fit_head
from del_lightning.modules.codec import CodecTraining
from del_lightning.modules.denoiser import (
    CleanStates,
    DenoisedSplit,
    Denoiser,
    DenoiserTraining,
    ServerDenoiser,
    UserDenoised,
    UserDenoiser,
)
from del_lightning.modules.inverter import InverterTraining
from del_lightning.modules.prompt import PromptTuning

__all__ = [
    "ClassifierTraining",
    "CleanStates",
    "CodecTraining",
    "DenoisedSplit",
    "Denoiser",
    "DenoiserTraining",
    "Head",
    "InverterTraining",
    "LowRankAdapter",
    "PromptTuning",
    "ServerDenoiser",
    "UserDenoised",
    "UserDenoiser",
    "Verbaliser",
    "fit_head",
    "low_rank_adapter",
]
