"""What the replication page says to have covered of the paper is found in the runs, and whose code made them."""

import re
from pathlib import Path
from typing import Any

import pytest

from del_lightning.report.schema import Estimate
from del_lightning.report.site import write_site
from del_lightning.report.site.claims import Comparison, exact, weigh
from del_lightning.report.site.coverage import Part, Scope, lines, provenance
from del_lightning.report.site.replication import ITEMS
from del_lightning.report.site.runs import Run
from tests.report.factory import estimate, make_board, make_large_board

GAIN = Estimate(value=0.2, n=9, low=0.1, high=0.3, interval="bootstrap")


def run(slug: str, seed: int = 0, dirty: bool | None = False, **changes: Any) -> Run:
    board = make_board(dataset="ptb", **changes)
    environment = board.environment.model_copy(update={"dirty": dirty})
    return Run(slug, "made up", board.model_copy(update={"environment": environment, "config": {"seed": seed}}))


def compared(*runs: Run, second: str = "RANTEXT, ASR 0.1", gain: Estimate = GAIN) -> Comparison:
    what = f"COH at nearest-neighbour {second.split(', ')[1]} of {len(runs)}"
    return Comparison(runs, what, ("DEL", estimate(1.0)), (second, estimate(1.0)), gain)


def covered(scope: Scope, *comparisons: Comparison) -> dict[str, tuple[str, str]]:
    return {line.name: (line.ours, line.missing) for line in lines(scope, weigh(comparisons, "nothing"))}


SCOPE = Scope(
    ("PTB", "WikiText-2"),
    (Part("small ones", "made-up-135m"), Part("large ones", "70b")),
    (Part("RANTEXT", "RANTEXT,"), Part("InferDPT", "InferDPT,")),
    (Part("ASR 0.1", r"ASR 0\.1(?!\d)"), Part("ASR 0.15", r"ASR 0\.15")),
)


def test_what_is_covered_and_what_is_missing_comes_from_the_runs() -> None:
    found = covered(SCOPE, compared(run("a")))
    assert found["Data sets"] == ("PTB", "WikiText-2")
    assert found["Models"] == ("made-up-135m", "large ones")
    assert found["Compared with"] == ("RANTEXT", "InferDPT")
    assert found["Settings"] == ("ASR 0.1", "ASR 0.15")
    more = compared(run("b", model="other-70B"), second="InferDPT, ASR 0.15")
    found = covered(SCOPE, compared(run("a")), more)
    assert found["Models"] == ("made-up-135m and other-70B", "None.")
    assert found["Compared with"][1] == found["Settings"][1] == "None."


def test_what_never_met_in_one_comparison_is_named_though_each_part_was_covered() -> None:
    found = covered(SCOPE, compared(run("a")), compared(run("b"), second="InferDPT, ASR 0.15"))
    assert {found[name][1] for name in ("Compared with", "Settings")} == {"None."}
    assert found["Together"] == ("2 of 8 combinations of the above.", "PTB: RANTEXT, ASR 0.15; PTB: InferDPT, ASR 0.1")
    every = [compared(run("c"), second=f"{name}, ASR {at}") for name in ("RANTEXT", "InferDPT") for at in (0.1, 0.15)]
    assert covered(SCOPE, *every)["Together"] == ("4 of 8 combinations of the above.", "None.")
    assert covered(SCOPE, compared(run("d")), *every[:2])["Together"][1] == "PTB: InferDPT"
    assert "Together" not in covered(Scope(("PTB",)), compared(run("a")))


def test_without_a_run_all_is_missing_and_what_is_not_known_is_not_made_up() -> None:
    found = covered(SCOPE)
    assert found["Data sets"] == ("None.", "PTB and WikiText-2")
    assert found["Trainings"][0] == "None."
    assert covered(Scope(), compared(run("a")))["Data sets"] == ("PTB", "The paper's list is not known here.")


def test_trainings_are_counted_by_their_seeds() -> None:
    several = compared(run("a"), run("b", seed=1), run("c", seed=2))
    found = covered(SCOPE, several, compared(run("a")), compared(run("d"), second="InferDPT, ASR 0.1"))
    assert found["Trainings"][0] == (
        "PTB: 1 comparison over 3 trainings (seeds 0, 1 and 2), 2 comparisons over one training (seed 0)"
    )
    computed = covered(SCOPE, compared(run("a"), gain=exact(0.1)))
    assert computed["Trainings"][0] == "None is needed: computed, not measured."


@pytest.mark.parametrize(
    ("dirty", "sentence", "named"),
    [
        ([], "No run is used.", []),
        ([False], "1 run, made by code that was committed.", []),
        ([False, True], "2 runs; 1 of them was made by code with changes that were not committed:", ["run-1"]),
        ([True, True], "2 runs; 2 of them were made by code with changes that were not committed:", ["run-0", "run-1"]),
    ],
)
def test_runs_of_code_that_was_not_committed_are_named(dirty: list[bool], sentence: str, named: list[str]) -> None:
    found = provenance([run(f"run-{number}", dirty=one) for number, one in enumerate(dirty)])
    assert (found.sentence, [one.slug for one in found.uncommitted]) == (sentence, named)


def test_code_from_no_checkout_is_named_too() -> None:
    made = run("a", dirty=None)
    environment = made.board.environment.model_copy(update={"revision": None})
    found = provenance([Run("a", "", made.board.model_copy(update={"environment": environment}))])
    assert found.uncommitted
    assert found.sentence.endswith("or by code from no checkout:")


def test_every_item_of_the_page_has_its_coverage_and_code(tmp_path: Path) -> None:
    runs = [Run("large", "made up", make_large_board(dataset="ptb"))]
    home = write_site(tmp_path / "site", runs)
    text = (home.parent / "replication.html").read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([\w-]+)">(.*?)</section>', text, re.DOTALL)
    assert [name for name, _ in sections] == [item.anchor for item in ITEMS]
    for _, section in sections:
        for name in ("Data sets", "Models", "Trainings", "Code"):
            assert f'<th scope="row">{name}</th>' in section
    first = dict(sections)["generation"]
    assert "<td>PTB</td><td>WikiText-2 and CNN/DailyMail</td>" in first
    assert "<td>RANTEXT and InferDPT</td><td>None.</td>" in first
    provenance_of_all = text[text.index('id="provenance"') : text.index("<nav")]
    assert "1 run; 1 of them was made by code with changes that were not committed" in provenance_of_all
    assert 'href="runs/large.html"' in provenance_of_all


def test_patterns_find_what_the_committed_runs_say(committed_site: Path) -> None:
    """A pattern that no longer fits how comparisons are worded would call missing what was run."""
    text = (committed_site.parent / "replication.html").read_text(encoding="utf-8")
    line = re.compile(r'<th scope="row">([^<]*)</th><td>([^<]*)</td><td>([^<]*)</td>')
    sections = dict(re.findall(r'<section id="([\w-]+)">(.*?)</section>', text, re.DOTALL))
    found = {name: {kind: lacking for kind, _, lacking in line.findall(section)} for name, section in sections.items()}
    for item in ITEMS:
        for kind, parts in (("Compared with", item.scope.methods), ("Settings", item.scope.settings)):
            assert found[item.anchor].get(kind) == ("None." if parts else None), item.anchor
    assert found["gaussian"]["Models"] == "Qwen2.5-7B"
    assert found["understanding"]["Data sets"] == "None."
