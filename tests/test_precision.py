"""The type of numbers that a machine is left to choose."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from del_lightning import precision
from del_lightning.config import Config, ModelConfig, TrainerConfig
from del_lightning.errors import ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.loading import load_llm
from del_lightning.memory import plan
from del_lightning.precision import advice, check_dtype, fastest_dtype, with_dtype
from del_lightning.stages.workspace import Workspace

Factory = Callable[..., FrozenLLM]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def on_a_cpu_with(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    monkeypatch.setattr(precision, "_capabilities", lambda: dict.fromkeys(features, True) | {"amx_tile": False})


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ((), "float32"),
        (("avx2", "fma3", "avx512_f", "avx512_vnni"), "float32"),  # would widen every number first
        (("avx512_f", "avx512_bf16"), "bfloat16"),
        (("amx_bf16",), "bfloat16"),
        (("neon", "bf16"), "bfloat16"),
        (("neon", "fp16_arith"), "float32"),
    ],
)
def test_a_cpu_computes_in_what_it_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], expected: str
) -> None:
    on_a_cpu_with(monkeypatch, *features)
    assert fastest_dtype(CPU) == expected
    assert precision.instructions().endswith(" with bfloat16") == (expected == "bfloat16")


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_that_only_emulates_bfloat16_is_not_asked_to(
    monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str
) -> None:
    def is_supported(*, including_emulation: bool = True) -> bool:
        return including_emulation or supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert fastest_dtype(CUDA) == expected


def test_other_devices_and_older_torch_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_dtype(torch.device("mps")) == "float32"
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_dtype(CPU) == "float32"
    assert advice(Config(model=ModelConfig(dtype="bfloat16")), CPU) is None  # nobody knows


def test_machines_that_may_differ_do_not_choose_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(model=ModelConfig(dtype="auto"), trainer=TrainerConfig(num_nodes=2))
    with pytest.raises(ConfigError, match=r"`model.dtype` must be float32 or bfloat16 where 2 machines .* got 'auto'"):
        check_dtype(with_dtype(config, CPU))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: True)
    assert with_dtype(config, CUDA).model.dtype == "bfloat16"
    check_dtype(with_dtype(config, CUDA))


def test_what_torch_tells_of_this_processor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.sys, "platform", "linux")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert fastest_dtype(CPU) == "bfloat16"
    monkeypatch.setattr(precision.sys, "platform", "darwin")
    assert fastest_dtype(CPU) == "float32"


def test_a_type_that_was_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cpu_with(monkeypatch, "amx_bf16")
    config = Config(model=ModelConfig(dtype="float32"))
    assert with_dtype(config, CPU) is config


@pytest.mark.parametrize(
    ("model", "trainer", "expected"),
    [
        ("bfloat16", "32-true", "model.dtype=bfloat16: this processor has no instructions"),
        ("float32", "bf16-mixed", "trainer.precision=bf16-mixed: this processor has no instructions"),
        ("bfloat16", "bf16-mixed", "model.dtype=bfloat16 and trainer.precision=bf16-mixed: this processor has no"),
        ("float32", "32-true", None),
    ],
)
def test_who_asks_for_what_is_slow_is_told(
    monkeypatch: pytest.MonkeyPatch, model: str, trainer: str, expected: str | None
) -> None:
    config = Config(model=ModelConfig(dtype=model), trainer=TrainerConfig(precision=trainer))
    on_a_cpu_with(monkeypatch, "amx_bf16")
    assert advice(config, CPU) is None
    on_a_cpu_with(monkeypatch, "avx2")
    assert advice(config, CUDA) is None
    said = advice(config, CPU)
    assert said is None if expected is None else said is not None and said.startswith(expected)


@pytest.mark.parametrize(("features", "expected"), [((), torch.float32), (("amx_bf16",), torch.bfloat16)])
def test_keys_records_and_weights_hold_what_was_taken(
    monkeypatch: pytest.MonkeyPatch, tiny_llm: Factory, tmp_path: Path, features: tuple[str, ...], expected: torch.dtype
) -> None:
    on_a_cpu_with(monkeypatch, *features)
    tiny, folder = tiny_llm(), tmp_path / "model"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    config = Config(out=str(tmp_path / "runs"), model=ModelConfig(name=str(folder), dtype="auto"))
    ws = Workspace(config)
    name = str(expected).removeprefix("torch.")
    assert ws.llm.dtype == load_llm(config.model).dtype == expected
    assert ws.config.model.dtype == ws.model_key["dtype"] == name
    assert ws.model_key == Workspace(replace(config, model=replace(config.model, dtype=name))).model_key


def test_the_memory_plan_counts_what_will_be_taken(monkeypatch: pytest.MonkeyPatch, tiny_llm: Factory) -> None:
    architecture = tiny_llm().model.config

    def weights(dtype: str) -> int:
        return plan(Config(model=ModelConfig(dtype=dtype)), architecture, CPU).weights

    on_a_cpu_with(monkeypatch)
    assert weights("auto") == weights("float32")
    on_a_cpu_with(monkeypatch, "amx_bf16")
    assert weights("auto") == weights("bfloat16") < weights("float32")
