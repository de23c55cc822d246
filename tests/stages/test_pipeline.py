"""The whole way from text to report on a random Llama of two layers, in seconds."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from del_lightning.artifacts import read_result
from del_lightning.config import (
    METHODS,
    AttackConfig,
    BaselineConfig,
    CodebookConfig,
    CustextConfig,
    DPForwardConfig,
    InverterConfig,
    LoggerConfig,
    MechanismConfig,
    RantextConfig,
    SantextConfig,
)
from del_lightning.errors import ConfigError, DelError
from del_lightning.split import SplitModel
from del_lightning.stages import attack, calibrate, pipeline
from del_lightning.stages.checks import check
from del_lightning.stages.setting import Setting, build_method
from del_lightning.stages.settings import settings
from del_lightning.stages.workspace import Workspace
from tests.stages.factory import TITLE, board_of, command_line, config_for, kill_when, need, records, timeless

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _assets() -> None:
    need("lee.cor", "lee_background.cor")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEL_LIGHTNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(model: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a pipeline that ran to its end."""
    out = tmp_path_factory.mktemp("finished")
    pipeline.run(Workspace(config_for(model, encoder, out)))
    return out


LABELS = ["Clean prompt", "Mean embedding", "Projection, no noise", "DEL, ASR 0.1", "DEL, ASR 0.4"]


def test_leaderboard_holds_every_row_with_and_without_its_soft_prompt(finished: Path) -> None:
    board = board_of(finished)
    assert [(row.label, row.soft_prompt) for row in board.rows] == [
        (label, soft_prompt) for label in LABELS for soft_prompt in (False, True)
    ]
    assert board.prompts == 6
    for row in board.rows:
        for estimate in (row.perplexity, row.coherence, row.agreement):
            assert estimate.low <= estimate.value <= estimate.high
            assert estimate.n == 6
        assert set(row.asr) == {"nearest neighbour (cosine)", "Bayes-optimal", "worst"}
        assert (row.virtual_tokens, row.prompt_steps) == ((3, 4) if row.soft_prompt else (None, None))
        assert (row.retained is not None) == row.soft_prompt


def test_rows_without_soft_prompt_can_be_left_out(finished: Path, model: Path, encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    pipeline.run(Workspace(replace(config_for(model, encoder, tmp_path), unprompted=False)))
    whole = [row for row in board_of(finished).rows if row.soft_prompt]
    assert [(row.label, row.nll_by_prompt) for row in board_of(tmp_path).rows] == [
        (row.label, row.nll_by_prompt) for row in whole
    ]
    pages = [next((folder / "report").glob("*/index.html")).read_text("utf-8") for folder in (finished, tmp_path)]
    assert ["no soft prompt</" in page for page in pages] == [True, False]  # the heading of a column


def test_controls_come_out_as_they_must(finished: Path) -> None:
    rows = {(row.label, row.soft_prompt): row for row in board_of(finished).rows}
    clean, mean = rows["Clean prompt", True], rows["Mean embedding", True]
    assert rows["Clean prompt", False].agreement.value == 1.0
    assert clean.asr["Bayes-optimal"].value == 1.0
    assert clean.asr["nearest neighbour (cosine)"].value == 1.0
    assert mean.asr["Bayes-optimal"].value < 0.3
    assert (clean.retained.value, mean.retained.value) == (pytest.approx(1.0), pytest.approx(0.0))
    assert (mean.communication.bits_per_token, mean.privacy.epsilon_sequence) == (0.0, 0.0)
    assert clean.communication.bits_per_token == 9  # 300 tokens
    assert rows["Projection, no noise", False].communication.bits_per_token == 4 * 32
    assert rows["DEL, ASR 0.1", False].communication.bits_per_token == 4 * 3
    assert clean.privacy.epsilon_token is None


def test_more_noise_buys_less_success(finished: Path) -> None:
    board = board_of(finished)
    (calibration,) = board.calibrations
    low, high = calibration.found["nearest"]
    assert (calibration.method, calibration.parameter) == ("del", "mu")
    assert [low.target, high.target] == [0.1, 0.4]
    assert low.reached
    assert low.value < high.value
    for found in (low, high):
        assert found.asr.value <= found.target
        assert 200 <= found.asr.n < 216  # whole rows as long as a prompt
    strict_worst = calibration.found["worst"][0]
    assert strict_worst.value <= low.value
    assert [point.value for point in calibration.outline] == pytest.approx([0.1, 2.1544, 46.416, 1000], rel=1e-3)
    strict, loose = (next(row for row in board.rows if row.target == target) for target in (0.1, 0.4))
    assert strict.value == strict.privacy.mu_token == low.value
    assert (strict.matching, strict.parameter) == ("nearest", "mu")
    assert strict.privacy.epsilon_token < loose.privacy.epsilon_token < loose.privacy.epsilon_sequence
    assert strict.asr["Bayes-optimal"].value <= loose.asr["Bayes-optimal"].value


def test_attack_curves_hold_every_level_with_its_bound(finished: Path) -> None:
    (curve,) = board_of(finished).attack_curves
    assert (curve.method, curve.parameter) == ("del", "mu")
    assert [point.value for point in curve.points] == [5.0, 60.0]
    strict, loose = (point.asr["Bayes-optimal"] for point in curve.points)
    assert strict.value <= loose.value
    assert curve.certified[0] < curve.certified[1] <= 1
    for point, bound in zip(curve.points, curve.certified, strict=True):
        assert all(rate.low <= bound for rate in point.asr.values())


def test_attacks_are_compared_on_the_same_tokens(finished: Path) -> None:
    board = board_of(finished)
    assert [(one.label, one.value) for one in board.attacked[-2:]] == [("DEL", 5.0), ("DEL", 60.0)]
    assert [one.label for one in board.attacked[:-2]] == LABELS
    for one in board.attacked:
        (pair,) = one.differences
        gain = one.asr["Bayes-optimal"].value - one.asr["nearest neighbour (cosine)"].value
        assert pair.difference.value == pytest.approx(gain, abs=1e-6)
        assert pair.difference.low - 1e-6 <= gain <= pair.difference.high + 1e-6
        assert one.certified is None or one.privacy.epsilon_token is not None


def test_worst_case_and_equal_guarantee_make_rows_of_their_own(
    finished: Path, model: Path, encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = replace(
        config_for(model, encoder, tmp_path), methods=["mean", "del"], soft_prompts=["mean"], targets=[0.4]
    )
    config = replace(config, matching=["nearest", "worst", "guarantee"])
    pipeline.run(Workspace(config))
    rows = board_of(tmp_path).rows
    assert [(row.label, row.soft_prompt, row.matching) for row in rows] == [
        ("Mean embedding", False, None),
        ("Mean embedding", True, None),
        ("DEL, ASR 0.4", False, "nearest"),
        ("DEL, worst ASR 0.4", False, "worst"),
    ]
    nearest, worst = rows[2:]
    assert worst.value <= nearest.value
    assert all(row.difference is None for row in rows)  # there is nobody to compare DEL with


def test_equal_guarantee_is_the_exact_one(finished: Path, model: Path, encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = replace(
        config_for(model, encoder, tmp_path),
        methods=["del", "gaussian-code", "dp-forward", "metric-dp"],
        targets=[0.4],
        matching=["nearest", "guarantee"],
        baseline=BaselineConfig(dp_forward=DPForwardConfig(epsilon=None)),
    )
    workspace = Workspace(config)
    found = settings(workspace)
    length, delta = workspace.mean_prompt_tokens, config.evaluate.delta
    (reference,) = (setting for setting in found if setting.method == "del")
    exact = build_method(workspace, reference).statement(length, delta)
    equal = {setting.method: setting for setting in found if setting.matching == "guarantee"}
    assert set(equal) == {"gaussian-code", "dp-forward"}
    gaussian = build_method(workspace, equal["gaussian-code"]).statement(length, delta)
    assert gaussian.mu_token == exact.mu_effective < exact.mu_token
    forward = build_method(workspace, equal["dp-forward"]).statement(length, delta)
    assert forward.epsilon_sequence == pytest.approx(exact.epsilon_sequence)
    with pytest.raises(ConfigError, match="`methods` must hold del"):
        check(Workspace(replace(config, methods=["gaussian-code"])))


def test_worst_case_may_mean_any_cheap_attack(finished: Path, model: Path, encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = replace(config_for(model, encoder, tmp_path), methods=["del"], targets=[0.4])
    default = calibrate.ensure(Workspace(config), "del").key
    workspace = Workspace(replace(config, attack=replace(config.attack, worst_of=["bigrams"])))
    found = calibrate.calibration(workspace, "del").found
    assert calibrate.ensure(workspace, "del").key != default
    assert found["nearest"][0].attacks == ["nearest neighbour (cosine)"]
    assert found["worst"][0].attacks == calibrate.worst_of(workspace.config.attack) == ["bigram prior"]
    # An attacker who reads neighbours needs text, the others tokens of as many texts as possible.
    text = workspace.data.tokens("validation").flat
    windows = torch.from_numpy(text).unfold(0, workspace.mean_prompt_tokens, 1)
    rows = calibrate._rows(workspace)
    assert all(bool((windows == row).all(1).any()) for row in rows)
    shuffled = calibrate._rows(Workspace(config))
    assert not all(bool((windows == row).all(1).any()) for row in shuffled)


def test_worst_case_of_the_nearest_neighbours_own_metric_is_itself() -> None:
    assert calibrate.worst_of(AttackConfig(metric="l2", worst_of=["nearest-l2"])) == ["nearest neighbour (l2)"]
    assert calibrate.worst_of(AttackConfig(metric="l2", worst_of=["nearest", "nearest-l2"])) == [
        "nearest neighbour (l2)"
    ]
    assert calibrate.worst_of(AttackConfig()) == ["nearest neighbour (cosine)", "Bayes-optimal"]


def test_what_is_missing_is_found_before_any_work(model: Path, encoder: Path, tmp_path: Path) -> None:
    config = config_for(model, encoder, tmp_path)
    attacks = replace(config.attack, suite=["nearest", "input-inference"], masked_model="nowhere")
    wrong = [
        (
            replace(config, attack=replace(config.attack, suite=["nearest-code"])),
            "`attack.suite` must hold an attack on",
        ),
        (replace(config, attack=attacks), "`name` must be a masked language model, got 'nowhere'"),
        (
            replace(config, methods=["santext"], baseline=BaselineConfig(word_vectors="nowhere")),
            "`baseline.word_vectors` must be a file of word vectors, got 'nowhere'",
        ),
    ]
    for one, message in wrong:
        with pytest.raises(DelError, match=re.escape(message)):
            check(Workspace(one))


def test_every_method_makes_its_rows(finished: Path, model: Path, encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "codec", tmp_path / "codec")
    config = config_for(model, encoder, tmp_path)
    config = replace(
        config,
        methods=list(METHODS),
        soft_prompts=["del", "del-posterior", "del-plus"],
        targets=[0.4],
        codebook=CodebookConfig(frequent=20, largest_share=0.2),
        prompt=replace(config.prompt, steps=1),
        attack=replace(config.attack, levels=[], suite=["nearest", "bayes"]),
        evaluate=replace(config.evaluate, seeds=[0], max_new_tokens=3),
        baseline=BaselineConfig(
            santext=SantextConfig(epsilon=None),
            custext=CustextConfig(epsilon=None, top_k=5),
            rantext=RantextConfig(epsilon=None),
            dp_forward=DPForwardConfig(epsilon=None),
        ),
    )
    pipeline.run(Workspace(config))
    board = board_of(tmp_path)
    # Half of the tokens are no secret to SANTEXT+, so it misses the target at any epsilon.
    assert {row.method for row in board.rows} == set(METHODS) - {"santext-plus"}
    (missed,) = (found for found in board.calibrations if found.method == "santext-plus")
    assert not missed.found["nearest"][0].reached
    for row in board.rows:
        assert (row.perplexity is None) == (row.method in ("inferdpt", "local-only"))
        assert (row.value is None) == row.is_control
        assert row.soft_prompt <= (row.method in ("del", "del-posterior", "del-plus"))
        if row.matching is not None:
            assert row.asr["nearest neighbour (cosine)"].value < 0.7
        if row.matching and row.method != "del" and row.perplexity:
            assert row.difference is not None
            assert row.difference.nll is not None
    assert len(board.calibrations) == len({row.method for row in board.rows if not row.is_control}) + 1


def test_report_is_written_and_shows_the_samples(finished: Path) -> None:
    folder = finished / "report" / "small-pipeline"
    pages = {file.suffix for file in folder.iterdir()}
    assert {".html", ".md", ".json"} <= pages
    page = next(folder.glob("*.html")).read_text()
    assert TITLE in page
    samples = json.loads(next((finished / "evaluate").glob("*/samples.json")).read_text())
    assert len(samples) == 2
    assert samples[0]["prompt"].split()[0] in page


def test_every_artefact_is_finished_and_clean(finished: Path) -> None:
    counts = {stage: len(list((finished / stage).glob("*/result.json"))) for stage in ("codec", "calibrate", "prompt")}
    assert counts == {"codec": 1, "calibrate": 1, "prompt": 5}
    assert len(list((finished / "attack").glob("*/result.json"))) == 14  # two attackers a front-end or level
    assert len(list((finished / "evaluate").glob("*/result.json"))) == 10
    assert list(finished.rglob("*.partial")) == []
    assert list(finished.rglob("*.ckpt*")) == []


def test_a_second_run_builds_nothing(finished: Path, model: Path, encoder: Path) -> None:
    before = records(finished)
    pipeline.run(Workspace(config_for(model, encoder, finished)))
    assert records(finished) == before
    assert len(before) == 31


def test_a_changed_setting_rebuilds_what_depends_on_it_and_nothing_else(
    finished: Path, model: Path, encoder: Path
) -> None:
    before = records(finished)
    config = config_for(model, encoder, finished)
    config = replace(config, methods=["clean"], title="Other", evaluate=replace(config.evaluate, top_p=0.5))
    pipeline.run(Workspace(config))
    new = {str(path.parts[0]): path for path in records(finished).keys() - before.keys()}
    assert set(new) == {"evaluate"}
    assert {path: time for path, time in records(finished).items() if path in before} == before


def test_trained_prompts_load_as_a_split_model(finished: Path, model: Path, encoder: Path) -> None:
    workspace = Workspace(config_for(model, encoder, finished))
    loaded = []
    for folder in (finished / "prompt").iterdir():
        if folder.is_dir() and (folder / "codec.safetensors").exists():
            loaded.append(SplitModel.from_artifacts(folder, workspace.llm))
    assert sorted(split.method.mu for split in loaded) == sorted(
        {row.value for row in board_of(finished).rows if row.method == "del"}
    )
    assert all(split.prompt.virtual_tokens == 3 for split in loaded)


def test_a_fixed_mu_needs_no_calibration(model: Path, encoder: Path, tmp_path: Path) -> None:
    config = config_for(model, encoder, tmp_path)
    config = replace(
        config, methods=["del"], mechanism=MechanismConfig(bits=2, mu=7.5), codec=replace(config.codec, steps=0)
    )
    pipeline.run(Workspace(config))
    assert not (tmp_path / "calibrate").exists()
    rows = board_of(tmp_path).rows
    assert [(row.label, row.privacy.mu_token, row.target) for row in rows] == [("DEL, given value", 7.5, None)] * 2
    assert rows[1].retained is None  # there is nothing to measure it against


def test_packaged_sentence_encoder_measures_coherence(model: Path, encoder: Path, tmp_path: Path) -> None:
    need("all-minilm-l6-v2")
    config = config_for(model, encoder, tmp_path)
    evaluation = replace(config.evaluate, encoder="all-minilm-l6-v2", seeds=[0])
    config = replace(config, methods=["clean"], evaluate=evaluation, data=replace(config.data, max_prompts=2))
    pipeline.run(Workspace(config))
    board = board_of(tmp_path)
    assert board.encoder == "all-minilm-l6-v2"
    assert all(-1 <= row.coherence.value <= 1 for row in board.rows)


def test_wandb_gets_curves_and_the_leaderboard(
    model: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    config = config_for(model, encoder, tmp_path)
    logger = LoggerConfig(kind="wandb", mode="offline")
    with Workspace(replace(config, methods=["clean"], logger=logger)) as workspace:
        pipeline.run(workspace)
        summary = dict(workspace.wandb_run.summary)
    assert wandb.run is None
    assert summary["soft_prompt/clean/control/val/perplexity"] > 1
    name = "leaderboard/clean/control/soft_prompt/perplexity"
    assert summary[name] == pytest.approx(board_of(tmp_path).rows[1].perplexity.value, rel=1e-6)
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_pipeline_killed_in_training_goes_on_where_it_was(
    finished: Path, model: Path, encoder: Path, tmp_path: Path
) -> None:
    config = config_for(model, encoder, tmp_path / "out")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command_line(config), cwd=tmp_path, env=environment, stdout=log, stderr=log)
    # The first soft prompt is done, the second in the middle of its training.
    prompts = tmp_path / "out" / "prompt"

    def second_prompt_trains() -> bool:
        finished = [path for path in records(tmp_path / "out") if path.parts[0] == "prompt"]
        return len(finished) == 1 and any(prompts.glob("*.partial/last.ckpt.safetensors"))

    kill_when(process, second_prompt_trains)
    (unfinished,) = prompts.glob("*.partial")
    before = records(tmp_path / "out")
    assert {path.parts[0] for path in before} == {"codec", "calibrate", "prompt"}

    pipeline.run(Workspace(config))
    after = records(tmp_path / "out")
    assert {path: time for path, time in after.items() if path in before} == before
    assert (unfinished.with_suffix("") / "result.json").exists()
    assert not unfinished.exists()
    # Same keys and same numbers as the run that nothing disturbed.
    assert after.keys() <= records(finished).keys()
    assert len(after) == 31
    killed, whole = board_of(tmp_path / "out"), board_of(finished)
    assert timeless(killed) == timeless(whole)
    assert killed.curves == whole.curves


STAGES = ["codec", "calibrate", "prompt", "attack", "evaluate"]


@pytest.mark.parametrize("done", [1, 3])
def test_a_pipeline_killed_between_stages_ends_with_the_same_numbers(
    finished: Path, model: Path, encoder: Path, tmp_path: Path, done: int
) -> None:
    for stage in STAGES[:done]:
        shutil.copytree(finished / stage, tmp_path / stage)
    pipeline.run(Workspace(config_for(model, encoder, tmp_path)))
    assert timeless(board_of(tmp_path)) == timeless(board_of(finished))


def test_targets_are_needed_by_a_calibration_only(model: Path, encoder: Path, tmp_path: Path) -> None:
    config = replace(config_for(model, encoder, tmp_path), targets=[])
    check(Workspace(replace(config, methods=["clean", "mean"])))
    check(Workspace(replace(config, mechanism=MechanismConfig(mu=3.0))))
    with pytest.raises(ConfigError, match="`targets` must hold a success rate"):
        check(Workspace(config))


def test_settings_are_named_for_people_and_for_trackers() -> None:
    settings = [
        Setting("clean", "Clean prompt"),
        Setting("del", "DEL", 12.5, 0.1, "nearest"),
        Setting("del", "DEL", 12.5, 0.1, "worst"),
        Setting("gaussian-code", "Gaussian", 12.5, 0.1, "guarantee"),
        Setting("del", "DEL", 12.5),
    ]
    assert [setting.label for setting in settings] == [
        "Clean prompt",
        "DEL, ASR 0.1",
        "DEL, worst ASR 0.1",
        "Gaussian, DEL's guarantee at ASR 0.1",
        "DEL, given value",
    ]
    assert [setting.level for setting in settings] == [
        "control",
        "nearest_asr10",
        "worst_asr10",
        "guarantee_asr10",
        "given",
    ]


def test_contextual_attackers_train_and_tune_for_each_front_end(
    finished: Path, model: Path, encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = config_for(model, encoder, tmp_path)
    suite = replace(
        config.attack,
        suite=["bayes", "language-model", "server-model", "inverter", "input-inference"],
        levels=[],
        prompts=4,
        beam=3,
        tuning_prompts=2,
    )
    inverter = InverterConfig(width=8, heads=2, layers=1, steps=2, batch_size=2, sequence_tokens=12, validate_every=1)
    config = replace(config, methods=["del"], targets=[0.4], attack=suite, inverter=inverter)
    attack.run(Workspace(config))
    tuned = [read_result(path.parent) for path in (tmp_path / "attack").glob("*/tuning.json")]
    names = [sorted({name.split("/")[0] for name in result.metrics}) for result in tuned]
    assert sorted(names) == [["LM prior, marginals", "LM prior, sequence"], ["server's model"]]
    workspace = Workspace(config)
    (setting,) = settings(workspace)
    rates = attack.rates(workspace, setting)
    assert set(rates) == {
        "Bayes-optimal",
        "LM prior, sequence",
        "LM prior, marginals",
        "server's model",
        "trained inverter",
        "input inference",
        "worst",
    }
    assert rates["LM prior, marginals"].n == rates["trained inverter"].n < rates["Bayes-optimal"].n
    assert rates["worst"].value == max(rate.value for rate in rates.values())


def test_a_code_wider_than_the_embeddings_leaves_nothing(model: Path, encoder: Path, tmp_path: Path) -> None:
    config = config_for(model, encoder, tmp_path / "out")
    wide = replace(config, codec=replace(config.codec, dim=33))
    message = "`codec.dim` must be between 1 and the hidden size 32, got 33"
    with pytest.raises(ConfigError, match=message):
        check(Workspace(wide))
    with pytest.raises(ConfigError, match=message):  # of a model whose sizes were not known before
        pipeline.run(Workspace(wide))
    assert not (tmp_path / "out").exists()
    check(Workspace(replace(wide, methods=["clean", "mean", "gaussian-embedding"])))  # which send no codes


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1.0 min"), (60, "1.0 min"), (3725, "62.1 min")]
)
def test_time_is_told_as_people_read_it(seconds: float, expected: str) -> None:
    assert pipeline.duration(seconds) == expected
