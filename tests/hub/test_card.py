"""The model card: what it promises is the statement's, what it reports the leaderboard's."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from del_lightning.config import Config, ModelConfig
from del_lightning.llm import FrozenLLM
from del_lightning.report import words
from del_lightning.split import SplitModel
from tests.hub.factory import MU, TOKENS, board_of, make_split, own_row


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, Any]:
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


def test_its_first_screen_says_what_it_is_what_it_protects_and_how_to_use_it(split: SplitModel, folder: Path) -> None:
    """Forty lines below the front matter: the guarantee with its epsilon, what was read of it, and the code."""
    screen = "\n".join(card_of(folder).partition("\n---\n")[2].splitlines()[:40])
    ours = own_row(split)
    retained, worst = ours.retained, words.worst_attack(ours)
    assert retained is not None
    assert worst is not None
    assert "without sending their prompt in the clear" in screen
    assert f"How much gets through: R = {words.with_interval(retained)}, over 96 prompts" in screen
    assert "exact epsilon " in screen
    assert f"names {words.percent(worst.value)} [" in screen
    assert f"] of {words.count(worst.n)} private tokens of test prompts" in screen
    order = ("## What it protects, and what not", "exp(", "Not protected:", "## How to use it", "from_pretrained(")
    places = [screen.index(one) for one in order]
    assert places == sorted(places)


def test_a_stranger_understands_its_words(folder: Path) -> None:
    card = card_of(folder)
    for ours in ("front-end", "ASR", "COH", "given value", "DEL, "):
        assert ours not in card.partition("\n---\n")[2].partition("\n")[2], ours
    assert "made-up corpus" in card


def test_a_known_corpus_is_named_by_where_it_comes_from(split: SplitModel, tmp_path: Path) -> None:
    config = asdict(Config()) | {"data": {"name": "wikitext2"}, "codec": {"corpus": "c4"}}
    card = card_of(split.save_pretrained(tmp_path / "x", results=board_of(split, dataset="wikitext2", config=config)))
    assert "96 prompts from the test part of `wikitext2` (hub: Salesforce/wikitext), 5\u202f856 private tokens" in card
    found = front_matter(card)
    assert found["datasets"] == ["Salesforce/wikitext", "allenai/c4"]
    assert found["model-index"][0]["results"][0]["dataset"] == {
        "type": "Salesforce/wikitext",
        "name": "wikitext2",
        "split": "test",
    }
    lee = board_of(split, dataset="lee", config=config | {"data": {"name": "lee"}, "codec": {"corpus": "lee"}})
    card = card_of(split.save_pretrained(tmp_path / "y", results=lee))
    assert "`lee` (Lee news corpus, packaged with gensim)" in card
    assert "datasets" not in front_matter(card)  # it is on no hub


def test_it_reports_utility_and_attacks_with_their_intervals(split: SplitModel, folder: Path) -> None:
    card, ours = card_of(folder), own_row(split)
    assert ours.perplexity is not None
    assert ours.retained is not None
    line = next(line for line in card.splitlines() if line.startswith("| these noisy codes | yes |"))
    assert words.with_interval(ours.perplexity) in line
    assert words.with_interval(ours.retained) in line
    for control in ("the prompt in the clear", "the prompt's length only"):
        assert card.count(f"| {control} | yes | ") == card.count(f"| {control} | no | ") == 1
    assert card.count("| these noisy codes | ") == 2
    for name, rate in ours.asr.items():
        (line,) = (line for line in card.splitlines() if line.startswith(f"| {name.replace('worst', 'the strongest')}"))
        assert f"| {words.percent(rate.value)} [" in line
        assert line.endswith(f"] of {words.count(rate.n)} |")


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


def test_the_license_is_the_one_that_is_given_or_the_model_s_own(
    tiny_llm: Callable[..., FrozenLLM], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    split = make_split(tiny_llm, name=str(model))

    def published(license: str | None = None) -> tuple[dict[str, object], str]:
        card = card_of(split.save_pretrained(tmp_path / "x", license=license))
        named = {key: value for key, value in front_matter(card).items() if key.startswith("license")}
        return named, card.partition("\n## License\n\n")[2]

    assert published() == ({}, "None is named here: ask whoever published it, and see that of the language model.\n")
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: gemma\nlicense_link: https://x/y\n---\n# It\n")
    told = {"license": "other", "license_name": "gemma", "license_link": "https://x/y"}
    assert published() == (told, "That of the language model: gemma (https://x/y). None of its own was named.\n")
    assert published("mit") == ({"license": "mit"}, "mit.\n")


def test_a_packaged_model_is_named_as_the_hub_knows_it(tiny_llm: Callable[..., FrozenLLM], tmp_path: Path) -> None:
    split = make_split(tiny_llm, name="smollm2-135m-instruct")
    found = front_matter(card_of(split.save_pretrained(tmp_path / "x", results=board_of(split))))
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (found["license"], found["pipeline_tag"]) == ("apache-2.0", "text-generation")
    assert found["model-index"][0]["results"][0]["metrics"][0]["name"].endswith(", n = 96")


def test_the_card_is_one_that_the_hub_s_client_reads(folder: Path) -> None:
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("del-lightning", "text-generation", None)
    assert {result.metric_type for result in data.eval_results} >= {"perplexity", "attack_success_rate"}


def test_without_measurements_it_says_so(split: SplitModel, tmp_path: Path) -> None:
    card = card_of(split.save_pretrained(tmp_path / "x"))
    assert "Nothing: it was published without measurements." in card
    assert "Not tried: no attack was run on it." in card
    assert "those above" not in card
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
