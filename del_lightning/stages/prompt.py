"""Stage ``prompt``: train one soft prompt for every front-end, controls included, and an adapter if asked for.

A control with its own prompt shows how much of the gain is adaptation to the domain and how much is recovery of the
private prompt.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch

from del_lightning.artifacts import Artifact, Outcome
from del_lightning.callbacks import AttackMonitor, CommunicationMonitor, PrivacyMonitor
from del_lightning.config import AdapterConfig
from del_lightning.methods import DEL, Method
from del_lightning.modules import PromptTuning, low_rank_adapter
from del_lightning.prompt import SoftPrompt
from del_lightning.report.schema import Estimate
from del_lightning.split import SplitModel
from del_lightning.stages import codec as codec_stage
from del_lightning.stages import tracking, training
from del_lightning.stages.setting import Setting, build_method, method_key
from del_lightning.stages.settings import settings, soft_prompts
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say

ADAPTER = "adapter"
"""Folder of the low-rank adapter, in PEFT's format, beside the soft prompt's files."""


def ensure(ws: Workspace, setting: Setting) -> Artifact:
    """Return the setting's soft prompt, training it if it does not exist."""
    determined_by = {
        "model": ws.model_key,
        "method": method_key(ws, setting),
        "prompt": asdict(ws.config.prompt),
        "data": ws.data.fingerprint,
        "seed": ws.config.seed,
        **({"adapter": asdict(ws.config.adapter)} if ws.config.adapter.rank else {}),
        **training.determined_by(ws.config.trainer),
    }
    return ws.store.get("prompt", determined_by, lambda folder: _build(ws, setting, folder), together=True)


def load(ws: Workspace, setting: Setting) -> SoftPrompt:
    """Load the setting's trained prompt onto the workspace's device."""
    return SoftPrompt.load(ensure(ws, setting).folder).to(ws.device)


@contextmanager
def adapted(ws: Workspace, artifact: Artifact | None) -> Iterator[SoftPrompt | None]:
    """The soft prompt of an artefact, with the adapter that was trained with it in place until the context ends.

    Args:
        ws: Its language model is changed in place, and restored.
        artifact: Of this stage; None leaves the model as it is, without a soft prompt.
    """
    if artifact is None:
        yield None
        return
    settings = artifact.result.determined_by.get("adapter")
    with ExitStack() as stack:
        if settings is not None:
            adapter = stack.enter_context(low_rank_adapter(ws.llm, AdapterConfig(**settings), ws.config.seed))
            adapter.load(artifact.folder / ADAPTER)
        yield SoftPrompt.load(artifact.folder).to(ws.device)


def prompted(ws: Workspace) -> list[Setting]:
    """The settings of this configuration that get a soft prompt."""
    return [setting for setting in settings(ws) if True in soft_prompts(ws, setting)]


def run(ws: Workspace) -> None:
    """Train every prompt of the configuration."""
    for setting in prompted(ws):
        artifact = ensure(ws, setting)
        perplexity = artifact.result.metrics["val/perplexity"].value
        say(f"soft prompt for {setting.label}: validation perplexity {perplexity:.1f}  {artifact.folder}")


def _build(ws: Workspace, setting: Setting, folder: Path) -> Outcome:
    say(f"training the soft prompt for {setting.label}")
    config = ws.config.prompt
    method = build_method(ws, setting)
    # Training moves modules between devices; the prompt must not start on another one than the model.
    prompt = SoftPrompt.from_text(config.init_text, config.virtual_tokens, ws.llm)
    split = SplitModel(ws.llm, method, prompt)
    torch.manual_seed(ws.config.seed)
    with ExitStack() as stack:
        rank = ws.config.adapter.rank
        adapter = stack.enter_context(low_rank_adapter(ws.llm, ws.config.adapter, ws.config.seed)) if rank else None
        result = training.fit(
            PromptTuning(split, config, ws.config.seed, adapter, ws.config.adapter.learning_rate),
            ws.decoded_text(setting.method),
            ws.config.trainer,
            folder,
            callbacks=_monitors(ws, method),
            logger=ws.logger(f"soft_prompt/{tracking.place(setting.method, setting.level)}"),
        )
        if adapter is not None:
            adapter.save(folder / ADAPTER)
    prompt.save(folder, ws.llm)
    if isinstance(method, DEL):
        method.codec.save(folder / codec_stage.WEIGHTS)
    validation = Estimate(value=result.best, n=ws.config.data.validation_blocks)
    return Outcome(
        metrics={"val/perplexity": validation},
        details={"setting": asdict(setting), "steps": result.steps},
        history=result.history,
    )


def _monitors(ws: Workspace, method: Method) -> list[L.Callback]:
    """Privacy, communication and attack monitors of a training run."""
    block = ws.config.data.train_tokens
    longest = int(block * ws.config.data.split_ratio[1])
    monitors: list[L.Callback] = [PrivacyMonitor(longest, ws.config.evaluate.delta), CommunicationMonitor()]
    if ws.config.trainer.attack_every:
        attack = ws.config.attack
        monitors.append(AttackMonitor(ws.config.trainer.attack_every, attack.metric, attack.chunk))
    return monitors
