"""The NLU report says what its numbers say, in every format, and invents none."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from rich.console import Console

from del_lightning.report import drawing, nlu, nlu_page, nlu_plots, nlu_prose
from del_lightning.report.schema import Estimate, NluAttribute, NluCost, NluLeaderboard, NluRow, NluValidation
from del_lightning.report.stored import rounded
from tests.report.factory import calibration, make_board, rate

FRONTS = {
    # label: method, bits, value, target, accuracy, auc, nearest-neighbour ASR
    "Clean prompt": ("clean", None, None, None, 0.831, 0.912, 1.0),
    "Mean embedding": ("mean", None, None, None, 0.503, 0.5, 0.0),
    "DEL, 1 bit, ASR 0.1": ("del", 1, 19.0, 0.1, 0.541, 0.552, 0.09),
    "DEL, 4 bits, ASR 0.02": ("del", 4, 9.0, 0.02, 0.522, 0.531, 0.018),
    "DEL, 4 bits, ASR 0.1": ("del", 4, 21.0, 0.1, 0.562, 0.613, 0.095),
}


def t(value: float, spread: float = 0.03) -> Estimate:
    return Estimate(value=value, n=3, low=value - spread, high=value + spread, interval="t")


def figures(accuracy: float, auc: float) -> dict[str, Estimate]:
    return {"accuracy": t(accuracy), "f1": t(accuracy + 0.04), "matthews": t(2 * accuracy - 1), "auc": t(auc)}


def row(variant: str, label: str) -> NluRow:
    method, bits, value, target, accuracy, auc, asr = FRONTS[label]
    privacy = make_board().rows[-1].privacy if method == "del" else None
    sent = 18.0 * (bits or 0)
    return NluRow(
        variant=variant,
        method=method,
        label=label,
        is_control=value is None,
        bits=bits,
        parameter=None if value is None else "mu",
        value=value,
        target=target,
        matching=None if value is None else "nearest",
        seeds=3,
        steps=40,
        over_seeds=figures(accuracy, auc),
        over_examples=figures(accuracy, auc),
        asr={
            "nearest neighbour (cosine)": rate(asr),
            "Bayes-optimal": rate(min(1.0, 2 * asr)),
            "worst": rate(min(1.0, 2 * asr)),
        },
        privacy=privacy,
        cost=NluCost(
            server_parameters=12_000 if variant == "prompt" else 15_000_000,
            user_parameters=900_000,
            user_bytes=3_600_000,
            bits_per_token=sent,
            bits_per_text=sent * 25,
            bits_back=1,
        ),
    )


def board(**changes: object) -> NluLeaderboard:
    base = make_board()
    majority = row("prompt", "Mean embedding").model_copy(
        update={"variant": "majority", "method": "majority", "label": "Majority class", "asr": {}}
    )
    rows = [majority, *(row(variant, label) for variant in ("snd", "prompt") for label in FRONTS)]
    attribute = NluAttribute(
        label="Clean prompt", attribute="mentions a <number>", majority=0.57, accuracy=rate(0.98), auc=rate(0.99)
    )
    values = {
        "title": "Made-up GLUE",
        "schedule": "made-up",
        "task": "mrpc",
        "metric": "f1",
        "model": "made-up-135m",
        "head": "linear",
        "train_examples": 256,
        "selection_examples": 64,
        "eval_examples": 200,
        "private_tokens": 9000,
        "seeds": [0, 1, 2],
        "rows": rows,
        "attributes": [attribute],
        "calibrations": [],
        "notes": ["A made-up note & more."],
        "config": base.config,
        "overrides": ["experiment=cpu/mrpc", "data.root=DIR"],
        "environment": base.environment,
        "wall_seconds": 3720.0,
        "generated": "2026-01-01T00:00:00+00:00",
    }
    return NluLeaderboard(**{**values, **changes})


def test_ways_to_classify_stand_side_by_side_end_to_end_first() -> None:
    shown = nlu.columns(board())
    assert [column.line for column in shown[:6]] == [
        f"{figure} ({framework}, {name})"
        for framework, name in (("End to end", "soft prompt"), ("SnD framework", "denoiser at the server"))
        for figure in ("Accuracy", "F1", "AUC")
    ]
    assert [column.line for column in shown[6:]] == [
        "ASR (nearest neighbour)",
        "ASR (Bayes-optimal)",
        "ASR (strongest that was run)",
        "ε of a text (δ = 10⁻⁵)",
        "Bits a token",
    ]
    best = next(front for front in nlu.fronts(board()) if front.label == "DEL, 4 bits, ASR 0.1")
    cells = [column.cell(best) for column in shown]
    assert (cells[0].text, cells[0].small) == ("0.562", ("[0.532, 0.592]",))
    assert (cells[2].text, cells[6].text) == ("0.613", "9.5%")


def test_a_front_end_stands_once_and_controls_first() -> None:
    labels = [front.label for front in nlu.fronts(board())]
    assert sorted(labels) == sorted(FRONTS)
    assert labels[:2] == ["Clean prompt", "Mean embedding"]


def one_bit_out_of_reach() -> NluLeaderboard:
    """DEL at one bit ends at mu 19 for its target and for one above."""
    made = calibration("del", "DEL, 1 bit")
    result = made.found["nearest"][0]
    reached = {0.1: False, 0.02: True}
    made.found["nearest"] = [
        result.model_copy(update={"target": target, "reached": found}) for target, found in reached.items()
    ]
    above = [
        one.model_copy(update={"label": "DEL, 1 bit, ASR 0.15", "target": 0.15})
        for one in board().rows
        if one.label == "DEL, 1 bit, ASR 0.1"
    ]
    made.found["nearest"].append(result.model_copy(update={"target": 0.15, "reached": False}))
    return board(rows=[*board().rows, *above], calibrations=[made])


def test_a_level_that_is_not_reached_says_so_in_every_table() -> None:
    made = one_bit_out_of_reach()
    named = {nlu.front_name(made, front) for front in nlu.fronts(made)}
    assert {name for name in named if "DEL" in name} == {
        "DEL, 1 bit, ASR 0.1 (not reached)",
        "DEL, 1 bit, ASR 0.15 (not reached)",
        "DEL, 4 bits, ASR 0.02",
        "DEL, 4 bits, ASR 0.1",
    }
    page, markdown = nlu_page.render_html(made), nlu_page.render_markdown(made)
    assert all(text.count("DEL, 1 bit, ASR 0.15 (not reached)") == 1 for text in (page, markdown))


def test_levels_that_share_the_end_of_the_range_are_one_private_row() -> None:
    made = one_bit_out_of_reach()
    labels = ["DEL, 1 bit, ASR 0.1", "DEL, 4 bits, ASR 0.02", "DEL, 4 bits, ASR 0.1"]
    assert [row.label for row in nlu.private(made, "snd")] == labels
    assert len(nlu.private(made)) == 2 * len(labels)


def test_a_way_that_was_not_run_behind_a_front_end_leaves_a_gap() -> None:
    rows = [r for r in board().rows if (r.variant, r.method) != ("snd", "clean")]
    shown = nlu.columns(board(rows=rows))
    clean = next(front for front in nlu.fronts(board(rows=rows)) if front.method == "clean")
    assert shown[3].cell(clean).text == "–"
    assert shown[0].cell(clean).text == "0.831"


def test_sentences_come_from_the_numbers() -> None:
    first, second, third, last = nlu_prose.outcome(board())
    assert "soft prompt: clean text 0.831 [0.801, 0.861] accuracy, 32.8 points from the majority class (0.503)" in first
    assert "denoiser at the server: clean text" in second
    end_to_end, snd = third.split("SnD framework")
    assert third.startswith("DEL, 4 bits, ASR 0.1 (what every report quotes, whatever came out)")
    assert "soft prompt 0.613 [0.583, 0.643] over seeds, 0.613 [0.583, 0.643] over examples" in end_to_end
    assert "denoiser at the server 0.613" in snd
    assert ", above 0.500 [" in third
    assert "with the length of the text alone" in third
    assert "not surely" not in third
    assert last.startswith("Of 6 private rows, at every level and number of bits, 6 are above what the length")
    assert len(nlu_prose.outcome(board(seeds=[0]))) == 3  # one training has no interval over seeds


def test_the_quoted_setting_does_not_depend_on_results() -> None:
    """DEL at 4 bits and 0.1 also where another front-end came out better."""
    better = [
        r.model_copy(update={"over_seeds": figures(0.9, 0.95)}) if r.label == "DEL, 1 bit, ASR 0.1" else r
        for r in board().rows
    ]
    assert nlu.headline(board(rows=better)) == "DEL, 4 bits, ASR 0.1"
    worst = row("snd", "DEL, 4 bits, ASR 0.1").model_copy(update={"label": "worst", "matching": "worst"})
    assert nlu.headline(board(rows=[worst, *better])) == "DEL, 4 bits, ASR 0.1"
    rows = [r for r in better if r.label != "DEL, 4 bits, ASR 0.1"]
    assert nlu.headline(board(rows=rows)) == "DEL, 1 bit, ASR 0.1"  # the target goes before the bits
    controls = [r for r in better if r.is_control]
    assert nlu.headline(board(rows=controls)) is None
    assert len(nlu_prose.outcome(board(rows=controls))) == 2


@pytest.mark.parametrize(("seeds", "examples", "told"), [(0.6, 0.6, True), (0.6, 0.52, False), (0.52, 0.6, False)])
def test_chance_is_excluded_over_seeds_and_over_examples(seeds: float, examples: float, told: bool) -> None:
    changed = {"over_seeds": figures(0.5, seeds), "over_examples": figures(0.5, examples)}
    rows = [r if r.is_control else r.model_copy(update=changed) for r in board().rows]
    assert ("not surely above" not in nlu_prose.outcome(board(rows=rows))[-2]) is told
    single = {"over_seeds": {**figures(0.5, 0.6), "auc": Estimate(value=0.6, n=1)}}
    assert not nlu.beats_chance(row("snd", "DEL, 4 bits, ASR 0.1").model_copy(update=single))


def test_costs_are_ranges_over_front_ends() -> None:
    prompt, snd = nlu.cost_rows(board())
    assert (prompt["Trained at the server"], snd["Trained at the server"]) == ("12\u202f000", "15\u202f000\u202f000")
    assert prompt["Bits sent a text"] == "0 to 1\u202f800"


@pytest.mark.parametrize(("head", "reads"), [("linear", "a linear head"), ("verbaliser", "label words (a verbaliser)")])
def test_the_setup_names_what_reads_the_answer(head: str, reads: str) -> None:
    sentence = f"Behind a soft prompt or adapter the answer is read by {reads}."
    assert sentence in nlu_prose.setup(board(head=head))
    others = [row for row in board().rows if row.variant != "prompt"]
    assert "is read by" not in nlu_prose.setup(board(head=head, rows=others))  # there is nothing that it is behind


def test_one_training_is_no_mean() -> None:
    one, three = (nlu_page.render_markdown(board(seeds=seeds)) for seeds in ([0], [0, 1, 2]))
    assert "One training. Majority class" in one
    assert "Mean over 3 trainings with Student's 95% interval over seeds. Majority class" in three


def test_every_format_holds_the_table(tmp_path: Path) -> None:
    page = nlu_page.write_nlu_report(tmp_path / "report", board())
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    for text in (html, markdown):
        for label in FRONTS:
            assert label in text
        assert "0.613" in text
        assert "&amp; more" in text
        assert "mentions a &lt;number&gt;" in text
    stored = NluLeaderboard.model_validate_json((page.parent / "leaderboard.json").read_text())
    assert stored == NluLeaderboard.model_validate(rounded(board().model_dump()))
    assert not re.search(r"(src|href)=[\"']https?:", html)
    assert "python -m del_lightning experiment=cpu/mrpc data.root=DIR" in html
    assert html.count("<figure") == 4  # two figures, two ways to classify


def test_a_figure_is_the_same_twice_and_empty_without_rows() -> None:
    first = nlu_plots.utility(board(), "prompt", "auc")
    assert first == nlu_plots.utility(board(), "prompt", "auc")
    assert "majority" not in first  # an area needs no such line
    assert "majority class" in nlu_plots.utility(board(), "prompt", "accuracy")
    controls = [r for r in board().rows if r.is_control]
    assert nlu_plots.utility(board(rows=controls), "prompt", "auc") == ""


def test_figures_stand_at_the_strongest_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line runs through the strongest attack's success; a hollow marker shows the nearest neighbour's."""
    places: dict[str, list[float]] = {"lines": [], "hollow": []}
    plot = Axes.plot

    def record(axes: Axes, x: list[float], *values: Any, **style: Any) -> Any:
        places["hollow" if "markerfacecolor" in style else "lines"] += x
        return plot(axes, x, *values, **style)

    monkeypatch.setattr(Axes, "plot", record)
    svg = nlu_plots.utility(board(), "snd", "auc")
    assert places == {"lines": [0.18, 0.036, 0.19], "hollow": [0.09, 0.018, 0.095]}
    assert "strongest attack (hollow: nearest neighbour)" in svg


def test_mechanisms_are_told_apart_by_shape_and_colour() -> None:
    drawn = nlu_plots.styles(board())
    assert list(drawn) == ["DEL, 1 bit", "DEL, 4 bits"]
    assert len({style.marker for style in drawn.values()}) == 2
    assert {style.colour for style in drawn.values()} == {drawing.styles_of(["del"])["del"].colour}
    alone = board(rows=[one for one in board().rows if one.is_control or one.bits == 4])
    assert nlu_plots.styles(alone)["DEL, 4 bits"].marker == drawn["DEL, 4 bits"].marker


def test_names_of_controls_stand_beside_the_plot_and_a_key_under_each_figure() -> None:
    svg = nlu_plots.utility(board(), "snd", "auc")
    axes = re.search(r'patch_2">\s*<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) ', svg)
    assert axes is not None
    places = {name: float(x) for x, name in re.findall(r'<text[^>]*x="([\d.]+)"[^>]*>(clean text|length only)<', svg)}
    assert places
    assert min(places.values()) > float(axes[2])
    page = nlu_page.render_html(board())
    section = page[page.index('<section id="utility"') : page.index('<section id="cost"')]
    assert section.count("<figure>") == section.count('<p class="key">') > 0
    assert '<p class="key">' not in section[: section.index("<figure>")]


@pytest.mark.parametrize(("seeds", "trainings"), [([0], "one training"), ([0, 1, 2], "3 trainings")])
def test_terminal_shows_values(seeds: list[int], trainings: str) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(nlu.console_table(board(seeds=seeds)))
    text = console.export_text()
    assert "DEL, 4 bits, ASR 0.1" in text
    assert "0.61" in text
    assert trainings in text
    assert "not reached" not in text


def test_terminal_marks_levels_that_are_not_reached() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(nlu.console_table(one_bit_out_of_reach()))
    text = console.export_text()
    assert "DEL, 1 bit, ASR 0.15* " in text
    assert "DEL, 4 bits, ASR 0.1 " in text
    assert "* This level is not reached." in " ".join(text.split())


def test_all_ways_fit_a_terminal_of_80_columns() -> None:
    longest = {"label": "Gaussian on the code, ASR 0.15"}
    rows = [row(way, label) for way in nlu.VARIANTS for label in FRONTS]
    rows += [row(way, "DEL, 4 bits, ASR 0.1").model_copy(update=longest) for way in nlu.VARIANTS]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(nlu.console_table(board(rows=[board().rows[0], *rows])))
    text = console.export_text()
    assert "Gaussian on the code, ASR 0.15" in text
    assert "…" not in text


def trained(start: float | None, *best: float, variant: str = "snd") -> NluLeaderboard:
    """The board with held-out errors in every row of a way to classify."""
    found = [NluValidation(start=start, best=value) for value in best]
    rows = [row.model_copy(update={"validation": found}) if row.variant == variant else row for row in board().rows]
    return board(rows=rows, best_constant=0.5)


@pytest.mark.parametrize(("error", "count"), [(0.49, 0), (0.5, 3), (0.57, 3)])
def test_denoisers_are_held_against_the_best_constant(error: float, count: int) -> None:
    told = nlu_prose.outcome(trained(2.0, error - 0.1, error + 0.1))[-1]
    behind = f"behind {count} of 3 private front-ends" if count else "behind every private front-end"
    assert f"{behind} the denoiser comes {'no ' if count else ''}nearer" in told
    assert f"{error:g} against 0.5" in told.replace("0.500", "0.5").replace("0.490", "0.49").replace("0.570", "0.57")
    assert ("how short its training was" in told) is (count > 0)
    assert "best constant" not in " ".join(nlu_prose.outcome(board()))  # older boards do not hold it


def test_what_trainings_reached_is_a_table_of_its_own() -> None:
    one = trained(0.7, 0.7, 0.6, variant="prompt")
    lines = nlu.validation_rows(one)
    assert len(lines) == len([row for row in one.rows if row.variant == "prompt"])
    shown = {name: lines[0][name] for name in ("Error", "Before training", "Left as it started")}
    assert shown == {"Error": "cross-entropy, nats", "Before training": "0.700", "Left as it started": "1 of 2"}
    assert "Left as it started" in nlu_page.render_html(one)
    assert "Left as it started" in nlu_page.render_markdown(one)
    assert "Left as it started" not in nlu_page.render_html(board())
    assert nlu.validation_rows(trained(None, 0.9))[0]["Left as it started"] == "–"


def test_trainings_that_could_only_lose_are_named_in_older_boards() -> None:
    assert "may be below what no training at all gives" in nlu_prose.notes(board())[-1]
    assert nlu_prose.notes(board(tuned_start_counts=True)) == board().notes
    tuned = [row for row in board().rows if row.variant != "prompt"]
    assert nlu_prose.notes(board(rows=tuned)) == board().notes
    assert "no training at all" in nlu_page.render_html(board())


def test_clean_text_is_held_to_what_private_rows_are_held_to() -> None:
    clean = [line for line in nlu_prose.outcome(board()) if "clean text" in line]
    assert clean
    assert all("surely above that of the length alone" in line for line in clean)
    assert not any("length alone" in line for line in nlu_prose.outcome(board(seeds=[0])) if "clean text" in line)
