"""The model card: what it promises is the statement's, what it reports the leaderboard's."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from del_lightning.config import Config, ModelConfig
from del_lightning.llm import FrozenLLM
from del_lightning.report import words
from del_lightning.split import SplitModel
from tests.hub.factory import MU, TOKENS, board_of, make_split, own_row


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, object]:
    found = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    assert found is not None
    content = yaml.safe_load(found[1])
    assert isinstance(content, dict)
    return content


def test_it_states_the_exact_guarantee(split: SplitModel, folder: Path) -> None:
    card = card_of(folder)
    assert split.method is not None
    statement = split.method.statement(TOKENS)
    assert len(statement.plain()) == 2
    for words_of_a_unit in statement.plain():
        assert f"- {words_of_a_unit}\n" in card
    assert statement.summary() in card
    assert "Not protected: how long the prompt is" in card
    assert split.llm.fingerprint in card


def test_it_reports_utility_and_attacks_with_their_intervals(split: SplitModel, folder: Path) -> None:
    card, ours = card_of(folder), own_row(split)
    assert ours.perplexity is not None
    assert ours.retained is not None
    line = next(line for line in card.splitlines() if line.startswith("| DEL, ASR 0.1 + soft prompt |"))
    assert words.with_interval(ours.perplexity) in line
    assert words.with_interval(ours.retained) in line
    assert "| Clean prompt |" in card
    assert "Projection" not in card
    for name, rate in ours.asr.items():
        assert f"| {name} | {words.percent(rate.value)} [" in card


@pytest.mark.parametrize(("bound", "expected"), [(0.42, "reads at most 42% of them"), (0.9991, None), (None, None)])
def test_a_bound_on_all_attacks_is_quoted_where_it_says_something(
    split: SplitModel, tmp_path: Path, bound: float | None, expected: str | None
) -> None:
    board = board_of(split, rows=[own_row(split, certified=bound)])
    card = card_of(split.save_pretrained(tmp_path / "x", results=board))
    assert ("whatever it computes" in card) == (expected is not None)
    assert (expected or "") in card


def test_the_hub_reads_its_front_matter(folder: Path, split: SplitModel) -> None:
    found = front_matter(card_of(folder))
    assert found["library_name"] == "del-lightning"
    assert "base_model" not in found  # it is on no hub
    assert "differential-privacy" in found["tags"]
    (model,) = found["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in model["results"][0]["metrics"]}
    ours = own_row(split)
    assert ours.perplexity is not None
    assert metrics["perplexity"] == ours.perplexity.value
    assert metrics["attack_success_rate"] == max(rate.value for rate in ours.asr.values())


def test_without_measurements_it_says_so(split: SplitModel, tmp_path: Path) -> None:
    card = card_of(split.save_pretrained(tmp_path / "x"))
    assert "Nothing: this front-end was published without measurements." in card
    assert "results.json" not in card
    assert "model-index" not in front_matter(card)


def test_names_cannot_break_out_of_it(tiny_llm: Callable[..., FrozenLLM], tmp_path: Path) -> None:
    split = make_split(tiny_llm, name="made`up | <b>model</b>\n# Title")
    board = board_of(split, dataset="a | b\n# c <script>", schedule="[x](http://y)", rows=[own_row(split, label="a|b")])
    card = card_of(split.save_pretrained(tmp_path / "x", results=board))
    assert "<script>" not in card
    assert "<b>" not in card
    assert "[x]" not in card
    assert "\n# c" not in card
    assert "| a b + soft prompt |" in card


def example(card: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return str(block)


def test_its_example_runs(split: SplitModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reader's own folder of a language model that is on no hub."""
    asked = []

    def load(config: ModelConfig) -> FrozenLLM:
        asked.append(config)
        return split.llm

    monkeypatch.setattr("del_lightning.loading.load_llm", load)
    printed: list[str] = []
    exec(example(card_of(folder)).replace("FOLDER OR REPOSITORY", str(folder)), {"print": printed.append})
    assert asked == [ModelConfig("FOLDER OF THE MODEL", "float32")]
    assert len(printed) == 1


def test_its_example_names_the_repository(
    tiny_llm: Callable[..., FrozenLLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(tiny_llm, name="somebody/tiny")
    config = asdict(Config())
    config["model"]["name"] = "somebody/tiny"
    folder = split.save_pretrained(tmp_path / "x", results=board_of(split, config=config), repo_id="me/it")
    card = card_of(folder)
    assert front_matter(card)["base_model"] == "somebody/tiny"
    assert 'SplitModel.from_pretrained("me/it")  # loads somebody/tiny, too' in card
    monkeypatch.setattr("del_lightning.split.load_llm", lambda config: split.llm)
    exec(example(card).replace("me/it", str(folder)), {"print": lambda text: None})


def test_mu_never_stands_without_its_epsilon(folder: Path) -> None:
    for line in card_of(folder).splitlines():
        if re.search(rf"\bmu {MU:g}\b", line):
            assert "epsilon" in line
