"""The attackers of ``attack.suite``: what determines each one's success, and how it is built for a front-end."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from del_lightning.artifacts import write_json
from del_lightning.attacks import Attack, BayesOptimal, NearestNeighbour
from del_lightning.attacks.input_inference import CausalPredictor, InputInference, MaskedPredictor
from del_lightning.attacks.inverter import Inverter, TrainedInverter
from del_lightning.attacks.language_model import BigramPrior, LanguageModelPrior, tune
from del_lightning.attacks.server_model import ServerModel
from del_lightning.attacks.server_model import tune as tune_share
from del_lightning.methods.factory import NEEDS_CODEC
from del_lightning.modules import InverterTraining
from del_lightning.seeding import stream_seed
from del_lightning.stages import prompt as prompt_stage
from del_lightning.stages import training
from del_lightning.stages.setting import Setting, build_method
from del_lightning.stages.workspace import Workspace

TUNING = "tuning.json"
"""Every mixture that the contextual attacker tried, with its hits."""


@dataclass(frozen=True)
class Attacker:
    """One attacker of the suite.

    Attributes:
        name: Its name in the configuration.
        prompts: Test prompts that it reads, from the first; None means all.
        single: Whether it looks at one position at a time, so that the certified bound holds for it.
        settings: JSON-able settings that its success depends on.
        make: Builds (and trains or tunes, where needed) the attack on a setting; the folder survives interruptions.
        trains: Whether ``make`` trains with Lightning, which all ranks do together.
        around: What must be in place while it attacks.
    """

    name: str
    prompts: int | None
    single: bool
    settings: dict[str, Any]
    make: Callable[[Setting, Path], Attack]
    trains: bool = False
    around: Callable[[], AbstractContextManager[object]] = nullcontext

    def determined_by(self, setting: Setting) -> dict[str, Any]:
        """The attacker's part of an artefact's key."""
        return {"name": self.name, **self.settings}


def attackers(ws: Workspace, setting: Setting) -> list[Attacker]:
    """The attackers of this configuration that a setting gives something to work on, in its order."""
    names = [name for name in ws.config.attack.suite if name != "nearest-code" or setting.method in NEEDS_CODEC]
    return [_attacker(ws, name, setting) for name in names]


def _attacker(ws: Workspace, name: str, setting: Setting) -> Attacker:
    config = ws.config.attack

    def simple(settings: dict[str, Any], make: Callable[[], Attack]) -> Attacker:
        return Attacker(name, None, True, settings, lambda setting, folder: make())

    makers: dict[str, Callable[[], Attacker]] = {
        "nearest": lambda: simple({"metric": config.metric}, lambda: NearestNeighbour(config.metric, config.chunk)),
        "nearest-l2": lambda: simple({}, lambda: NearestNeighbour("l2", config.chunk)),
        "nearest-code": lambda: simple({}, lambda: NearestNeighbour("code", config.chunk)),
        "bayes": lambda: simple({"prior": "training split"}, lambda: BayesOptimal(ws.prior, config.chunk)),
        "bigrams": lambda: Attacker(name, config.prompts, False, {"prior": "training split"}, partial(_bigrams, ws)),
        "language-model": lambda: _language_model(ws),
        "server-model": lambda: _server_model(ws, setting),
        "input-inference": lambda: _input_inference(ws),
        "inverter": lambda: _inverter(ws),
    }
    return makers[name]()


def _language_model(ws: Workspace) -> Attacker:
    """The contextual attacker, its mixture tuned on validation prompts for every setting anew."""
    config = ws.config.attack
    prompt = prompt_stage.ensure(ws, Setting("clean", ws.title("clean"))) if config.adapted_prior else None
    settings = {
        "beam": config.beam,
        "prior_weights": config.prior_weights,
        "tuning_prompts": config.tuning_prompts,
        "tuning_seed": ws.config.seed,
        "soft_prompt": None if prompt is None else prompt.key,
    }
    make = partial(_tuned, ws)
    # Whatever the server trained for clean prompts is the attacker's too.
    around = partial(prompt_stage.adapted, ws, prompt)
    return Attacker("language-model", config.prompts, False, settings, make, around=around)


def _server_model(ws: Workspace, setting: Setting) -> Attacker:
    """The server of this very setting: its soft prompt and adapter, where it trains them, on what it decodes."""
    config = ws.config.attack
    prompt = prompt_stage.ensure(ws, setting) if setting in prompt_stage.prompted(ws) else None
    settings = {
        "tuning_prompts": config.tuning_prompts,
        "tuning_seed": ws.config.seed,
        "soft_prompt": None if prompt is None else prompt.key,
    }

    def make(setting: Setting, folder: Path) -> Attack:
        soft_prompt = None if prompt is None else prompt_stage.load(ws, setting)
        prefix = ws.data.prompts()[0].prefix_ids
        attack = ServerModel(ws.llm, ws.prior, ws.bigrams, prefix_ids=prefix, soft_prompt=soft_prompt)
        sequences = ws.data.private_sequences("validation", config.tuning_prompts)
        write_json(folder / TUNING, tune_share(attack, build_method(ws, setting), sequences, ws.config.seed))
        return attack

    around = partial(prompt_stage.adapted, ws, prompt)
    return Attacker("server-model", config.prompts, False, settings, make, around=around)


def _input_inference(ws: Workspace) -> Attacker:
    """The attacker that masks every token of what the Bayes-optimal one reads, and lets a language model fill it."""
    config = ws.config.attack

    def make(setting: Setting, folder: Path) -> Attack:
        predictor = (
            CausalPredictor(ws.llm, ws.data.prompts()[0].prefix_ids)
            if config.masked_model is None
            else MaskedPredictor.load(config.masked_model, ws.llm)
        )
        return InputInference(BayesOptimal(ws.prior, config.chunk), predictor)

    return Attacker("input-inference", config.prompts, False, {"masked_model": config.masked_model}, make)


def _inverter(ws: Workspace) -> Attacker:
    """The attacker that is trained through each front-end's own mechanism, on the training split."""
    make = partial(_trained, ws)
    settings = {
        **asdict(ws.config.inverter),
        "seed": ws.config.seed,
        **training.determined_by(ws.config.trainer, full_precision=True),
    }
    return Attacker("inverter", ws.config.attack.prompts, False, settings, make, trains=True)


@torch.enable_grad()  # The stage attacks without gradients; this attacker trains first.
def _trained(ws: Workspace, setting: Setting, folder: Path) -> Attack:
    config = ws.config.inverter
    data = ws.training_text(config.batch_size, config.sequence_tokens)
    torch.manual_seed(stream_seed("inverter", ws.config.seed))
    inverter = Inverter(ws.embedding_table, ws.prior, config, ws.bigrams if config.neighbours else None)
    module = InverterTraining(build_method(ws, setting), inverter, config, ws.config.seed)
    module.keep_the_better(training.fit(module, data, ws.config.trainer, folder, full_precision=True).best)
    return TrainedInverter(inverter)


def _bigrams(ws: Workspace, setting: Setting, folder: Path) -> Attack:
    """Which token follows which, and nothing longer: exact, and cheap enough for every method."""
    return BigramPrior(ws.prior, ws.bigrams)


def _tuned(ws: Workspace, setting: Setting, folder: Path) -> Attack:
    config = ws.config.attack
    attack = LanguageModelPrior(
        ws.llm,
        ws.prior,
        prefix_ids=ws.data.prompts()[0].prefix_ids,
        soft_prompt=prompt_stage.load(ws, Setting("clean", ws.title("clean"))) if config.adapted_prior else None,
        bigrams=ws.bigrams,
        beam=config.beam,
    )
    sequences = ws.data.private_sequences("validation", config.tuning_prompts)
    tokens = torch.tensor([token for sequence in sequences for token in sequence], device=ws.device)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tuned, evidence = tune(
        attack, build_method(ws, setting), tokens, lengths, weights=config.prior_weights, seed=ws.config.seed
    )
    write_json(folder / TUNING, evidence)
    return tuned
