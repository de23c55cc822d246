import importlib
from pathlib import Path
from types import ModuleType

import pytest

from del_lightning.report import nlu
from del_lightning.report.schema import Leaderboard
from tests.report.factory import attacked, make_board, make_large_board, row
from tests.report.test_nlu import board as nlu_board

ROOT = Path(__file__).parents[1]


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_readme")


def test_readme_quotes_the_committed_results(readme: ModuleType) -> None:
    section = readme.section()
    if not section:
        pytest.skip("no leaderboard is committed under benchmarks/results")
    assert section in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8") == readme.page()
    assert readme.del_plus() in (ROOT / "docs" / "del_plus.md").read_text(encoding="utf-8")
    pictures = readme.drawn()
    assert pictures
    for path, picture in pictures.items():
        assert path.read_text(encoding="utf-8") == picture
        assert f"({path.relative_to(ROOT).as_posix()})" in section or f"(pictures/{path.name})" in readme.del_plus()


def test_tables_of_many_methods_keep_to_what_is_compared(readme: ModuleType) -> None:
    board = make_large_board()
    table = readme._table(board, readme._entries(board), short=False)
    lines = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(set(lines))
    assert [line for line in lines if line.startswith("DEL,")] == [
        f"DEL, {kind} {target:g}" for kind in ("ASR", "worst ASR") for target in (0.02, 0.1, 0.15)
    ]
    assert "Metric-DP, worst ASR 0.1" in lines
    assert "Metric-DP, ASR 0.02" not in lines
    assert "inside the noise: " in table
    assert "η\u00a0=\u00a0192, see its caveat" in table
    small = make_board()
    assert "NLL − DEL" not in readme._table(small, readme._entries(small), short=False)  # nothing was compared


def test_readme_quotes_one_target(readme: ModuleType) -> None:
    board = make_large_board()
    lines = readme._table(board, readme._quoted(board), short=True).splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][2:]
    tested = [name for name in names if ", " in name]
    assert tested[0] == "DEL, ASR 0.1"
    assert all(name.endswith("worst ASR 0.1") for name in tested[1:])
    assert "COH" not in lines[2]


def test_attack_table_keeps_to_calibrated_settings(readme: ModuleType) -> None:
    board = make_board(attacked=[attacked("DEL, ASR 0.1", 0.1, 0.19, 0.26), attacked("DEL", 0.2, 0.3, None)])
    table = readme.attack_table(board)
    assert [line.split(" | ")[0] for line in table.splitlines()][4:] == ["| DEL, ASR 0.1"]
    assert "+9.0 [+8.0,\u00a0+10.0]" in table


def test_committed_results_name_no_folder_of_a_machine() -> None:
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert '"/' not in text, f"{path.name} holds an absolute path"


def test_glue_has_its_sentence_and_tables_with_the_tasks_own_figure(
    readme: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = nlu_board()
    for name, found in {"boards": [], "plus_summary": [], "tasks": [board]}.items():
        monkeypatch.setattr(readme, name, lambda found=found: found)
    section = readme.section()
    private = [row for row in board.rows if row.method in ("del", "gaussian-code", "metric-dp")]
    above = [r for r in private if min(r.over_seeds["auc"].low or 0, r.over_examples["auc"].low or 0) > 0.5]
    assert "</summary>\n\n**GLUE.** Classifying text behind every front-end" in section
    assert f"- **GLUE.** {len(above) or 'None'} of {len(private)} private rows " in section
    assert f"{len(above)} of {len(private)} private rows are above what the length of the text alone gives" in section
    summary = [line for line in section.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in summary} == {9}
    assert len(summary) == 2 + len({row.variant for row in private})
    name = f"| mrpc, {board.train_examples} training examples, 40 steps | "
    assert all(line.startswith(name) for line in summary[2:])
    table = readme.nlu_table(board)
    headings = next(line for line in table.splitlines() if line.startswith("| front-end"))
    for figure in ("Accuracy", "F1", "AUC"):
        assert f"End to end, soft prompt: {figure}" in headings
    tables = [part.splitlines() for part in table.split("\n\n") if part.startswith("| ")]
    assert [{line.count("|") for line in lines} for lines in tables] == [{headings.count("|")}, {8}, {3}]
    assert tables[1][2].startswith("| End to end: soft prompt | ")
    assert tables[2][0] == "| front-end | mentions a <number>: AUC |"


def test_a_user_who_has_the_clean_text_is_not_held_against_the_length(
    readme: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = nlu_board()
    users = [row.model_copy(update={"variant": "snd-user"}) for row in board.rows if row.variant == "snd"]
    private = nlu.private(board)
    board = board.model_copy(update={"rows": [*board.rows, *users]})
    assert f" of {len(private)} private rows are above" in readme.glue_outcome(readme.glue_counts([board]))
    [line] = [line for line in readme.glue_summary([board]).splitlines() if "denoiser at the user" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert (cells[5], cells[7]) == ("–", "–")
    assert "0.613" in cells[6]


def test_the_list_at_the_head_holds_what_the_boards_say(readme: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    in_short = importlib.import_module("_in_short")
    monkeypatch.setattr(in_short, "shown_settings", list)
    board = make_large_board()
    assert in_short.in_short([], [], None) == []
    (text,) = in_short.in_short([board], [], (0, 7))
    items = dict(line.removeprefix("- **").split("**", 1) for line in text.splitlines())
    assert list(items) == ["What comes through.", "What is read.", "Who is ahead.", "GLUE."]
    assert items["GLUE."].startswith(" None of 7 private rows are ")
    quoted = readme.arrange.headline(board)
    with_prompt, without = quoted.prompted.perplexity.value, quoted.plain.perplexity.value
    assert f" {with_prompt:.1f} instead of {without:.0f} (" in items["What comes through."]
    assert f"{quoted.retained.value:.3f} [" in items["What comes through."]
    assert "trainings" not in items["What comes through."]
    matched = readme.arrange.matched(board, "worst", 0.1)
    others = [e.best.difference.nll for e in matched if not e.is_reference and e.prompted]
    ahead, behind = sum(nll.high < 0 for nll in others), sum(nll.low > 0 for nll in others)
    expected = f"of {len(others)}, {ahead} ahead of DEL beyond the noise and {behind} behind"
    assert others
    assert expected in items["Who is ahead."]


def test_further_trainings_of_the_same_setting_are_quoted(readme: ModuleType) -> None:
    in_short = importlib.import_module("_in_short")
    board = plus_board(0, last=0)
    entry = readme.arrange.headline(board)
    others = [plus_board(seed, last=0) for seed in (0, 1)]
    wider = [one.model_copy(update={"config": {**one.config, "codec": {"dim": 128}}}) for one in others]
    assert in_short._retained(board, entry, others).endswith(" on PTB over 2 trainings")
    assert in_short._retained(board, entry, wider).endswith(" on PTB")
    model = {**board.config.get("model", {}), "dtype": "bfloat16"}
    rounded = [one.model_copy(update={"config": {**one.config, "model": model}}) for one in others]
    text = in_short._retained(board, entry, rounded)
    own, pooled = text.split(" and ")
    assert own.startswith(f"{entry.retained.value:.3f} [")
    assert own.endswith(" on PTB (float32, 2 draws of noise)")
    assert pooled.endswith(" over 2 trainings (bfloat16, 2 draws of noise)")


def test_further_trainings_have_no_table_each(readme: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    known, other = plus_board(0, last=0), "another data set"
    trainings = [plus_board(seed, last=0).model_copy(update={"dataset": other, "title": f"{seed}"}) for seed in (0, 1)]
    single = plus_board(0, last=2).model_copy(update={"dataset": other, "title": "single"})
    monkeypatch.setattr(readme, "boards", lambda: [known])
    monkeypatch.setattr(readme, "replications", lambda: [known, *trainings, single])
    assert readme.elsewhere() == [single]


def test_boards_that_differ_in_bits_or_width_are_told_apart(readme: ModuleType) -> None:
    cells = importlib.import_module("_cells")
    boards = [plus_board(0, last=0)]
    for changes in ({"mechanism": {"mu": 14, "bits": 1}}, {"codec": {"dim": 128}}):
        boards.append(boards[0].model_copy(update={"config": {**boards[0].config, **changes}}))
    lines = cells.trainings_table([[board] for board in boards])
    names = list(dict.fromkeys(line.split(" | ")[0].removeprefix("| ") for line in lines[2:]))
    assert names == ["PTB, 14", "PTB, 14, n = 1", "PTB, 14, d = 128"]


def test_del_plus_is_quoted_over_its_trainings(readme: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("_del_plus")
    boards = [plus_board(seed, last=2) for seed in (0, 1)] + [plus_board(0, last=0)]
    monkeypatch.setattr(module, "plus_boards", lambda names, within="": boards[:1] if within else boards)
    outcome, table = readme.plus_summary()
    assert "in 1 of 1 settings its R is above DEL's" in outcome
    expected = "no setting was chosen: PTB, 14: R 0.050 → 0.500, strongest attack 26.2% → 26.2%."
    assert outcome.endswith(expected)
    (line,) = table.splitlines()[2:]
    assert line.startswith("| PTB, 14 | 2 | 0.")
    assert line.endswith("| 26.2% → 26.2% | – → – | – → – | – → – |")
    monkeypatch.setattr(module, "plus_boards", lambda names, within="": [])
    assert readme.plus_summary() == []


def plus_board(seed: int, last: int) -> Leaderboard:
    """Controls, DEL and DEL+ with the numbers of four prompts."""
    nll = {"clean": 3.0, "mean": 5.0, "del": 4.9, "del-plus": 4.0}
    rows = [
        row(
            0.1 if name.startswith("del") else name,
            True,
            method=name,
            nll_by_prompt=[level + 0.01 * i for i in range(4)],
        )
        for name, level in nll.items()
    ]
    config = {
        "seed": seed,
        "mechanism": {"mu": 14},
        "codebook": {"last": last, "last_alone": 512, "last_share": 0.2, "frequent": 128, "largest_share": 0.01},
        "adapter": {"rank": 16},
        "methods": list(nll),
    }
    return make_board(rows=rows, reference_tokens=[10, 10, 10, 10], config=config, dataset="ptb")
