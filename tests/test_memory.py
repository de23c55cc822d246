"""The memory plan against what autograd really keeps, and its refusals."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config

from del_lightning import memory
from del_lightning.config import Config, DataConfig, LoraConfig, ModelConfig, PromptConfig, StageConfig, TrainerConfig
from del_lightning.errors import ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.memory import GIB, MemoryPlan, kept_for_backward, plan
from del_lightning.modules import Denoiser, low_rank_adapter

Factory = Callable[..., FrozenLLM]
CPU = torch.device("cpu")
ROWS, TOKENS = 3, 40
QWEN_7B = Qwen2Config(
    hidden_size=3584,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    intermediate_size=18944,
    vocab_size=152064,
    tie_word_embeddings=False,
)


def really_kept(llm: FrozenLLM) -> int:
    """Bytes that autograd keeps when the model really runs, weights aside, and the largest of them again."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in llm.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = torch.randn(ROWS, TOKENS, llm.hidden_size, dtype=llm.dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = llm.model(inputs_embeds=inputs, use_cache=False).logits.float()
        _loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.zeros(ROWS * TOKENS, dtype=torch.long))
    return sum(kept.values()) + max(kept.values())


def planned(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, *, recompute: bool = False) -> int:
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
        return kept_for_backward(model, ROWS, TOKENS, recompute=recompute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_what_is_planned_is_what_is_kept(tiny_llm: Factory, family: str, dtype: torch.dtype) -> None:
    llm = tiny_llm(family, layers=4, hidden=64, dtype=dtype)
    assert really_kept(llm) <= planned(llm.model.config, dtype) <= 1.4 * really_kept(llm)


def test_recomputing_keeps_one_layer_at_a_time(tiny_llm: Factory) -> None:
    shallow, deep = (tiny_llm(layers=layers, hidden=64).model.config for layers in (2, 10))
    a_layer = (planned(deep) - planned(shallow)) / 8
    inputs = 4 * ROWS * TOKENS * 64
    assert planned(deep, recompute=True) - planned(shallow, recompute=True) == pytest.approx(8 * inputs)
    assert planned(deep) - planned(deep, recompute=True) == pytest.approx(9 * a_layer - 10 * inputs, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_planned_as_peft_has_it(tiny_llm: Factory, family: str, dtype: torch.dtype) -> None:
    llm = tiny_llm(family, layers=4, hidden=64, dtype=dtype)
    without = planned(llm.model.config, dtype)
    with low_rank_adapter(llm, LoraConfig(rank=8), seed=0) as adapter:
        really, numbers = really_kept(llm), adapter.parameters
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(llm.model.config, dtype=dtype).requires_grad_(False)
        kept, trained = memory._taken(model, memory._Training(ROWS, TOKENS, rank=8), recompute=False)
    assert max(really, 1.02 * without) <= kept <= 1.4 * really
    assert trained == 16 * numbers


def test_a_denoiser_and_an_adapter_count(monkeypatch: pytest.MonkeyPatch, tiny_llm: Factory) -> None:
    with_memory(monkeypatch, 24)
    config, architecture = Config(), tiny_llm(hidden=64).model.config
    adapted = replace(config, adapter=replace(config.adapter, rank=8))
    assert plan(config, architecture, CPU).trained == 0
    assert plan(adapted, architecture, CPU).trained == 16 * sum(p.numel() for p in _lora(tiny_llm(hidden=64)))
    classified = replace(config, stage=StageConfig(name="nlu"))
    alone, denoised = (
        plan(replace(classified, nlu=replace(config.nlu, ways=ways)), architecture, CPU)
        for ways in (["prompt"], ["prompt", "snd"])
    )
    assert denoised.trained == 16 * sum(parameter.numel() for parameter in Denoiser(64).parameters())
    assert denoised.activations > alone.activations
    assert "denoiser or adapter" in denoised.summary()
    assert "denoiser or adapter" not in alone.summary()


def _lora(llm: FrozenLLM) -> list[torch.nn.Parameter]:
    with low_rank_adapter(llm, LoraConfig(rank=8), seed=0) as adapter:
        return list(adapter.weights().values())


def with_memory(monkeypatch: pytest.MonkeyPatch, gibibytes: float) -> None:
    monkeypatch.setattr(memory, "_available", lambda device: int(gibibytes * GIB))


def seven_billion(**trainer: object) -> Config:
    return Config(
        model=ModelConfig(name="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16"),
        prompt=PromptConfig(batch_size=8),
        trainer=TrainerConfig(**trainer),  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_seven_billion_parameters_train_on_a_device_of_80_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 79)
    found = memory.check(seven_billion(), QWEN_7B, CPU)
    assert found.weights == found.whole == pytest.approx(2 * 7_615_616_512, rel=1e-6)
    assert 30 * GIB < found.activations < 60 * GIB
    assert found.summary().startswith("memory: 6")
    assert "of 79.0 GiB free" in found.summary()


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 24)
    message = r"`model.name` must fit .* needs 6\d\.\d GiB .* got 24.0 GiB free; try .*checkpointing=true or .*fsdp"
    with pytest.raises(ConfigError, match=message):
        memory.check(seven_billion(), QWEN_7B, CPU)


@pytest.mark.slow
def test_recomputing_is_what_makes_it_smaller() -> None:
    assert plan(seven_billion(activation_checkpointing=True), QWEN_7B, CPU).activations < 16 * GIB


@pytest.mark.slow
def test_layers_spread_over_devices_take_a_share_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 14 * 4)
    spread = seven_billion(activation_checkpointing=True, strategy="fsdp", devices=4)
    found = plan(spread, QWEN_7B, CPU)
    assert found.weights < 0.45 * found.whole
    assert found.available == 14 * GIB  # four processes share what a CPU has
    assert not found.fits_alone
    smaller = replace(spread, prompt=PromptConfig(batch_size=1), data=DataConfig(eval_batch_size=1))
    with pytest.raises(ConfigError, match="`stage` must be codec or prompt where no device holds the model alone"):
        memory.check(smaller, QWEN_7B, CPU)
    alone = replace(smaller, stage=StageConfig(name="prompt"))
    assert memory.check(alone, QWEN_7B, CPU).training < 14 * GIB


def test_a_spread_model_must_fit_the_main_memory_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = MemoryPlan(weights=GIB, whole=14 * GIB, activations=GIB, table=GIB, context=GIB, available=10 * GIB)
    monkeypatch.setattr(memory, "plan", lambda *_: spread)
    config = replace(seven_billion(strategy="fsdp", devices=4), stage=StageConfig(name="prompt"))
    with_memory(monkeypatch, 60)
    assert memory.check(config, QWEN_7B, torch.device("cuda")) is spread
    with_memory(monkeypatch, 50)
    with pytest.raises(ConfigError, match=r"`trainer.devices` must be so few .* 14.0 GiB for each of 4, got 50.0 GiB"):
        memory.check(config, QWEN_7B, torch.device("cuda"))
    monkeypatch.setattr(memory.ranks, "local_rank", lambda: 1)  # the first one asked for all
    assert memory.check(config, QWEN_7B, torch.device("cuda")) is spread


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_too_many_processes_of_a_cpu_are_named(
    monkeypatch: pytest.MonkeyPatch, tiny_llm: Factory, strategy: str
) -> None:
    architecture = tiny_llm(layers=4, hidden=64).model.config
    one = plan(Config(), architecture, CPU).training / GIB
    with_memory(monkeypatch, 5.5 * one)
    config = Config(trainer=TrainerConfig(devices=200, strategy=strategy))
    with pytest.raises(ConfigError, match=r"`trainer.devices` must be at most 5, .* each needs .* free, got 200"):
        memory.check(config, architecture, CPU)
    with_memory(monkeypatch, 0.5 * one)  # not even one
    with pytest.raises(ConfigError, match=r"`model.name` must fit on each device"):
        memory.check(config, architecture, CPU)


def test_what_trains_alike_is_worked_out_once(monkeypatch: pytest.MonkeyPatch, tiny_llm: Factory) -> None:
    architecture, took = tiny_llm(layers=3, hidden=64).model.config, memory._taken
    asked: list[object] = []
    monkeypatch.setattr(memory, "_taken", lambda *args, **more: (asked.append(args), took(*args, **more))[1])
    with_memory(monkeypatch, 24)
    first = plan(Config(seed=1, prompt=PromptConfig(batch_size=3)), architecture, CPU)
    trainings = len(asked)
    assert plan(Config(seed=2, prompt=PromptConfig(batch_size=3)), architecture, CPU) == first
    assert len(asked) == trainings > 0
    assert plan(Config(prompt=PromptConfig(batch_size=30)), architecture, CPU).training > first.training


def test_a_plan_adds_up() -> None:
    found = MemoryPlan(weights=1, whole=10, activations=20, table=300, context=4000, available=4311)
    assert (found.training, found.alone) == (4321, 4310)
    assert found.fits_alone
