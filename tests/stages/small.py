"""Settings of the quick start's smaller sister."""

from pathlib import Path
from typing import Any


def small(model: Path, encoder: Path) -> dict[str, Any]:
    """Settings of a run that takes seconds."""
    return {
        "out": "runs",
        "model.name": str(model),
        "model.dtype": "float32",
        "data.min_words": 30,
        "data.prompt_words": 8,
        "data.max_prompts": 32,
        "data.reference_tokens": 16,
        "data.train_tokens": 24,
        "data.validation_blocks": 4,
        "codec.dim": 4,
        "codec.steps": 2,
        "codec.sequence_tokens": 24,
        "codec.validate_every": 2,
        "prompt.steps": 4,
        "prompt.validate_every": 2,
        "attack.tokens": 200,
        "attack.outline": 3,
        "attack.tolerance": 0.1,
        "attack.resolution": 0.5,
        "evaluate.encoder": str(encoder),
        "evaluate.max_new_tokens": 4,
        "evaluate.samples": 1,
        "trainer.accelerator": "cpu",
        "trainer.progress_bar": "false",
        "trainer.log_every": 1,
    }
