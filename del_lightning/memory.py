"""What a run will take of each device's memory, worked out before any weight is loaded.

The model's own code runs with PyTorch's fake tensors, which have shapes and no content, and what autograd would keep
for the backward pass is added up. What is done with a finished model is in :mod:`del_lightning.inference_memory`.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from del_lightning import ranks
from del_lightning.config import SND, Config
from del_lightning.errors import ConfigError
from del_lightning.inference_memory import Planner, Work
from del_lightning.llm import decoder_layers, quiet
from del_lightning.methods.factory import CLASSES, built, default_value
from del_lightning.modules.denoiser import Denoiser
from del_lightning.passes import Passes
from del_lightning.precision import with_dtype

GIB = 1 << 30
STATE = 16
"""Bytes of one number that Adam trains: itself, its gradient and two moments, float32."""
CONTEXT = GIB
"""What CUDA and its libraries take of a device before the first tensor."""
PROCESS = GIB // 2
"""What a process on a CPU gathers as it runs: libraries that are loaded late, and buffers that are never given back."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device while the largest training runs, and on the first one while the rest is done.

    What is held of a corpus is not in it, nor a second language model on the user's device.

    Attributes:
        weights: The frozen model, or this device's share of it and two whole layers.
        whole: The frozen model, which lies on the first device from calibration to evaluation.
        activations: What is kept for the backward pass, and the gradient of its largest tensor.
        table: Embeddings of the whole vocabulary in float32.
        context: Taken by libraries, the device's own or those of a process on a CPU.
        available: Free on each device now.
        width: Of a token's embedding.
        trained: Weights, gradients and Adam's two moments of a denoiser or adapter; those of a soft prompt and a codec
            are too small to count.
        validation: What a batch of validation holds, where that is more than the activations.
        validated_by: Setting of that batch's rows.
        works: What is done with the finished model, on the first device.
        unknown: What could not be worked out, and is not in the others.
    """

    weights: int
    whole: int
    activations: int
    table: int
    context: int
    available: int
    width: int = 0
    trained: int = 0
    validation: int = 0
    validated_by: str = "data.eval_batch_size"
    works: tuple[Work, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def training(self) -> int:
        """Bytes while something trains."""
        return self.weights + self._batch + self.table + self.context + self.trained

    @property
    def _batch(self) -> int:
        return max(self.activations, self.validation)

    @property
    def alone(self) -> int:
        """Bytes of the first device while it holds all of the model; what is attacked or written comes on top."""
        return self.whole + self.table + self.context

    @property
    def fits_alone(self) -> bool:
        """Whether one device can hold the whole model."""
        return self.alone <= self.available

    def summary(self) -> str:
        """One line for people."""
        free = _gib(self.available)
        line = f"memory: {_gib(self.training)} of {free} free on each device while training ({self.parts})"
        named = [f"{_gib(self.alone + work.size)} for {work.what}" for work in self._largest()]
        if named:
            line += f"; on the first device {', '.join(named)}"
        return f"{line}; not known: {', '.join(self.unknown)}" if self.unknown else line

    def _largest(self) -> list[Work]:
        """The largest of each kind of work."""
        return [
            max((work for work in self.works if work.kind == kind), key=lambda work: work.size)
            for kind in dict.fromkeys(work.kind for work in self.works)
        ]

    @property
    def parts(self) -> str:
        """What :attr:`training` is the sum of."""
        name = "activations" if self.activations >= self.validation else "validation"
        parts = {"weights": self.weights, name: self._batch, "embedding table": self.table}
        parts |= {name: size for name, size in self._not_always().items() if size}
        return ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())

    def _not_always(self) -> dict[str, int]:
        return {"denoiser or adapter": self.trained, "libraries": self.context}


@dataclass(frozen=True)
class _Training:
    """A step of one training.

    Attributes:
        rows: Sequences.
        tokens: Of each.
        rank: Of an adapter in the language model; 0: there is none.
        denoises: Whether a denoiser trains before the language model.
    """

    rows: int
    tokens: int
    rank: int = 0
    denoises: bool = False


def plan(config: Config, architecture: PreTrainedConfig, device: torch.device) -> MemoryPlan:
    """Work out what this configuration's training takes, and what its stages do besides.

    Args:
        config: Model, data and batch sizes, devices and strategy.
        architecture: The language model's ``config.json``.
        device: One of those that train.
    """
    config = with_dtype(config, device)
    trainer = config.trainer
    model = _Model(architecture.to_json_string(use_diff=False), config.model.dtype, architecture)
    found = _measured(model, tuple(_trainings(config)), recompute=trainer.activation_checkpointing)
    planner, together = Planner(config, _passes(model)), trainer.devices * trainer.num_nodes
    validation = planner.validation()
    return MemoryPlan(
        weights=found.spread(together) if together > 1 and trainer.strategy == "fsdp" else found.whole,
        whole=found.whole,
        activations=found.activations,
        table=4 * found.table,
        context=CONTEXT if device.type == "cuda" else PROCESS,
        available=_available(device) // (1 if device.type == "cuda" else trainer.devices),
        width=found.width,
        trained=found.trained,
        validation=0 if validation is None else validation.size,
        validated_by=MemoryPlan.validated_by if validation is None else validation.setting,
        works=tuple(_works(config, planner)),
        unknown=tuple(dict.fromkeys(planner.unknown)),
    )


@dataclass(frozen=True)
class _Model:
    """A language model without its weights, equal to another of the same ``config.json`` and type of numbers."""

    text: str
    dtype: str
    architecture: PreTrainedConfig = field(compare=False)


@dataclass(frozen=True)
class _Measured:
    """Bytes of a model and of its largest training.

    Attributes:
        whole: Parameters and buffers.
        layers: Those of every decoder layer; None where there are none to spread.
        table: Numbers of the embedding table.
        width: Of a token's embedding.
        activations: As in :class:`MemoryPlan`.
        trained: As in :class:`MemoryPlan`.
    """

    whole: int
    layers: tuple[int, ...] | None
    table: int
    width: int
    activations: int
    trained: int

    def spread(self, devices: int) -> int:
        """Bytes of one device's share: its part of every layer, two whole ones, and all that is in no layer."""
        if self.layers is None:
            return self.whole
        return self.whole - sum(self.layers) + math.ceil(sum(self.layers) / devices) + 2 * max(self.layers)


@lru_cache(maxsize=64)
def _measured(model: _Model, trainings: tuple[_Training, ...], *, recompute: bool) -> _Measured:
    """Takes seconds, and the jobs of a multirun mostly train alike."""
    with FakeTensorMode(), quiet():
        fake = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            model.architecture, dtype=getattr(torch, model.dtype)
        )
        fake.requires_grad_(False)
        activations, trained = max((_taken(fake, one, recompute=recompute) for one in trainings), key=sum)
    layers = decoder_layers(fake)
    return _Measured(
        whole=_bytes(fake),
        layers=None if layers is None else tuple(_bytes(layer) for layer in layers),
        table=_table(fake).numel(),
        width=_table(fake).shape[1],
        activations=activations,
        trained=trained,
    )


@lru_cache(maxsize=4)
def _passes(model: _Model) -> Passes:
    return Passes(model.architecture, getattr(torch, model.dtype))


def _works(config: Config, planner: Planner) -> Iterator[Work]:
    """What the stages that this run passes do besides training."""
    stage = config.stage.name
    yield from planner.preparation()
    if stage not in ("codec", "transfer") and _searches(config):  # `transfer.mus` are given
        yield from planner.calibration()
    if stage in ("attack", "pipeline", "report"):
        yield from planner.attacks()
    if stage in ("evaluate", "transfer", "pipeline", "report"):
        yield from planner.evaluation()


def _searches(config: Config) -> bool:
    """Whether a privacy parameter is to be calibrated."""
    given = partial(default_value, baseline=config.baseline, mechanism=config.mechanism)
    return any(CLASSES[name].parameter is not None and given(name) is None for name in built(config))


def check(config: Config, architecture: PreTrainedConfig, device: torch.device) -> MemoryPlan:
    """The plan, if it can work.

    Raises:
        ConfigError: The device cannot hold it.
    """
    found = plan(config, architecture, device)
    if found.training > found.available:
        if device.type == "cpu":
            _check_processes(config, architecture, found)
        raise ConfigError(
            f"`model.name` must fit on each device: {config.model.name} needs {_gib(found.training)} to train "
            f"({found.parts}), got {_gib(found.available)} free; {_advice(config, found)}"
        )
    if not found.fits_alone and config.stage.name not in ("prompt", "codec"):
        raise ConfigError(
            f"`stage` must be codec or prompt where no device holds the model alone: {config.model.name} needs "
            f"{_gib(found.alone)}, got {_gib(found.available)} free"
        )
    work = max(found.works, key=lambda work: work.size, default=None)
    # A CPU's processes share its memory: all of them hold the model, and the first alone does the work.
    processes = config.trainer.devices if device.type == "cpu" else 1
    needed, free = processes * found.alone, processes * found.available
    if work is not None and found.fits_alone and needed + work.size > free:
        place = "on the first device" if processes == 1 else f"beside the models of {processes} processes"
        raise ConfigError(
            f"`{work.setting}` must ask for less: {work.what} takes {_gib(needed + work.size)} {place} (weights "
            f"{_gib(processes * found.whole)}, embedding table {_gib(processes * found.table)}, the rest "
            f"{_gib(work.size)}), got {_gib(free)} free"
        )
    # Asked once a machine: when its other processes come to this, the first may hold its copy already.
    if not found.fits_alone and device.type == "cuda" and ranks.local_rank() == 0:
        _check_main_memory(config, found)
    return found


def _check_processes(config: Config, architecture: PreTrainedConfig, found: MemoryPlan) -> None:
    """The processes of a CPU share its memory, which fewer of them may have enough of."""
    cpu, devices = torch.device("cpu"), config.trainer.devices

    def fits(fewer: int) -> bool:
        one = plan(replace(config, trainer=replace(config.trainer, devices=fewer)), architecture, cpu)
        return one.training <= one.available

    most = next((fewer for fewer in range(_available(cpu) // found.training, 0, -1) if fits(fewer)), 0)
    if 0 < most < devices:
        raise ConfigError(
            f"`trainer.devices` must be at most {most}, the processes that this machine has memory for: each needs "
            f"{_gib(found.training)} ({found.parts}) of {_gib(_available(cpu))} free, got {devices}"
        )


def _check_main_memory(config: Config, found: MemoryPlan) -> None:
    """Each process of a machine has the whole model in main memory before, between and after trainings."""
    needed, free = config.trainer.devices * found.whole, _available(torch.device("cpu"))
    if needed > free:
        raise ConfigError(
            f"`trainer.devices` must be so few that every process holds the model in main memory: {config.model.name} "
            f"needs {_gib(found.whole)} for each of {config.trainer.devices}, got {_gib(free)} free"
        )


def _taken(model: PreTrainedModel, training: _Training, *, recompute: bool) -> tuple[int, int]:
    """Bytes kept for the backward pass, and those of what trains, if that is an adapter or a denoiser."""
    denoiser = _denoiser(_table(model).shape[1]) if training.denoises else None
    with _adapter(model, training.rank) as adapter:
        kept = kept_for_backward(model, training.rows, training.tokens, recompute=recompute, denoiser=denoiser)
        numbers = sum(weight.numel() for weight in adapter)
    return kept, STATE * (numbers + (0 if denoiser is None else sum(one.numel() for one in denoiser.parameters())))


def _denoiser(width: int) -> Denoiser:
    """A denoiser of fake tensors, made without content first: torch copies its layers, and fake ones do not bear it."""
    with unset_fake_temporarily(), torch.device("meta"):
        denoiser = Denoiser(width)
    for module in denoiser.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype)))
    return denoiser


@contextmanager
def _adapter(model: PreTrainedModel, rank: int) -> Iterator[list[nn.Parameter]]:
    """A low-rank adapter of fake tensors where PEFT would put one: PEFT itself cannot be built of them.

    Nothing is adapted where PEFT is missing or does not know the architecture; the training refuses that itself.
    """
    weights: list[nn.Parameter] = []

    def adapt(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down = nn.Parameter(torch.empty(rank, args[0].shape[-1]))
        up = nn.Parameter(torch.empty(output.shape[-1], rank))
        weights.extend((down, up))
        change = F.linear(F.linear(args[0].to(down.dtype), down), up)
        return output + change.to(output.dtype)

    hooks = [module.register_forward_hook(adapt) for module in _adapted(model)] if rank else []
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()


def _adapted(model: PreTrainedModel) -> list[nn.Module]:
    """The projections that PEFT adapts of itself."""
    if find_spec("peft") is None:
        return []
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    names = KNOWN.get(str(model.config.model_type), ())
    return [module for path, module in model.named_modules() if path.rpartition(".")[2] in names]


def kept_for_backward(
    model: PreTrainedModel, rows: int, tokens: int, *, recompute: bool = False, denoiser: Denoiser | None = None
) -> int:
    """Bytes that autograd keeps of ``rows`` sequences of ``tokens``, and those of its largest tensor's gradient.

    An upper limit: every position's logits are counted, and attention weights, which fused kernels never store.

    Args:
        model: Made of fake tensors; call this in their mode.
        rows: Sequences at a time.
        tokens: Of each sequence.
        recompute: Of a layer only its input is kept, and one layer at a time is computed again.
        denoiser: Made of fake tensors; trains on what the model reads.
    """
    table = _table(model)
    inputs = torch.empty(rows, tokens, table.shape[1], dtype=table.dtype, requires_grad=True)
    kept: dict[int, int] = {}
    with (
        torch.autograd.graph.saved_tensors_hooks(partial(_count, kept), _as_it_is),
        _sizes_of_layers(model, kept) as each,
    ):
        read = inputs
        if denoiser is not None:
            real = torch.ones(rows, tokens, dtype=torch.bool)
            read = inputs + denoiser(inputs, real).to(inputs.dtype)
        logits = model(inputs_embeds=read, use_cache=False).logits.float()
        # Bound to a name: what a graph keeps is freed with it, and the next tensor would get its number.
        _loss = F.cross_entropy(logits.flatten(0, 1), torch.zeros(rows * tokens, dtype=torch.long))
    total, gradient = sum(kept.values()), max(kept.values(), default=0)
    if recompute and each:
        total += len(each) * inputs.nbytes + max(each) - sum(each)
    return total + gradient


def _table(model: PreTrainedModel) -> Tensor:
    return cast(nn.Embedding, model.get_input_embeddings()).weight


def _number(tensor: Tensor) -> int:
    """Of a tensor's storage, which views share."""
    return cast(int, tensor.untyped_storage()._cdata)


def _count(kept: dict[int, int], tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
        kept[_number(tensor)] = tensor.untyped_storage().nbytes()
    return tensor


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _sizes_of_layers(model: nn.Module, kept: Mapping[int, int]) -> Iterator[list[int]]:
    """Bytes that each decoder layer added to ``kept``, in the order they ran."""
    sizes: list[int] = []

    def enter(*_: Any) -> None:
        sizes.append(-sum(kept.values()))

    def leave(*_: Any) -> None:
        sizes[-1] += sum(kept.values())

    layers = decoder_layers(model) or ()
    hooks = [
        hook
        for layer in layers
        for hook in (layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave))
    ]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def _trainings(config: Config) -> Iterator[_Training]:
    """What this configuration may train."""
    prompt, nlu = config.prompt, config.nlu
    if config.stage.name == "nlu":
        tokens = prompt.virtual_tokens + 2 * nlu.sentence_tokens
        yield _Training(prompt.batch_size, tokens, rank=nlu.lora.rank if "lora" in nlu.ways else 0)
        if set(nlu.ways) & set(SND):
            yield _Training(nlu.denoiser.batch_size, tokens, denoises=True)
    else:
        yield _Training(prompt.batch_size, prompt.virtual_tokens + config.data.train_tokens, rank=config.adapter.rank)
    if config.codec.steps:
        yield _Training(config.codec.batch_size, config.codec.sequence_tokens)


def _bytes(module: nn.Module) -> int:
    """Of its parameters and buffers; tied ones count once."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _advice(config: Config, found: MemoryPlan) -> str:
    trainer = config.trainer
    ways = ["smaller batches with trainer.accumulate_grad_batches"]
    if found.validation > found.activations:
        ways = [f"a smaller {found.validated_by}"]
    if not trainer.activation_checkpointing:
        ways.append("trainer.activation_checkpointing=true")
    if trainer.strategy != "fsdp":
        ways.append("trainer.strategy=fsdp over several trainer.devices")
    return "try " + " or ".join(ways)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
