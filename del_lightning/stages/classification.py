"""One classifier behind one front-end under one seed: trained, evaluated, and kept as an artefact.

Each way to classify is a method of :class:`_Run`. All of them meet the same training examples, the
same reported examples and, under equal seeds, the very releases that the attacks read.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from del_lightning.artifacts import Artifact, Outcome, write_json
from del_lightning.config import SND
from del_lightning.data.glue import GlueData, GlueDataModule, glue_task
from del_lightning.methods import Method
from del_lightning.metrics import over_examples
from del_lightning.modules import (
    ClassifierTraining,
    CleanStates,
    DenoisedSplit,
    Denoiser,
    DenoiserTraining,
    Head,
    ServerDenoiser,
    UserDenoised,
    UserDenoiser,
    Verbaliser,
    fit_head,
    low_rank_adapter,
)
from del_lightning.modules.base import FrozenBackboneModule
from del_lightning.prompt import SoftPrompt
from del_lightning.report.schema import Estimate
from del_lightning.seeding import stream_seed
from del_lightning.split import SplitModel
from del_lightning.stages import tracking, training
from del_lightning.stages.setting import Setting, build_method, method_key
from del_lightning.stages.settings import settings
from del_lightning.stages.workspace import Workspace

SCORES = "scores.json"
"""Probability of class 1 and true class of every reported example."""
HEAD, DENOISER = "head.safetensors", "denoiser.safetensors"


@dataclass(frozen=True)
class Front:
    """A front-end at one privacy level, and the workspace that builds it.

    Attributes:
        name: As ``nlu.fronts`` has it, for instance ``del@2``.
        bits: Bits a coordinate where the name gives them.
        view: Workspace with the task as its data and this front-end as its only method.
        setting: The privacy level.
    """

    name: str
    bits: int | None
    view: Workspace
    setting: Setting

    def method(self) -> Method:
        """The front-end itself."""
        return build_method(self.view, self.setting)


class NluTask:
    """What the runs of one task share: its data, a workspace a front-end, the clean states that denoisers learn."""

    def __init__(self, ws: Workspace) -> None:
        """``ws`` brings model, public corpus and configuration."""
        self.ws, self.config = ws, ws.config.nlu
        self.data = GlueData(glue_task(self.config.task), ws.llm.tokenizer, self.config, ws.config.data.root)
        self._views: dict[str, Workspace] = {}
        self._clean: dict[tuple[str, int], CleanStates] = {}

    def fronts(self, name: str) -> list[Front]:
        """A front-end of the configuration at every level that ``targets`` and ``matching`` ask for."""
        bits = _bits(name)
        suffix = "" if bits is None else f", {bits} bit" + ("s" if bits > 1 else "")
        view = self.view(name)
        return [Front(name, bits, view, replace(setting, title=setting.title + suffix)) for setting in settings(view)]

    def view(self, name: str) -> Workspace:
        """The workspace in which a front-end is calibrated and attacked on the task's own text."""
        if name not in self._views:
            self._views[name] = self._view(name)
        return self._views[name]

    def _view(self, name: str) -> Workspace:
        config, bits = self.ws.config, _bits(name)
        mechanism = config.mechanism if bits is None else replace(config.mechanism, bits=bits)
        # Attacks read the releases of the first seed; so it must be the first of the classifiers' seeds.
        evaluate = replace(config.evaluate, seeds=list(self.config.seeds))
        methods = [name.partition("@")[0]]
        view = Workspace(replace(config, methods=methods, mechanism=mechanism, evaluate=evaluate), self.ws.overrides)
        view.llm, view.public, view.model_key = self.ws.llm, self.ws.public, self.ws.model_key
        # Calibration and attacks ask only for prompts, private tokens and counts, which any data can answer.
        view.data = cast(Any, self.data)
        return view

    def clean(self, part: str, seed: int) -> CleanStates:
        """Clean pooled outputs of a part; only the training part depends on the seed."""
        name = (part, seed if part == "train" else 0)
        if name not in self._clean:
            self._clean[name] = CleanStates(SplitModel(self.ws.llm))
        return self._clean[name]


def _bits(name: str) -> int | None:
    _, _, bits = name.partition("@")
    return int(bits) if bits else None


def ensure(task: NluTask, variant: str, front: Front, seed: int) -> Artifact:
    """Return a run's artefact, training and evaluating if it does not exist."""
    determined_by = {
        "model": task.ws.model_key,
        "method": method_key(front.view, front.setting),
        "data": task.data.fingerprint,
        "variant": variant,
        "schedule": _schedule(task, variant),
        "seed": seed,
        **training.determined_by(task.ws.config.trainer),
    }

    def build(folder: Path) -> Outcome:
        return _Run(task, variant, front, seed, folder).outcome()

    # A head alone learns from cached states, outside of Lightning's Trainer.
    return task.ws.store.get("nlu", determined_by, build, together=variant != "linear")


def read_scores(artifact: Artifact) -> dict[str, list[float]]:
    """Scores and labels of the reported examples, in their order."""
    content: dict[str, list[float]] = json.loads((artifact.folder / SCORES).read_text(encoding="utf-8"))
    return content


def _schedule(task: NluTask, variant: str) -> dict[str, Any]:
    """The settings that a way to classify depends on."""
    config = task.config
    found: dict[str, Any] = {"batch": config.eval_batch_size, "order": "similar lengths together"}
    if variant in ("prompt", "lora", "snd-prompt"):
        found["prompt"] = asdict(task.ws.config.prompt)
    if variant in ("prompt", "lora"):
        found["head"] = config.head
        found["start"] = "counts"  # what had less to show than its first guess was reported all the same
    if variant == "lora":
        found["lora"] = asdict(config.lora)
    if variant == "snd-prompt":
        found["rates"] = "of prompt and denoiser"  # it was the denoiser's for both
    if variant in SND:
        found["denoiser"] = asdict(config.denoiser)
    if variant in ("linear", *SND) or (variant in ("prompt", "lora") and config.head == "linear"):
        found["draws"] = config.draws  # a head learns from cached states
    return found


class _Run:
    """Builds one artefact.

    Args:
        task: What is shared.
        variant: Way to classify.
        front: Front-end.
        seed: Of training examples, initial weights and noise.
        folder: Survives interruptions.
    """

    def __init__(self, task: NluTask, variant: str, front: Front, seed: int, folder: Path) -> None:
        self.task, self.variant, self.seed, self.folder = task, variant, seed, folder
        self.llm, self.method, self.device = task.ws.llm, front.method(), task.ws.device
        place = tracking.place(front.setting.method, front.setting.level, front.bits)
        self.part = f"nlu/{tracking.word(variant)}/{place}/seed_{seed}"
        self.setting = front.setting
        self.steps: int | None = None
        self.history: list[dict[str, float]] = []
        self.trained = {"server": 0, "user": 0}
        """Numbers that were trained, by who holds them."""

    def outcome(self) -> Outcome:
        """Train, evaluate, record."""
        torch.manual_seed(stream_seed("nlu", self.variant, self.seed))
        ways = {
            "linear": self._linear,
            "prompt": self._prompt,
            "lora": self._lora,
            "snd": self._snd,
            "snd-prompt": self._snd_prompt,
            "snd-user": self._snd_user,
            "local": self._local,
        }
        with ways[self.variant]() as (model, head):
            scores, labels = self._scores(model, head)
        figures = over_examples([scores.tolist()], labels.tolist())
        write_json(self.folder / SCORES, {"scores": scores.tolist(), "labels": labels.tolist()})
        details = {
            "setting": asdict(self.setting),
            "variant": self.variant,
            "trained": self.trained,
            "steps": self.steps,
        }
        metrics: dict[str, Estimate] = dict(figures)
        return Outcome(metrics=metrics, details=details, history=self.history)

    # --- ways to classify, end to end --------------------------------------------------------------------------------

    @contextmanager
    def _linear(self) -> "Iterator[Classifier]":
        """A linear head on cached states of the frozen model, nothing else."""
        split = SplitModel(self.llm, self.method)
        yield split, self._cached_head(split, hidden=False)

    @contextmanager
    def _prompt(self) -> "Iterator[Classifier]":
        """A soft prompt and a head, with the task's loss through the noise."""
        split = SplitModel(self.llm, self.method, self._soft_prompt())
        split.requires_grad_(False)
        assert split.prompt is not None
        split.prompt.requires_grad_(True)
        yield split, self._tuned(split, split.prompt.embeddings.numel(), self.task.ws.config.prompt.learning_rate)
        split.prompt.save(self.folder, self.llm)

    @contextmanager
    def _lora(self) -> "Iterator[Classifier]":
        """A low-rank adapter and a head, on the soft prompt's schedule."""
        with low_rank_adapter(self.llm, self.task.config.lora, self.seed) as adapter:
            split = SplitModel(self.llm, self.method)
            yield split, self._tuned(split, adapter.parameters, self.task.config.lora.learning_rate)
            adapter.save(self.folder)

    # --- ways to classify in the SnD framework -----------------------------------------------------------------------

    @contextmanager
    def _snd(self) -> "Iterator[Classifier]":
        """The server denoises, then a fully connected classifier."""
        yield self._denoised(SplitModel(self.llm, self.method))

    @contextmanager
    def _snd_prompt(self) -> "Iterator[Classifier]":
        """The same with a soft prompt that the denoising loss trains too."""
        split = SplitModel(self.llm, self.method, self._soft_prompt())
        yield self._denoised(split)
        assert split.prompt is not None
        split.prompt.save(self.folder, self.llm)

    @contextmanager
    def _snd_user(self) -> "Iterator[Classifier]":
        """SnD itself: the user denoises the server's pooled output, and classifies it."""
        yield self._user_denoised(server=True)

    @contextmanager
    def _local(self) -> "Iterator[Classifier]":
        """The user's half alone, without any server."""
        yield self._user_denoised(server=False)

    def _denoised(self, split: SplitModel) -> "Classifier":
        denoiser = ServerDenoiser(self.llm.hidden_size).to(self.device)
        model = DenoisedSplit(split, denoiser)
        self._train_denoiser(model, denoiser, "server")
        if split.prompt is not None:
            self.trained["server"] += split.prompt.embeddings.numel()
        return model.eval(), self._cached_head(model, hidden=True)

    def _user_denoised(self, *, server: bool) -> "Classifier":
        denoiser = UserDenoiser(self.llm.hidden_size).to(self.device)
        model = UserDenoised(SplitModel(self.llm, self.method), denoiser, server=server)
        self._train_denoiser(model, denoiser, "user")
        return model.eval(), self._cached_head(model, hidden=True)

    def _train_denoiser(self, model: DenoisedSplit | UserDenoised, denoiser: Denoiser, holder: str) -> None:
        config = self.task.config.denoiser
        clean = {part: self.task.clean(part, self.seed) for part in ("train", "validation")}
        if self.task.ws.config.trainer.strategy == "fsdp":
            self._know_all(clean)
        rate = self.task.ws.config.prompt.learning_rate
        self._fit(DenoiserTraining(model, clean, config, self.seed, rate), config.batch_size)
        self.trained[holder] += sum(parameter.numel() for parameter in denoiser.parameters())
        if self.task.config.keep_denoisers:
            state = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
            save_file(state, self.folder / DENOISER)

    def _know_all(self, clean: dict[str, CleanStates]) -> None:
        """Compute all targets while every rank has the whole model: later, ranks would run spread layers unequally."""
        for part, states in clean.items():
            for batch in self.task.data.batches(part, self.task.config.eval_batch_size, self.seed):
                states(batch.to(self.device))

    # --- parts -------------------------------------------------------------------------------------------------------

    def _soft_prompt(self) -> SoftPrompt:
        config = self.task.ws.config.prompt
        return SoftPrompt.from_text(config.init_text, config.virtual_tokens, self.llm)

    def _tuned(self, split: SplitModel, trained: int, rate: float) -> "Head | Verbaliser":
        """Train what in ``split`` requires a gradient, and the head, with the task's loss."""
        head = self._head(split)
        schedule = replace(self.task.ws.config.prompt, learning_rate=rate)
        self._fit(ClassifierTraining(split, head, schedule, self.seed), schedule.batch_size)
        self.trained["server"] += trained + sum(parameter.numel() for parameter in head.parameters())
        if isinstance(head, Head):
            head.save(self.folder / HEAD)
        return head.eval()

    def _head(self, split: SplitModel) -> "Head | Verbaliser":
        """What reads the last position.

        A linear head starts as the one that cached states alone teach: what comes on top is the gain of the soft prompt
        or adapter, and a denoiser's head has had no more steps.
        """
        if self.task.config.head == "verbaliser":
            return Verbaliser(self.task.data.word_ids).to(self.device)
        return self._fitted(split, Head(self.llm.hidden_size).to(self.device))

    def _cached_head(self, model: SplitModel | UserDenoised, *, hidden: bool) -> Head:
        """A head trained on states that are computed once a draw of noise, and kept with the artefact."""
        width = self.llm.hidden_size
        # A run that was resumed has drawn other numbers by now than one that was not.
        torch.manual_seed(stream_seed("nlu head weights", self.variant, self.seed))
        head = self._fitted(model, Head(width, width if hidden else None).to(self.device))
        head.save(self.folder / HEAD)
        holder = "user" if isinstance(model, UserDenoised) else "server"
        self.trained[holder] += sum(parameter.numel() for parameter in head.parameters())
        return head.eval()

    def _fitted(self, model: SplitModel | UserDenoised, head: Head) -> Head:
        """The head, trained on cached states of ``nlu.draws`` releases of the training examples."""
        draws = self.task.config.draws if self.method.stochastic else 1
        train = [self._states(model, "train", draw) for draw in range(draws)]
        states, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
        fit_head(head, (states, labels), self._states(model, "validation", 0), stream_seed("nlu head", self.seed))
        return head

    def _fit(self, module: FrozenBackboneModule, batch_size: int) -> training.Fit:
        data = GlueDataModule(self.task.data, batch_size, self.seed)
        ws = self.task.ws
        result = training.fit(module, data, ws.config.trainer, self.folder, logger=ws.logger(self.part))
        self.steps, self.history = result.steps, result.history
        return result

    @torch.no_grad()
    def _states(self, model: SplitModel | UserDenoised, part: str, draw: int) -> tuple[Tensor, Tensor]:
        """Pooled outputs (N, h), float32, and classes (N,) of a part under one draw of noise."""
        split = _split(model)
        found = []
        for batch in self.task.data.batches(part, self.task.config.eval_batch_size, self.seed):
            batch = batch.to(self.device)
            release = split.release_examples(batch, stream_seed("nlu states", self.seed, part, draw))
            found.append((model.pooled(batch, release).float(), batch.label))
        states, labels = zip(*found, strict=True)
        return torch.cat(states), torch.cat(labels)

    @torch.no_grad()
    def _scores(self, model: SplitModel | UserDenoised, head: Head | Verbaliser) -> tuple[Tensor, Tensor]:
        """Probability of class 1 and true class of every reported example (n,), under the seed's release."""
        split, found = _split(model), []
        for batch in self.task.data.batches("test", self.task.config.eval_batch_size):
            batch = batch.to(self.device)
            release = split.release_examples(batch, self.seed)
            if isinstance(model, UserDenoised):
                classes = head(model.pooled(batch, release))
            else:
                classes = head(*model.last(batch, release))
            found.append((batch.index, classes.softmax(dim=-1)[:, 1], batch.label))
        index, scores, labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        order = index.argsort()
        return scores[order], labels[order]


Classifier = tuple[SplitModel | UserDenoised, Head | Verbaliser]


def _split(model: SplitModel | UserDenoised) -> SplitModel:
    return model.split if isinstance(model, UserDenoised) else model
