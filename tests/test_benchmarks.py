"""The benchmarks compare like with like, and run."""

import importlib
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from del_lightning.config import register_schemas
from del_lightning.config.names import ATTACKS
from del_lightning.data import Batch, Example, collate
from del_lightning.llm import FrozenLLM
from del_lightning.privacy import StochasticQuantizer
from del_lightning.prompt import SoftPrompt
from del_lightning.split import SplitModel
from del_lightning.stages.report import slug_of

ROOT = Path(__file__).resolve().parents[1]
Factory = Callable[..., FrozenLLM]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def training(benchmark: Callable[[str], ModuleType]) -> Any:
    return benchmark("prompt_training")


@pytest.fixture
def case(training: Any) -> Any:
    """Two contenders, three steps each."""
    return training.Case("tiny", "float32", 16, (0.4, 0.7), batch_size=2, virtual_tokens=5, warmup=1, steps=1, turns=2)


@pytest.fixture
def folder(tiny_llm: Factory, tmp_path: Path) -> Path:
    llm = tiny_llm()
    llm.model.save_pretrained(tmp_path / "model")
    llm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def batch() -> Batch:
    """As in training: every block has the same length, and is cut somewhere else."""
    cuts = [(10, 4), (60, 9)]
    examples = [Example([5, 6], range(s, s + n), range(s + n, s + 12), i) for i, (s, n) in enumerate(cuts)]
    return collate(examples, pad_id=0)


def stacked(training: Any) -> dict[str, torch.Tensor]:
    examples = training.peft_examples([batch()])
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def test_contenders_have_the_same_loss_and_gradient(tiny_llm: Factory, training: Any, case: Any) -> None:
    llm, other = tiny_llm(), tiny_llm()
    prompt = SoftPrompt.from_text(training.INIT_TEXT, case.virtual_tokens, llm)
    ours = SplitModel(llm, None, prompt).loss(batch(), None)
    ours.backward()
    peft = training.peft_model(other, case)
    theirs = peft(**stacked(training)).loss
    theirs.backward()
    torch.testing.assert_close(theirs, ours)
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    assert [parameter.dtype for parameter in trained] == [torch.float32]
    assert prompt.embeddings.grad is not None
    torch.testing.assert_close(trained[0].grad, prompt.embeddings.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`:UserWarning")  # there is nothing to validate
@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")  # the frozen model, on purpose
def test_trainers_take_the_same_steps(tiny_llm: Factory, training: Any, case: Any) -> None:
    steps: list[str] = []
    batches = [batch()] * 4
    ours = training.train_ours(tiny_llm(), batches, case, lambda: steps.append("ours"))
    theirs = training.train_peft(tiny_llm(), batches, case, lambda: steps.append("theirs"))
    assert steps == ["ours"] * 4 + ["theirs"] * 4
    assert theirs == pytest.approx(ours, rel=1e-5)
    first = training.peft_model(tiny_llm(), case)(**stacked(training)).loss
    assert theirs < first.item() - 1e-3  # both learn
    torch.manual_seed(0)
    noisy = training.train_ours(tiny_llm(), batches, case, list, noise=True)
    assert noisy != pytest.approx(ours, rel=1e-5)


@pytest.mark.slow
def test_training_benchmark_from_start_to_end(
    training: Any, case: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DEL_LIGHTNING_CACHE", str(tmp_path / "cache"))
    training.main([replace(case, model=str(folder))], tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text())
    [result] = saved["results"]
    contenders = result["contenders"]
    assert tuple(contenders) == (training.OURS, training.PEFT)
    assert all(len(row["tokens_per_second"]["repeats"]) == 2 for row in contenders.values())
    assert contenders[training.PEFT]["mean_loss"] == pytest.approx(contenders[training.OURS]["mean_loss"], rel=1e-5)
    speeds = [contenders[name]["tokens_per_second"]["repeats"][0] for name in (training.OURS, training.PEFT)]
    assert result["ratio"]["repeats"][0] == pytest.approx(speeds[0] / speeds[1])
    assert saved["environment"]["packages"].keys() >= {"torch", "peft", "accelerate"}


@pytest.mark.slow
def test_scaling_benchmark_from_start_to_end(
    benchmark: Callable[[str], Any], case: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DEL_LIGHTNING_CACHE", str(tmp_path / "cache"))
    scaling = benchmark("scaling")
    ways = {"one": scaling.Way(), "processes": scaling.Way(2)}
    scaling.main({"tiny": replace(case, model=str(folder))}, tmp_path / "result.json", ways)
    [result] = json.loads((tmp_path / "result.json").read_text())["results"]
    assert list(result["contenders"]) == ["one", "processes"]
    one, two = result["contenders"].values()
    assert one["ratio"]["repeats"] == [1, 1]
    speeds = [row["tokens_per_second"]["repeats"] for row in (one, two)]
    assert two["ratio"]["repeats"] == pytest.approx([fast / slow for slow, fast in zip(*speeds, strict=True)])
    assert two["mean_loss"] != one["mean_loss"]  # rank 0 has half of every batch


def test_a_contender_that_fails_says_why(benchmark: Callable[[str], Any], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such model')")
    with pytest.raises(RuntimeError, match="no such model"):
        benchmark("_common").Contender(str(script), {})


def test_generation_benchmark_compares_the_same_prompts(
    benchmark: Callable[[str], Any], folder: Path, tmp_path: Path, cache: Path
) -> None:
    generation = benchmark("generation")
    tiny = generation.Case(
        "float32", batch_sizes=(1, 3), stated=3, model=str(folder), prompts=5, new_tokens=6, virtual_tokens=4, turns=2
    )
    generation.main([tiny], tmp_path / "result.json")
    rows = json.loads((tmp_path / "result.json").read_text())["results"][0]["batch_sizes"]
    assert rows["3"]["agreement"] == {"prompts": 1.0, "tokens": 1.0}
    assert [len(rows[size]["tokens_per_second"]["repeats"]) for size in ("1", "3")] == [2, 2]


def test_agreement_counts_up_to_the_first_difference(benchmark: Callable[[str], Any]) -> None:
    agreement = benchmark("generation").agreement
    reference = {0: [1, 2, 3, 4], 1: [5, 6, 7, 8]}
    assert agreement({1: [5, 6, 7, 8], 0: [1, 9, 3, 4]}, reference) == {"prompts": 0.5, "tokens": 5 / 8}


def test_sampler_benchmark_from_start_to_end(
    benchmark: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = benchmark("sampler")
    for name, value in {"COORDINATES": 180, "TURNS": 2, "TURN_SECONDS": 0.0}.items():
        monkeypatch.setattr(sampler, name, value)
    monkeypatch.setattr(sampler, "training_step", lambda: 1e3)
    sampler.main(tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text())
    assert [row["case"]["bits"] for row in saved["results"]] == [1, 2, 4, 8]
    for row in saved["results"]:
        ours, naive = (row["nanoseconds"][name]["repeats"] for name in ("ours", "naive"))
        assert row["ratio"]["repeats"] == pytest.approx([slow / fast for slow, fast in zip(naive, ours, strict=True)])
    assert saved["training_step"]["fast_enough"]


@pytest.mark.parametrize("contender", ["naive", "torch_binomial"])
def test_sampler_benchmark_compares_the_same_law(benchmark: Callable[[str], Any], contender: str) -> None:
    sampler = benchmark("sampler")
    quantizer = StochasticQuantizer.from_mu(sampler.MU, sampler.DIM, 4, sampler.BOUND)
    v = torch.tensor([-1.0, 0.02, 0.3]).expand(40_000, 3)
    codes = getattr(sampler, contender)(quantizer, v, torch.Generator().manual_seed(0))
    error = quantizer.decode(codes).double().mean(0) - v[0].clamp(-sampler.BOUND, sampler.BOUND)
    assert (error.abs() < 4.5 * (quantizer.variance(v[0]) / 40_000).sqrt()).all()
    assert quantizer.decode(codes).var(0) == pytest.approx(quantizer.variance(v[0]), rel=0.04)


def changes(one: Any, other: Any, prefix: str = "") -> set[str]:
    """Names of the settings that two configurations differ in."""
    found: set[str] = set()
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(mine):
            found |= changes(mine, theirs, f"{prefix}{field.name}.")
        elif mine != theirs:
            found.add(prefix + field.name)
    return found


def test_replication_runs_are_settings_that_exist(benchmark: Callable[[str], Any]) -> None:
    replication = benchmark("_replication")
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        found = {
            name: OmegaConf.to_object(compose("config", overrides=replication.settings_of(name)))
            for name in replication.JOBS
        }
    assert all(config.title == replication.title(name) for name, config in found.items())
    assert {config.mechanism.bits for config in found.values()} == {1, 2, 4, 8}
    assert {config.codec.dim for name, config in found.items() if name.startswith("width")} == {18, 128}
    assert found["cnn-dailymail"].data.name == "cnn_dailymail"
    glue = [config.nlu for name, config in found.items() if name.startswith("nlu/")]
    assert {config.task for config in glue} == {"mrpc", "qqp", "sst2", "cola"}
    apart = [(config.task, config.seeds) for config in glue if len(config.seeds) == 1]
    assert apart == [("mrpc", [seed]) for seed in range(3)]
    assert all(config.seeds == [0, 1, 2] for config in glue if len(config.seeds) > 1)
    assert {f"del@{bits}" for bits in (1, 2, 4, 8)} <= {front for config in glue for front in config.fronts}
    plus = {name: config for name, config in found.items() if name.startswith("del_plus/")}
    assert all({"del-plus", "del-posterior"} & set(config.methods) for config in plus.values())
    usual = plus["del_plus/ptb-asr0.2-seed0"]
    for name, changed in (
        ("posterior-seed0", {"methods"}),
        ("one-by-one-seed0", {"codebook.neighbours"}),
        ("no-adapter-seed0", {"adapter.rank"}),
        ("one-bit-seed0", {"mechanism.bits"}),
        ("end-alone-seed0", {"codebook.frequent", "codebook.largest_share"}),
        ("bounded-seed0", {"codebook.last", "codebook.last_alone", "codebook.last_share"}),
        ("seed1", {"seed"}),
    ):
        assert changes(usual, plus[f"del_plus/ptb-asr0.2-{name}"]) == {"title", *changed}
    anew = changes(usual, plus["del_plus/anew/ptb-asr0.2"])
    assert anew == {"title", "data.first_prompt", "evaluate.seeds", "attack.tuning_prompts"}
    whole = plus["del_plus/attacks/ptb-asr0.2"].attack.suite
    assert set(whole) == set(ATTACKS)
    on_a_gpu = {config.prompt.steps for name, config in found.items() if name.startswith("gpu-")}
    assert on_a_gpu == {4000}
    assert {name for name, config in found.items() if config.prompt.steps >= 4000} <= set(replication.NEED_GPU)
    assert found["gemma-3-270m"].model.name == "gemma-3-270m"
    slugs = {slug_of(replication.title(name)) for name in found}
    assert len(slugs) == len(found)


def test_cases_in_bfloat16_are_left_out_where_it_is_slow(
    benchmark: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = benchmark("prompt_training").CASES
    worth_running = benchmark("_common").worth_running
    monkeypatch.setattr("del_lightning.precision.fastest_dtype", lambda device: "bfloat16")
    assert worth_running(cases) == list(cases)
    assert not capsys.readouterr().err
    monkeypatch.setattr("del_lightning.precision.fastest_dtype", lambda device: "float32")
    assert [case.dtype for case in worth_running(cases)] == ["float32", "float32"]
    assert "2 of 4 cases left out: bfloat16" in capsys.readouterr().err
