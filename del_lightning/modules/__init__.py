"""LightningModules."""

from del_lightning.modules.codec import CodecTraining
from del_lightning.modules.prompt import PromptTuning

__all__ = ["CodecTraining", "PromptTuning"]
