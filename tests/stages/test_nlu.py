"""Stage ``nlu`` from parquet files to report, every way to classify, on a random Llama of two layers."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from del_lightning.assets import packaged_path
from del_lightning.config import (
    NLU_VARIANTS,
    SND,
    AttackConfig,
    CodecConfig,
    Config,
    DataConfig,
    DenoiserConfig,
    EvaluateConfig,
    LoggerConfig,
    LoraConfig,
    ModelConfig,
    NluConfig,
    PromptConfig,
    StageConfig,
    TrainerConfig,
)
from del_lightning.data.glue import glue_task
from del_lightning.errors import AssetError, ConfigError, DataError
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Footprint
from del_lightning.methods.controls import Clean
from del_lightning.methods.metric import MetricDP
from del_lightning.modules import DenoiserTraining, Head
from del_lightning.prompt import SoftPrompt
from del_lightning.report.schema import NluLeaderboard, NluRow
from del_lightning.split import SplitModel
from del_lightning.stages import attack, nlu
from del_lightning.stages.checks import check
from del_lightning.stages.classification import NluTask, _Run, ensure, read_scores
from del_lightning.stages.setting import build_method
from del_lightning.stages.workspace import Workspace
from tests.stages.factory import write_pairs
from tests.stages.wandb_server import RunFile

pytestmark = pytest.mark.slow
SEEDS = [3, 4]
FRONTS = ["clean", "mean", "del@2", "del@4"]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    try:
        packaged_path("lee_background.cor")
    except AssetError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEL_LIGHTNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(
    tiny_llm: Callable[..., FrozenLLM],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder, llm = tmp_path_factory.mktemp("model") / "tiny-llama", tiny_llm()
    llm.model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("root"))


def config_for(model: Path, root: Path, out: Path) -> Config:
    return Config(
        title="Small NLU",
        out=str(out),
        targets=[0.05, 0.15],
        stage=StageConfig(_target_="del_lightning.stages.nlu.run", name="nlu"),
        model=ModelConfig(name=str(model)),
        data=DataConfig(root=str(root), train_tokens=24, validation_blocks=4, eval_batch_size=4),
        codec=CodecConfig(corpus="lee", dim=6, steps=2, batch_size=2, sequence_tokens=24, validate_every=2),
        prompt=PromptConfig(virtual_tokens=3, steps=4, batch_size=4, learning_rate=0.05, validate_every=2),
        attack=AttackConfig(tokens=200, tolerance=0.1, outline=5),
        evaluate=EvaluateConfig(seeds=[0]),
        nlu=NluConfig(
            task="mrpc",
            ways=["prompt", "snd", "linear", "lora", "snd-prompt", "snd-user", "local"],
            fronts=FRONTS,
            fronts_of={"linear": ["clean", "del@4"], "local": ["clean"]}
            | {way: ["del@4"] for way in ("lora", "snd-prompt", "snd-user")},
            seeds=SEEDS,
            train_examples=16,
            selection_examples=50,  # a tenth of 120 rows is held out, so there are 12
            eval_examples=20,
            denoiser=DenoiserConfig(steps=2, batch_size=4, validate_every=2),
            lora=LoraConfig(rank=2, alpha=4, learning_rate=0.01),
        ),
        trainer=TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=10, log_every=1),
        logger=LoggerConfig(kind="none"),
    )


@pytest.fixture(scope="module")
def finished(model: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    ws = Workspace(config_for(model, root, out), ["stage=nlu", f"data.root={root}", "out=elsewhere"])
    check(ws)
    nlu.run(ws)
    return out


def board_of(out: Path) -> NluLeaderboard:
    return NluLeaderboard.model_validate_json((out / "report" / "small-nlu" / "leaderboard.json").read_text())


def rows_of(board: NluLeaderboard, variant: str) -> list[NluRow]:
    return [row for row in board.rows if row.variant == variant]


def records(out: Path) -> dict[Path, int]:
    paths = [path for path in out.glob("*/*/result.json") if path.parent.suffix != ".partial"]
    return {path.relative_to(out): path.stat().st_mtime_ns for path in paths}


LABELS = ["Clean prompt", "Mean embedding"] + [
    f"DEL, {bits}, ASR {target}" for bits in ("2 bits", "4 bits") for target in (0.05, 0.15)
]


def test_every_way_and_front_end_has_its_row_over_all_seeds(finished: Path) -> None:
    board = board_of(finished)
    assert {row.variant for row in board.rows} == {*NLU_VARIANTS, "majority"}
    assert [row.label for row in rows_of(board, "prompt")] == LABELS
    assert [row.label for row in rows_of(board, "snd")] == LABELS
    assert [row.label for row in rows_of(board, "snd-user")] == LABELS[4:]
    assert (board.task, board.metric, board.eval_examples, board.seeds) == ("mrpc", "f1", 20, SEEDS)
    for row in board.rows:
        assert set(row.over_seeds) == set(row.over_examples) == {"accuracy", "f1", "matthews", "auc"}
        if row.variant == "majority":
            continue
        assert row.seeds == 2
        for name, estimate in row.over_seeds.items():
            assert (estimate.n, estimate.interval) == (2, "t")
            assert estimate.low <= estimate.value <= estimate.high
            assert row.over_examples[name].value == pytest.approx(estimate.value)
            assert row.over_examples[name].n == 20


def test_the_report_names_the_examples_that_really_selected(finished: Path) -> None:
    board = board_of(finished)
    assert board.selection_examples == 12
    assert "12 examples held out of its training split" in board.notes[0]


def test_trainings_are_told_by_what_they_reached_on_held_out_examples(finished: Path) -> None:
    board = board_of(finished)
    assert board.tuned_start_counts is True
    assert board.best_constant is not None
    assert board.best_constant > 0
    assert not any(row.validation for row in rows_of(board, "linear"))
    for variant in ("prompt", "lora", "snd", "snd-prompt", "snd-user", "local"):
        for row in rows_of(board, variant):
            assert len(row.validation) == len(SEEDS)
            starts = [one.start for one in row.validation]
            assert (None in starts) == (variant in ("snd-user", "local"))  # a user's denoiser starts anywhere
            assert all(one.start is None or one.best <= one.start for one in row.validation)
    clean = rows_of(board, "snd")[0]
    assert [one.best for one in clean.validation] == pytest.approx([0.0] * len(SEEDS), abs=1e-9)  # none is needed


def test_figures_are_those_of_the_stored_scores(finished: Path) -> None:
    """Accuracy worked out by hand from the scores of both seeds."""
    row = rows_of(board_of(finished), "snd-user")[0]
    found = []
    for path in (finished / "nlu").glob("*/result.json"):
        result = json.loads(path.read_text())
        if result["details"]["variant"] == "snd-user" and result["determined_by"]["method"]["value"] == row.value:
            scores = json.loads((path.parent / "scores.json").read_text())
            assert len(scores["scores"]) == 20
            found.append(
                sum((s > 0.5) == (t == 1) for s, t in zip(scores["scores"], scores["labels"], strict=True)) / 20
            )
    assert len(found) == 2
    assert row.over_seeds["accuracy"].value == pytest.approx(sum(found) / 2, rel=1e-6)


def test_controls_mean_what_they_say(finished: Path) -> None:
    board = board_of(finished)
    clean, mean = rows_of(board, "prompt")[:2]
    (majority,) = rows_of(board, "majority")
    assert clean.asr["nearest neighbour (cosine)"].value == 1.0
    assert mean.asr["nearest neighbour (cosine)"].value == 0.0
    assert mean.privacy.epsilon_sequence == 0.0
    assert majority.over_seeds["auc"].value == 0.5
    assert majority.asr == {}
    assert clean.privacy.epsilon_token is None


def test_attacks_read_the_very_releases_that_were_classified(model: Path, root: Path, finished: Path) -> None:
    task = NluTask(Workspace(config_for(model, root, finished)))
    front = task.fronts("del@4")[0]
    method = build_method(front.view, front.setting)
    released, lengths, truth = attack.release_prompts(front.view, method, None)
    split = SplitModel(task.ws.llm, method)
    rows = torch.split(released.payload[0], lengths.tolist())
    for batch in task.data.batches("test", 8):
        payload = split.release_examples(batch, SEEDS[0]).payload[0]
        expected = torch.cat([rows[i] for i in batch.index.tolist()])
        assert torch.equal(payload, expected)
    assert len(truth) == sum(len(prompt.private_ids) for prompt in task.data.prompts())


def test_levels_are_calibrated_on_held_out_text_of_the_task(model: Path, root: Path, finished: Path) -> None:
    board = board_of(finished)
    assert [calibration.label for calibration in board.calibrations] == ["DEL, 2 bits", "DEL, 4 bits"]
    for calibration in board.calibrations:
        low, high = calibration.found["nearest"]
        assert low.value < high.value
        assert low.asr.value <= 0.05
    rows = {row.label: row for row in rows_of(board, "prompt")}
    assert rows["DEL, 2 bits, ASR 0.05"].value == board.calibrations[0].found["nearest"][0].value
    # Other bits need another parameter for the same success.
    assert rows["DEL, 2 bits, ASR 0.05"].value != rows["DEL, 4 bits, ASR 0.05"].value


def test_a_text_is_both_sentences(finished: Path, model: Path, root: Path) -> None:
    """Counted from the sentences themselves."""
    board, data = board_of(finished), NluTask(Workspace(config_for(model, root, finished))).data
    columns = data.rows("test").texts
    counts = [sum(len(data.tokenizer(f" {text}")["input_ids"]) for text in column) for column in columns]
    assert len(counts) == 2
    assert board.private_tokens == sum(counts) > max(counts)
    row = rows_of(board, "prompt")[2]
    assert row.privacy.sequence_tokens == round(board.private_tokens / 20)
    assert row.privacy.epsilon_token < row.privacy.epsilon_sequence


def test_costs_are_counted_where_they_arise(finished: Path) -> None:
    board = board_of(finished)
    cost = {variant: rows_of(board, variant)[-1].cost for variant in NLU_VARIANTS}
    vocabulary, width, dim = 300, 16, 6
    head, connected = width * 2 + 2, width * width + width + width * 2 + 2
    denoiser = 6 * (4 * width**2 + 4 * width + 2 * 1024 * width + 1024 + width + 4 * width) + width**2 + width
    assert cost["linear"].server_parameters == head
    assert cost["prompt"].server_parameters == 3 * width + head
    assert cost["lora"].server_parameters == 2 * (2 * width + 2 * width + 2 * width + 2 * width // 2) + head
    assert cost["snd"].server_parameters == denoiser + connected
    assert cost["snd-prompt"].server_parameters == denoiser + connected + 3 * width
    assert (cost["snd-user"].server_parameters, cost["local"].server_parameters) == (0, 0)
    table = vocabulary * dim
    assert cost["prompt"].user_parameters == table
    assert cost["snd-user"].user_parameters == table + vocabulary * width + denoiser + connected
    assert cost["local"].user_parameters == vocabulary * width + denoiser + connected
    assert (cost["prompt"].bits_per_token, cost["local"].bits_per_token) == (4 * dim, 0)
    assert (cost["prompt"].bits_back, cost["snd-user"].bits_back, cost["local"].bits_back) == (1, 32 * width, 0)
    assert cost["prompt"].bits_per_text == pytest.approx(4 * dim * board.private_tokens / 20)


def test_a_denoising_user_holds_the_clean_embeddings_once(tiny_llm: Callable[..., FrozenLLM]) -> None:
    """Metric-DP needs the very table that the user's denoiser reads; DEL needs its codes besides."""
    table = tiny_llm().embedding_table()
    metric = MetricDP(table, eta=1.0)
    own = Footprint.of(table)
    assert nlu._footprint("prompt", metric) == nlu._footprint("snd-user", metric) == own
    clean = Clean(table)
    assert nlu._footprint("prompt", clean) == Footprint()
    assert nlu._footprint("snd-user", clean) == nlu._footprint("local", clean) == own


def test_nothing_is_sent_where_the_user_is_alone(finished: Path) -> None:
    (row,) = rows_of(board_of(finished), "local")
    assert (row.asr, row.privacy) == ({}, None)


def test_attributes_are_inferred_from_clean_text_and_not_from_its_length(finished: Path) -> None:
    board = board_of(finished)
    found = {(one.label, one.attribute): one for one in board.attributes}
    assert {label for label, _ in found} == set(LABELS)
    assert {attribute for _, attribute in found} == {"class", "mentions a number"}
    assert found["Clean prompt", "mentions a number"].auc.value > 0.9
    assert found["Clean prompt", "mentions a number"].majority == 0.5


def test_levels_of_one_value_share_what_was_inferred_and_keep_their_names(
    finished: Path, model: Path, root: Path
) -> None:
    task = NluTask(Workspace(config_for(model, root, finished)))
    front = task.fronts("del@4")[0]
    other = replace(front, setting=replace(front.setting, target=0.3))
    first, second = nlu.attributes(task, front), nlu.attributes(task, other)
    assert {one.label for one in first} == {"DEL, 4 bits, ASR 0.05"}
    assert [one.model_copy(update={"label": "DEL, 4 bits, ASR 0.3"}) for one in first] == second
    assert "DEL" not in json.dumps(nlu._inferred(task, front).result.details)


def test_report_holds_every_number_and_no_text(finished: Path) -> None:
    folder = finished / "report" / "small-nlu"
    page, markdown = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    for text in (page, markdown):
        for label in LABELS:
            assert label in text
        assert "denoiser at the server" in text
        assert " mat " not in text  # a word of the data set
    assert page.count("<svg") > 5
    assert "python -m del_lightning stage=nlu data.root=DIR" in page
    assert str(finished) not in page + markdown + (folder / "leaderboard.json").read_text()


def test_a_second_run_builds_nothing(finished: Path, model: Path, root: Path) -> None:
    before = records(finished)
    nlu.run(Workspace(config_for(model, root, finished)))
    assert records(finished) == before
    assert list(finished.rglob("*.ckpt*")) == []


def test_a_run_depends_on_no_run_before_it(finished: Path, model: Path, root: Path, tmp_path: Path) -> None:
    """Alone and in another folder: nothing depends on the runs before it."""
    config = config_for(model, root, tmp_path)
    task = NluTask(Workspace(config))
    for variant in ("prompt", "snd-user", "lora"):
        front = task.fronts("del@4")[1]
        artifact = ensure(task, variant, front, SEEDS[1])
        assert read_scores(artifact) == json.loads((finished / "nlu" / artifact.key / "scores.json").read_text())


class Killed(Exception):  # noqa: N818
    pass


def test_a_killed_denoiser_goes_on_to_the_same_head(
    model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head behind it is drawn after the training, and must not depend on what was drawn in it."""

    def head(folder: Path) -> dict[str, Tensor]:
        config = config_for(model, root, folder)
        denoiser = replace(config.nlu.denoiser, steps=4, learning_rate=0.01)
        nlu_config = replace(config.nlu, denoiser=denoiser)
        task = NluTask(Workspace(replace(config, nlu=nlu_config, trainer=replace(config.trainer, checkpoint_every=1))))
        return load_file(ensure(task, "snd", task.fronts("del@4")[1], SEEDS[0]).folder / "head.safetensors")

    def kill(module: DenoiserTraining, *_: object) -> None:
        if module.global_step == 3:
            raise Killed

    expected = head(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(DenoiserTraining, "on_train_batch_end", kill)
        with pytest.raises(Killed):
            head(tmp_path / "killed")
    assert list((tmp_path / "killed").rglob("*.ckpt*"))
    resumed = head(tmp_path / "killed")
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_trained_parts_are_left_in_standard_formats(finished: Path) -> None:
    names: dict[str, set[str]] = {}
    for path in (finished / "nlu").glob("*/result.json"):
        variant = json.loads(path.read_text())["details"]["variant"]
        names[variant] = {file.name for file in path.parent.iterdir()} - {"result.json", "config.yaml", "scores.json"}
        if variant == "prompt":
            assert SoftPrompt.load(path.parent).virtual_tokens == 3
    adapter = {"adapter_config.json", "adapter_model.safetensors", "head.safetensors"}
    assert names["prompt"] == names["lora"] == names["snd-prompt"] == adapter
    assert names["linear"] == names["snd"] == names["snd-user"] == names["local"] == {"head.safetensors"}


def test_a_changed_schedule_retrains_what_it_concerns(finished: Path, model: Path, root: Path) -> None:
    def keys(config: Config) -> dict[str, str]:
        task = NluTask(Workspace(config))
        task.ws.store.get = lambda stage, determined_by, build, **_: determined_by  # type: ignore[method-assign, assignment]
        front = NluTask(Workspace(config_for(model, root, finished))).fronts("clean")[0]
        return {v: json.dumps(ensure(task, v, front, 3), default=str) for v in NLU_VARIANTS}  # type: ignore[arg-type]

    config = config_for(model, root, finished)
    before = keys(config)
    denoiser = keys(replace(config, nlu=replace(config.nlu, denoiser=replace(config.nlu.denoiser, steps=9))))
    assert {v for v in before if before[v] != denoiser[v]} == {"snd", "snd-prompt", "snd-user", "local"}
    prompt = keys(replace(config, prompt=replace(config.prompt, steps=9)))
    assert {v for v in before if before[v] != prompt[v]} == {"prompt", "lora", "snd-prompt"}


def test_what_cannot_work_is_said_at_once(model: Path, root: Path, tmp_path: Path) -> None:
    config = config_for(model, root, tmp_path)
    with pytest.raises(DataError, match=r"glue/qqp/train-\*\.parquet"):
        check(Workspace(replace(config, nlu=replace(config.nlu, task="qqp"))))
    with pytest.raises(ConfigError, match="`targets` must hold a success rate to which del are calibrated"):
        check(Workspace(replace(config, targets=[])))
    with pytest.raises(ConfigError, match=r"`nlu\.fronts` must be methods .* from 1 to 8 del@bits, .* got 'del@9'"):
        replace(config.nlu, fronts=["del@9"])
    with pytest.raises(ConfigError, match=r"`nlu\.fronts_of\.lora` must be methods .* got 'inferdpt'"):
        replace(config.nlu, fronts_of={"lora": ["inferdpt"]})
    with pytest.raises(ConfigError, match=r"`nlu\.ways` must be one of linear, .* got 'zap'"):
        replace(config.nlu, ways=["zap"])
    with pytest.raises(ConfigError, match=r"`nlu\.fronts` must be methods .* got 'del-plus'"):
        replace(config.nlu, fronts=["del-plus"])
    with pytest.raises(ConfigError, match=r"`attack\.suite` must be among .* got 'inverter'"):
        check(Workspace(replace(config, attack=replace(config.attack, suite=["nearest", "inverter"]))))


def test_a_width_that_no_denoiser_has_is_refused_before_any_work(
    tiny_llm: Callable[..., FrozenLLM], root: Path, tmp_path: Path
) -> None:
    llm = tiny_llm(hidden=20)
    llm.model.save_pretrained(tmp_path / "narrow")
    llm.tokenizer.save_pretrained(tmp_path / "narrow")
    config = config_for(tmp_path / "narrow", root, tmp_path)
    for way in SND:
        with pytest.raises(ConfigError, match="a denoiser needs a model whose hidden size is a multiple of 8, got 20"):
            check(Workspace(replace(config, nlu=replace(config.nlu, ways=["prompt", way]))))
    check(Workspace(replace(config, nlu=replace(config.nlu, ways=["linear", "prompt", "lora"]))))


def test_label_words_that_begin_alike_are_refused_before_any_work(
    model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = replace(glue_task("mrpc"), words=(" no", " no more"))
    monkeypatch.setattr("del_lightning.stages.classification.glue_task", lambda _: alike)
    config = config_for(model, root, tmp_path)
    with pytest.raises(ConfigError, match=r"`nlu\.head` must be linear .* begin alike, got 'verbaliser'"):
        check(Workspace(replace(config, nlu=replace(config.nlu, head="verbaliser"))))
    check(Workspace(replace(config, nlu=replace(config.nlu, head="verbaliser", ways=["snd"]))))


def test_the_model_is_loaded_only_after_what_needs_no_model_is_checked(model: Path, root: Path, tmp_path: Path) -> None:
    config = config_for(model, root, tmp_path)
    verbaliser = replace(config.nlu, head="verbaliser")
    ws = Workspace(replace(config, nlu=verbaliser, attack=replace(config.attack, suite=["inverter"])))
    with pytest.raises(ConfigError, match=r"`attack\.suite` must be among"):
        check(ws)
    assert "llm" not in ws.__dict__


def test_a_verbaliser_reads_label_words_and_trains_the_prompt_alone(
    model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = replace(glue_task("mrpc"), words=("no", "yes"))
    monkeypatch.setattr("del_lightning.stages.classification.glue_task", lambda _: apart)
    config = config_for(model, root, tmp_path)
    task = NluTask(Workspace(replace(config, nlu=replace(config.nlu, head="verbaliser"))))
    artifact = ensure(task, "prompt", task.fronts("clean")[0], SEEDS[0])
    assert artifact.result.details["trained"] == {"server": 3 * 16, "user": 0}
    assert not (artifact.folder / "head.safetensors").exists()
    assert 0 < len(set(read_scores(artifact)["scores"])) <= 20


def test_noise_of_two_seeds_differs(model: Path, root: Path, finished: Path, tmp_path: Path) -> None:
    """Held-out examples are the same under every seed; what a head sees of them is not."""
    task = NluTask(Workspace(config_for(model, root, finished)))
    front = task.fronts("del@2")[0]
    split = SplitModel(task.ws.llm, front.method())
    runs = [_Run(task, "linear", front, seed, tmp_path) for seed in (SEEDS[0], SEEDS[0], SEEDS[1])]
    (first, labels), (again, _), (other, same) = (run._states(split, "validation", 0) for run in runs)
    assert torch.equal(labels, same)
    assert torch.equal(first, again)
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_a_linear_head_starts_from_cached_states(model: Path, root: Path, finished: Path, tmp_path: Path) -> None:
    """Of the very model that is trained next: behind its soft prompt's first words, if it has one."""
    config = config_for(model, root, finished)
    task = NluTask(Workspace(replace(config, nlu=replace(config.nlu, head="linear"))))
    front = task.fronts("clean")[0]
    run = _Run(task, "prompt", front, SEEDS[0], tmp_path)
    prompted = SplitModel(task.ws.llm, front.method(), run._soft_prompt())
    head = run._head(prompted)
    assert isinstance(head, Head)
    states, _ = run._states(prompted, "train", 0)
    assert torch.equal(head.mean, states.mean(dim=0))
    assert not torch.allclose(
        head.mean, run._states(SplitModel(task.ws.llm, front.method()), "train", 0)[0].mean(dim=0)
    )
    assert head.layers[0].bias.abs().sum() > 0  # there is nothing to learn, but how often each class occurs


def test_wandb_gets_the_figures_the_classifiers_and_the_report(
    finished: Path, model: Path, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    config = replace(config_for(model, root, finished), logger=LoggerConfig(kind="wandb", mode="offline"))
    board = board_of(finished)
    with Workspace(config) as workspace:
        nlu.run(workspace)
    (file,) = (finished / "wandb").glob("offline-run-*/run-*.wandb")
    record = RunFile.read(file)
    (clean,) = (row for row in rows_of(board, "prompt") if row.method == "clean")
    stored = record.summary["nlu/prompt/clean/control/auc"]
    assert stored == pytest.approx(clean.over_seeds["auc"].value, rel=1e-6)
    contents = {kind: {e["path"] for e in one["manifest"]["contents"]} for kind, one in record.artifacts.items()}
    assert {"head.safetensors", "scores.json"} <= contents["classifier"]
    assert "leaderboard.json" in contents["report"]


def run_part(config: Config) -> Path | None:
    return nlu.run(Workspace(config))


def test_processes_divide_the_runs_and_one_of_them_writes_the_report(
    finished: Path, model: Path, root: Path, tmp_path: Path
) -> None:
    config = config_for(model, root, tmp_path)
    config = replace(config, nlu=replace(config.nlu, ways=["linear", "local"]))
    parts = [replace(config, nlu=replace(config.nlu, part=[place, 2])) for place in (0, 1)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(run_part, parts)) == [None, None]
    built = {path.parent.name for path in tmp_path.glob("nlu/*/result.json")}
    assert len(built) == 8  # three front-ends of linear and one of local, under two seeds
    assert not (tmp_path / "report").exists()
    assert nlu.run(Workspace(config)) is not None
    assert {path.parent.name for path in tmp_path.glob("nlu/*/result.json")} == built
    whole = {(row.variant, row.label): row.scores for row in board_of(finished).rows}
    for row in board_of(tmp_path).rows:
        assert row.scores == whole[row.variant, row.label]


@pytest.mark.parametrize("part", [[2, 2], [-1, 2], [0]])
def test_a_part_is_one_of_several(part: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"`nlu.part` must be \[k, n\] with 0 <= k < n, got "):
        NluConfig(part=part)
