"""Stage ``codec``: initialise the projection from public text, set its bound, train it."""

from dataclasses import asdict
from pathlib import Path

import torch

from del_lightning.artifacts import Artifact, Outcome
from del_lightning.codec import LinearCodec, check_dim, default_dim, pca_codec
from del_lightning.methods.factory import NEEDS_CODEC
from del_lightning.modules import CodecTraining
from del_lightning.report.schema import Estimate
from del_lightning.stages import training
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say

WEIGHTS = "codec.safetensors"


def needed(ws: Workspace) -> bool:
    """Whether a front-end of this configuration sends codes."""
    return any(name in NEEDS_CODEC for name in ws.config.methods)


def ensure(ws: Workspace) -> Artifact:
    """Return the codec's artefact, training it if it does not exist."""
    # Before any data: the sizes of a packaged model that was never used are not known before it is loaded.
    check_dim(ws.config.codec.dim, ws.llm.hidden_size)
    trains = ws.config.codec.steps > 0
    return ws.store.get("codec", determined_by(ws), lambda folder: _build(ws, folder), together=trains)


def load(ws: Workspace) -> LinearCodec:
    """Load the codec of this configuration onto the workspace's device."""
    return LinearCodec.load(ensure(ws).folder / WEIGHTS).to(ws.device)


def run(ws: Workspace) -> None:
    """Build the codec and say what came out."""
    artifact = ensure(ws)
    share = artifact.result.metrics["clipped_share"].value
    say(f"codec {artifact.key}: bound {artifact.result.details['bound']:.4g}, {share:.1%} of coordinates clipped")
    say(f"  {artifact.folder}")


def determined_by(ws: Workspace) -> dict[str, object]:
    """Everything the codec depends on."""
    noise_bits = ws.config.mechanism.bits if ws.config.codec.train_noise_mu is not None else None
    return {
        "model": ws.model_key,
        "codec": asdict(ws.config.codec),
        "noise_bits": noise_bits,
        "data": ws.public.fingerprint,
        "seed": ws.config.seed,
        **training.determined_by(ws.config.trainer, full_precision=True),
    }


def _initial(ws: Workspace) -> LinearCodec:
    """Projection before training, with its bound set on the scale of its own codes."""
    config = ws.config.codec
    dim = config.dim or default_dim(ws.llm.hidden_size)
    if config.init == "pca":
        codec = pca_codec(ws.embedding_table, ws.frequencies, dim)
    else:
        torch.manual_seed(ws.config.seed)
        codec = LinearCodec(ws.llm.hidden_size, dim, bound=1.0)
    codec.to(ws.device)
    if config.bound is None:
        codec.calibrate_bound(ws.embedding_table, ws.frequencies, config.bound_quantile)
    else:
        codec.bound.fill_(config.bound)
    return codec


def _build(ws: Workspace, folder: Path) -> Outcome:
    config = ws.config.codec
    codec = _initial(ws)
    outcome = Outcome()
    if config.steps:
        module = CodecTraining(ws.llm, codec, config, bits=ws.config.mechanism.bits, seed=ws.config.seed)
        result = training.fit(
            module,
            ws.public,
            ws.config.trainer,
            folder,
            logger=ws.logger("codec"),
            # Its numbers decide what is released: the same codec, and calibrations, at every training precision.
            full_precision=True,
        )
        outcome.history = result.history
        outcome.metrics["val/perplexity"] = Estimate(value=result.best, n=ws.config.data.validation_blocks)
    vocabulary = ws.llm.vocab_size
    share = codec.clipped_share(ws.embedding_table, ws.frequencies)
    outcome.metrics["clipped_share"] = Estimate(value=share, n=vocabulary * codec.dim)
    outcome.details = {"bound": float(codec.bound), "dim": codec.dim, "hidden_size": ws.llm.hidden_size}
    codec.save(folder / WEIGHTS)
    return outcome
