"""What evaluation and attacks are planned to hold, against what they really do."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, MiniMaxConfig

from del_lightning import memory
from del_lightning.attacks import BayesOptimal, NearestNeighbour
from del_lightning.attacks.language_model import BigramPrior
from del_lightning.bigrams import Bigrams
from del_lightning.codec import LinearCodec
from del_lightning.config import (
    AttackConfig,
    CodecConfig,
    Config,
    DataConfig,
    MechanismConfig,
    ModelConfig,
    NluConfig,
    StageConfig,
)
from del_lightning.data.tokens import Ragged
from del_lightning.errors import AssetError, ConfigError
from del_lightning.inference_memory import HOLES, Planner, Work
from del_lightning.llm import FrozenLLM
from del_lightning.loading import check_llm, load_llm
from del_lightning.memory import GIB, MemoryPlan, plan
from del_lightning.methods import DEL
from del_lightning.metrics.perplexity import token_nll
from del_lightning.passes import Passes, Peak

Factory = Callable[..., FrozenLLM]
CPU = torch.device("cpu")
ROWS, TOKENS, SCORED = 6, 40, 20
FAMILIES = pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def held(llm: FrozenLLM, run: Callable[[], object]) -> int:
    """Bytes of the tensors that live at one time while something really runs, at most."""
    with torch.no_grad(), Peak(llm.model) as peak:
        run()
    return peak.most


def planned(llm: FrozenLLM, ask: Callable[[Planner], int], config: Config | None = None) -> int:
    return ask(Planner(config or Config(), Passes(llm.model.config, llm.dtype)))


@TYPES
@FAMILIES
def test_scoring_holds_what_is_planned(tiny_llm: Factory, family: str, dtype: torch.dtype) -> None:
    llm = tiny_llm(family, layers=3, hidden=64, dtype=dtype)
    inputs, real = torch.randn(ROWS, TOKENS, llm.hidden_size), torch.ones(ROWS, TOKENS, dtype=torch.bool)
    keep = (torch.arange(TOKENS) >= TOKENS - SCORED).expand(ROWS, -1)

    def score() -> None:
        logits = llm.logits(inputs, real, keep).float()
        token_nll(logits, torch.zeros(len(logits), dtype=torch.long))

    really = held(llm, score)
    assert really <= planned(llm, lambda one: one.passes.scored(ROWS, TOKENS, SCORED)) <= 2 * really


@TYPES
@FAMILIES
def test_generation_holds_what_is_planned(tiny_llm: Factory, family: str, dtype: torch.dtype) -> None:
    llm = tiny_llm(family, layers=3, hidden=64, dtype=dtype)
    inputs, real = torch.randn(ROWS, TOKENS, llm.hidden_size), torch.ones(ROWS, TOKENS, dtype=torch.long)
    settings = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": True, "top_p": 0.9}
    really = held(llm, lambda: llm.generate(inputs, real, **settings))  # type: ignore[arg-type]
    assert really <= planned(llm, lambda one: one.passes.generated(ROWS, TOKENS, 30)) <= 2 * really


VOCABULARY, PRIVATE = 20_000, 30


@pytest.mark.parametrize("name", ["nearest", "bayes", "bigrams"])
def test_an_attack_holds_what_is_planned(tiny_llm: Factory, name: str) -> None:
    llm = tiny_llm(hidden=64)
    torch.manual_seed(0)
    codec = LinearCodec(64, 4, bound=1.0)
    method = DEL(torch.randn(VOCABULARY, 64), codec, bits=4, mu=100.0)
    prior = torch.full((VOCABULARY,), 1 / VOCABULARY).log()
    text = Ragged(torch.randint(VOCABULARY, (5_000,)).int().numpy(), torch.tensor([0, 5_000]).numpy())
    attacks = {
        "nearest": NearestNeighbour("l2"),
        "bayes": BayesOptimal(prior),
        "bigrams": BigramPrior(prior, Bigrams(text, prior)),
    }
    release = method.release(torch.randint(VOCABULARY, (1, 8 * PRIVATE)))
    really = held(llm, lambda: attacks[name](method, release, torch.full((8,), PRIVATE)))

    def ask(planner: Planner) -> int:
        planner.vocabulary, planner.private = VOCABULARY, PRIVATE
        return planner.tables() + planner._attacker(name, 8 * PRIVATE)

    most = 2 * HOLES if name == "bigrams" else 2
    assert really <= planned(llm, ask, Config(methods=["del"])) <= most * really


def test_a_stage_is_planned_for_what_it_passes(tiny_llm: Factory) -> None:
    architecture = tiny_llm(hidden=64).model.config

    def works(stage: str, **settings: object) -> list[str]:
        config = Config(stage=StageConfig(name=stage), **settings)  # type: ignore[arg-type]
        found = plan(config, architecture, CPU)
        assert found.unknown == ()
        return [work.what for work in found.works]

    first = ["the embedding table", "the codec"]
    searched = ["calibration by nearest", "calibration by bayes"]
    assert works("codec") == first
    assert works("codec", methods=["santext"]) == first  # the stage builds a codec whatever runs later
    assert works("transfer", methods=["santext"]) == [*first, "scoring", "continuations", "coherence"]
    assert works("prompt", methods=["santext"]) == first[:1]
    assert works("nlu", methods=["santext"], nlu=NluConfig(fronts=["clean"])) == first[:1]
    assert works("nlu", methods=["clean"], nlu=NluConfig(fronts=["del@2"])) == [*first, *searched]
    assert works("prompt") == [*first, *searched]
    assert works("attack") == [*first, *searched, "the attack nearest", "the attack bayes"]
    assert works("evaluate", mechanism=MechanismConfig(mu=9.0)) == [*first, "scoring", "continuations", "coherence"]
    assert len(works("pipeline")) == 9
    suite = ["bigrams", "language-model", "server-model", "input-inference", "inverter"]
    assert len(works("pipeline", attack=AttackConfig(suite=suite))) == 12


def test_a_model_that_refuses_the_usual_cache_makes_its_own() -> None:
    architecture = MiniMaxConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        block_size=4,
    )
    passes = Passes(architecture, torch.bfloat16)
    assert passes.state(2, 10) == 2 * 10 * (2 * 2 * 8) * 2  # one layer of two keeps keys and values
    assert passes.generated(2, 10, 5) > passes.state(2, 15)


def test_work_that_cannot_be_worked_out_is_left_out_and_named() -> None:
    """A decoder of more layers than its encoder, which is what its own cache goes by."""
    architecture = BartConfig(
        vocab_size=99,
        d_model=32,
        encoder_layers=1,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    config = Config(stage=StageConfig(name="pipeline"), attack=AttackConfig(suite=["language-model", "bayes"]))
    found = plan(config, architecture, CPU)
    assert [work.what for work in found.works][-3:] == ["the attack bayes", "scoring", "coherence"]
    assert found.summary().endswith("; not known: the attack language-model, continuations")


def test_larger_batches_are_planned_to_take_more(tiny_llm: Factory) -> None:
    llm = tiny_llm(hidden=64)

    def size(what: str, **data: int) -> int:
        works = plan(Config(data=DataConfig(**data), stage=StageConfig(name="evaluate")), llm.model.config, CPU).works  # type: ignore[arg-type]
        return next(work.size for work in works if work.what == what)

    assert size("scoring", eval_batch_size=32) > 1.7 * size("scoring", eval_batch_size=16)
    assert size("scoring", eval_batch_size=32, max_prompts=16) == size("scoring", eval_batch_size=16)
    assert plan(Config(data=DataConfig(eval_batch_size=64)), llm.model.config, CPU).validation > 3.5 * (
        plan(Config(), llm.model.config, CPU).validation
    )


def test_classification_is_validated_on_its_own_batches(monkeypatch: pytest.MonkeyPatch, tiny_llm: Factory) -> None:
    architecture = tiny_llm(hidden=64).model.config
    config = Config(stage=StageConfig(name="nlu"), codec=CodecConfig(steps=0))

    def validation(config: Config) -> int:
        return plan(config, architecture, CPU).validation

    long = replace(config, data=DataConfig(eval_batch_size=512, train_tokens=4 * config.data.train_tokens))
    assert validation(long) == validation(config)
    many = replace(config, nlu=NluConfig(eval_batch_size=1024))
    assert validation(many) > 20 * validation(config)
    free = validation(many) // 2
    monkeypatch.setattr(memory, "_available", lambda _: free)
    with pytest.raises(ConfigError, match=r"try a smaller nlu\.eval_batch_size or "):
        memory.check(many, architecture, CPU)


def test_what_does_not_fit_names_its_setting(monkeypatch: pytest.MonkeyPatch, tiny_llm: Factory) -> None:
    works = (Work("attacks", "the attack bayes", "attack.suite", GIB), Work("evaluation", "scoring", "x.y", 4 * GIB))
    found = MemoryPlan(
        weights=GIB,
        whole=GIB,
        activations=GIB,
        table=GIB,
        context=0,
        available=5 * GIB,
        validation=2 * GIB,
        works=works,
    )
    assert found.training == 4 * GIB
    assert found.summary().endswith("; on the first device 3.0 GiB for the attack bayes, 6.0 GiB for scoring")
    monkeypatch.setattr(memory, "plan", lambda *_: found)
    message = r"`x.y` must ask for less: scoring takes 6.0 GiB on the first device \(.*\), got 5.0 GiB free"
    with pytest.raises(ConfigError, match=message):
        memory.check(Config(), tiny_llm().model.config, CPU)
    monkeypatch.setattr(memory, "plan", lambda *_: replace(found, available=6 * GIB))
    assert memory.check(Config(), tiny_llm().model.config, CPU).available == 6 * GIB


def test_the_first_process_of_a_cpu_works_beside_the_others(monkeypatch: pytest.MonkeyPatch, tiny_llm: Factory) -> None:
    works = (Work("evaluation", "scoring", "x.y", 8 * GIB),)
    found = MemoryPlan(GIB, GIB, activations=0, table=GIB, context=0, available=4 * GIB, works=works)
    monkeypatch.setattr(memory, "plan", lambda *_: found)
    architecture, trainer = tiny_llm().model.config, Config().trainer
    config = Config(trainer=replace(trainer, devices=4))
    assert memory.check(config, architecture, CPU) is found  # 4 x 2 and 8 of 16 GiB
    message = r"scoring takes 14.0 GiB beside the models of 3 processes \(weights 3.0 .* 8.0 GiB\), got 12.0 GiB free"
    with pytest.raises(ConfigError, match=message):
        memory.check(replace(config, trainer=replace(trainer, devices=3)), architecture, CPU)


SCRIPT = """
import re
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from del_lightning import memory
from del_lightning.__main__ import config_folder
from del_lightning.config import register_schemas
from del_lightning.loading import check_llm
from del_lightning.stages import attack, evaluate
from del_lightning.stages.attackers import attackers
from del_lightning.stages.settings import settings
from del_lightning.stages.workspace import Workspace


def bytes_of(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def measure(what, run):
    Path("/proc/self/clear_refs").write_text("5")  # peak so far: forgotten
    run()
    print(f"{what}: {bytes_of('VmHWM') - start}")


register_schemas()
with initialize_config_dir(str(config_folder()), version_base="1.3"):
    ws = Workspace(OmegaConf.to_object(compose("config", sys.argv[1:])))
found = memory.plan(ws.config, check_llm(ws.config.model), torch.device("cpu"))
for work in found.works:
    print(f"planned {work.what}: {found.alone + work.size}")
start = bytes_of("VmRSS")
measure("the embedding table", lambda: ws.embedding_table)
measure("the codec", ws.codec)
[setting] = settings(ws)
for name in ("_teacher_forced", "_continuations"):
    run = getattr(evaluate, name)
    what = {"_teacher_forced": "scoring", "_continuations": "continuations"}[name]

    def measured(*arguments, run=run, what=what):
        out = []
        measure(what, lambda: out.append(run(*arguments)))
        return out[0]

    setattr(evaluate, name, measured)
for attacker in attackers(ws, setting):
    measure(f"the attack {attacker.name}", lambda: attack._ensure_one(ws, setting, attacker))
evaluate.ensure(ws, setting, False)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["data.max_prompts=32"], id="quick start"),
        pytest.param(["data.max_prompts=64", "data.eval_batch_size=64", "model.dtype=float32"], id="a larger batch"),
        pytest.param(["model=gemma3", "data.max_prompts=16"], id="a large vocabulary"),
    ],
)
def test_a_run_takes_no_more_than_planned(settings: list[str], tmp_path: Path) -> None:
    """Resident memory of a whole process, above what it had before a weight was loaded."""
    model = ModelConfig(name="gemma-3-270m" if "model=gemma3" in settings else ModelConfig.name)
    try:
        if check_llm(model) is None:
            load_llm(model)  # unpacks it, which is none of a usual run's work
    except AssetError as error:
        pytest.skip(str(error))
    shortened = ["soft_prompts=[]", "methods=[del]", "mechanism.mu=20", "codec.steps=0", "evaluate.max_new_tokens=4"]
    shortened += ["attack.suite=[nearest,bayes,bigrams]", "logger=none", "trainer.progress_bar=false"]
    shortened += [f"out={tmp_path}", "stage=pipeline", "trainer.accelerator=cpu"]
    command = [sys.executable, "-c", SCRIPT, "experiment=quickstart", *settings, *shortened]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout
    lines = [line.rsplit(": ", 1) for line in output.splitlines() if line.rsplit(": ", 1)[-1].isdigit()]
    numbers = {what: int(number) for what, number in lines}
    measured = {what: number for what, number in numbers.items() if not what.startswith("planned ")}
    assert len(measured) == 7
    for what, number in measured.items():
        assert number <= numbers[f"planned {what}"], what
    largest = max(number for what, number in numbers.items() if what.startswith("planned "))
    assert largest <= 2 * max(measured.values())
