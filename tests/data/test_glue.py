"""GLUE: the public template is clean, the parts never overlap, and batches do not depend on interruptions."""

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from del_lightning.config import GLUE_TASKS, NluConfig
from del_lightning.data import glue
from del_lightning.data.glue import TASKS, GlueData, GlueDataModule, check_glue, collate_labelled, glue_task, load_rows
from del_lightning.errors import ConfigError, DataError
from del_lightning.methods import MeanEmbedding
from del_lightning.split import SplitModel

pytestmark = pytest.mark.usefixtures("cache")


def write(root: Path, task: str = "mrpc", train: int = 60, validation: int = 20, **columns: list[Any]) -> Path:
    """Rows of which every sentence is unlike any other; classes alternate."""
    for split, count in (("train", train), ("validation", validation)):
        names = TASKS[task].columns
        texts = {name: [f" {split} row {i} {name} cat " for i in range(count)] for name in names}
        path = root / "glue" / task / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = [int(i % 3 > 0) for i in range(count)]
        pq.write_table(pa.table({**texts, "label": labels, "idx": list(range(count)), **columns}), path)
    return root


@pytest.fixture
def make(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    def build(task: str = "mrpc", **settings: Any) -> GlueData:
        write(tmp_path, task)
        return GlueData(TASKS[task], tiny_tokenizer, NluConfig(task=task, **settings), str(tmp_path))

    return build


def private_text(data: GlueData, example: Any) -> str:
    return data.tokenizer.decode([i for i, own in zip(example.ids, example.private, strict=True) if own])


def test_every_task_of_the_configuration_is_known() -> None:
    assert set(TASKS) == set(GLUE_TASKS)
    for task in TASKS.values():
        assert len(task.pieces) == len(task.columns) + 1
        assert not any(piece.endswith(" ") for piece in task.pieces)


@pytest.mark.parametrize("task", ["sst2", "mrpc"])
def test_template_is_public_and_sentences_are_private(make: Any, task: str) -> None:
    data = make(task)
    example = data.part("test")[3]
    row = data.rows("test")
    assert data.tokenizer.decode(example.ids) == "".join(
        piece + text for piece, text in zip(TASKS[task].pieces, [*(f" {c[3]}" for c in row.texts), ""], strict=True)
    )
    assert private_text(data, example) == "".join(f" {column[3]}" for column in row.texts)
    assert example.label == row.labels[3]
    assert not example.private[-1]  # the last position, which answers, is public


def test_long_sentences_are_cut_one_by_one(make: Any) -> None:
    data = make(sentence_tokens=5)
    full = make()
    cut, whole = data.part("test")[0], full.part("test")[0]
    assert sum(cut.private) == 10
    sentences = full.sentences("test")[0]
    assert data.sentences("test")[0] == [ids[:5] for ids in sentences]
    assert len(whole) - len(cut) == sum(len(ids) - 5 for ids in sentences)


def test_attributes_are_those_of_the_text_that_is_sent(make: Any) -> None:
    """The row's number stands behind the third token: nobody can infer it where it was cut off."""
    rows = [0, 1, 2]
    whole, cut = make().attributes("test", rows), make(sentence_tokens=3).attributes("test", rows)
    assert whole == {"class": [0, 1, 1], "mentions a number": [1, 1, 1]}
    assert cut == {"class": [0, 1, 1], "mentions a number": [0, 0, 0]}


def test_parts_are_disjoint_and_selection_knows_no_seed(make: Any) -> None:
    data = make(train_examples=30, selection_examples=4)

    def texts(name: str, seed: int = 0) -> list[str]:
        return [private_text(data, example) for example in data.part(name, seed)]

    held_out, chosen = set(texts("validation")), [set(texts("train", seed)) for seed in (0, 1)]
    assert len(held_out) == 4
    assert [len(part) for part in chosen] == [30, 30]
    assert chosen[0] != chosen[1]
    assert not any(held_out & part for part in chosen)
    assert all("validation row" in text for text in texts("test"))  # GLUE's validation split is reported only
    assert texts("train", 1) == texts("train", 1)
    # A tenth of GLUE's training split is held out, whatever of it selects.
    assert len(data.training_rows(0)) == 30
    assert len(make(train_examples=None).training_rows(0)) == 54


def test_reported_examples_are_spread_over_the_split(make: Any) -> None:
    data = make(eval_examples=5)
    assert data.rows("test").texts[0] == [f"validation row {i} sentence1 cat" for i in (0, 4, 8, 12, 16)]
    assert [example.index for example in data.part("test")] == [0, 1, 2, 3, 4]


def test_batches_pad_left_and_mark_what_is_private(make: Any) -> None:
    data = make()
    batches = data.batches("test", 6)
    assert sorted(int(i) for batch in batches for i in batch.index) == list(range(20))
    examples = data.part("test")
    for batch in batches:
        assert not batch.target_mask.any()
        for ids, mask, private, index, label in zip(
            batch.input_ids, batch.attention_mask, batch.private_mask, batch.index, batch.label, strict=True
        ):
            example = examples[int(index)]
            assert ids[mask].tolist() == example.ids
            assert private[mask].tolist() == example.private
            assert not private[~mask].any()
            assert mask[-1]
            assert int(label) == example.label
    assert batches[0].to("cpu").label.shape == batches[0].label.shape


def test_only_private_positions_pass_the_front_end(make: Any, tiny_llm: Any) -> None:
    llm = tiny_llm()
    batch = make().batches("test", 4)[0]
    split = SplitModel(llm, MeanEmbedding(llm.embedding_table()))
    embeddings = split.embed(batch, split.release_examples(batch, 0))
    clean = llm.embed(batch.input_ids)
    public = ~batch.private_mask
    assert torch.equal(embeddings[public], clean[public])
    assert torch.equal(embeddings[batch.private_mask], split.method.mean.expand(int(batch.private_mask.sum()), -1))


def test_training_goes_on_where_it_was(make: Any) -> None:
    data = make(train_examples=20)
    whole = GlueDataModule(data, 3, seed=1)
    numbers = [batch.index.tolist() for batch in islice(whole.train_dataloader(), 12)]
    resumed = GlueDataModule(data, 3, seed=1)
    resumed.trainer = SimpleNamespace(global_step=5, global_rank=0, world_size=1, accumulate_grad_batches=1)  # type: ignore[assignment]
    assert [batch.index.tolist() for batch in islice(resumed.train_dataloader(), 7)] == numbers[5:]
    epoch = [i for batch in numbers[:6] for i in batch]
    assert len(set(epoch)) == 18  # no example twice before all had their turn
    other = GlueDataModule(data, 3, seed=2)
    assert [batch.index.tolist() for batch in islice(other.train_dataloader(), 12)] != numbers


def test_training_batches_hold_similar_lengths(make: Any) -> None:
    data = make(train_examples=24)
    data.__dict__["_sentences"]["train"] = [[[7] * (1 + i % 12), [8]] for i in range(len(data.rows("train")))]
    batches = list(islice(GlueDataModule(data, 4, seed=1).train_dataloader(), 12))
    for epoch in (batches[:6], batches[6:]):
        assert sorted(i for batch in epoch for i in batch.index.tolist()) == list(range(24))
    lengths = [[int(n) for n in batch.attention_mask.sum(1)] for batch in batches]
    assert all(max(batch) - min(batch) <= 3 for batch in lengths)
    firsts = [min(batch) for batch in lengths[:6]]
    assert firsts != sorted(firsts)  # long and short batches in random order
    assert [b.index.tolist() for b in batches[:6]] != [b.index.tolist() for b in batches[6:]]


def test_bigrams_are_counted_in_what_may_train(make: Any) -> None:
    data = make()
    train, test = data.tokens("train"), data.tokens("test")
    assert [row.tolist() for row in test.rows()] == [prompt.private_ids for prompt in data.prompts()]
    assert len(train) == len(data.pool(10**6))
    assert train[0].tolist() == data.private_rows("train", data.pool(1))[0]


def test_ranks_share_the_selecting_examples(make: Any) -> None:
    data = make(selection_examples=6, eval_batch_size=2)
    seen: list[int] = []
    for rank in (0, 1):
        module = GlueDataModule(data, 2, seed=0)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        seen += [i for batch in module.val_dataloader() for i in batch.index.tolist()]
    assert sorted(seen) == list(range(6))
    module.trainer = SimpleNamespace(global_rank=1, world_size=4)  # type: ignore[assignment]
    assert len([i for batch in module.val_dataloader() for i in batch.index.tolist()]) == 2
    module.trainer = SimpleNamespace(global_rank=0, world_size=8)  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"`nlu\.selection_examples` must give each of 8 ranks one, got 6"):
        module.val_dataloader()


def test_prompts_and_batches_mean_the_same_private_tokens(make: Any) -> None:
    data = make()
    prompts = data.prompts()
    for batch in data.batches("test", 7):
        for ids, mask, index in zip(batch.input_ids, batch.private_mask, batch.index, strict=True):
            assert ids[mask].tolist() == prompts[int(index)].private_ids


def test_private_tokens_come_from_their_part(make: Any) -> None:
    data = make()
    counts = {split: data.unigram_counts(300, split) for split in ("train", "validation", "test")}
    drawn = data.private_tokens("validation", 50, seed=0)
    assert (torch.bincount(drawn, minlength=300) <= counts["validation"]).all()  # without replacement
    assert torch.equal(drawn, data.private_tokens("validation", 50, seed=0))
    assert not torch.equal(drawn, data.private_tokens("validation", 50, seed=1))
    assert len(data.private_tokens("validation", 10_000, seed=0)) == 10_000
    assert int(counts["test"].sum()) == sum(len(prompt.private_ids) for prompt in data.prompts())
    held_out, pool = (6, 54)
    assert int(counts["train"].sum()) > int(counts["validation"].sum()) * pool / held_out * 0.9


def test_fingerprint_is_over_content(make: Any, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    first = make().fingerprint
    moved = write(tmp_path / "elsewhere")
    assert GlueData(TASKS["mrpc"], tiny_tokenizer, NluConfig(task="mrpc"), str(moved)).fingerprint == first
    assert make(sentence_tokens=7).fingerprint != first
    assert make("rte").fingerprint != first


def test_majority_is_that_of_the_training_rows(make: Any, tmp_path: Path) -> None:
    data = make()
    assert data.majority == 1
    path = tmp_path / "glue" / "mrpc" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).set_column(2, "label", pa.array([int(i % 3 == 0) for i in range(60)])), path)
    other = GlueData(data.task, data.tokenizer, data.config, str(tmp_path))
    assert other.majority == 0
    assert sum(other.rows("test").labels) > len(other.rows("test").labels) / 2  # those that are reported say 1


def test_label_words_must_begin_unlike(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make()
    with pytest.raises(ConfigError, match=r"`nlu\.head` must be linear .* to which \(' no', ' yes'\) begin alike"):
        data.word_ids  # noqa: B018 (to this tokenizer both begin with a space)
    monkeypatch.setattr(data, "task", SimpleNamespace(words=("no", "yes")))
    assert [data.tokenizer.decode(token)[0] for token in data.word_ids] == ["n", "y"]


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`nlu\.task` must be one of sst2, cola, .* got 'wnli'"):
        glue_task("wnli")
    with pytest.raises(DataError, match=r"`data.root` must hold glue/mrpc/train-\*.parquet"):
        check_glue("mrpc", str(tmp_path))
    write(tmp_path)
    check_glue("mrpc", str(tmp_path))
    bad = write(tmp_path / "bad", "sst2", 4, 4, label=[0, 1, -1, 0])
    with pytest.raises(DataError, match=r"split 'train' of `nlu.task` 'sst2' .* must hold 0 or 1 .*, got -1"):
        load_rows(TASKS["sst2"], "train", str(bad))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"label": [0, 1, None, 0]}, "must hold 0 or 1 in column 'label', got None"),
        ({"sentence2": [1.5, 2.5, 3.5, 4.5]}, r"must hold text in column 'sentence2', got 1\.5"),
        (
            {"sentence1": [" "] * 4, "sentence2": [None, "", " ", "\t"]},
            "must hold text in sentence1 or sentence2, got 4 rows without any",
        ),
    ],
)
def test_rows_that_are_no_examples_are_an_error_in_one_line(
    tmp_path: Path, columns: dict[str, list[Any]], complaint: str
) -> None:
    root = write(tmp_path, "mrpc", 4, 4, **columns)
    with pytest.raises(
        DataError, match=rf"^split 'train' of `nlu.task` 'mrpc' \(glue/mrpc/train-\*\.parquet\) {complaint}$"
    ):
        load_rows(TASKS["mrpc"], "train", str(root))


@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.0, 0.0], [False, True, True, False]])
def test_labels_of_another_type_are_the_same_classes(tmp_path: Path, labels: list[Any]) -> None:
    root = write(tmp_path, "mrpc", 4, 4, label=labels)
    assert list(map(repr, load_rows(TASKS["mrpc"], "train", str(root)).labels)) == ["0", "1", "1", "0"]


def test_without_a_root_the_hubs_data_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository in the hub's layout, one configuration a task, in the place of the hub."""
    hub = write(tmp_path) / "glue"
    splits = "".join(f"\n  - split: {name}\n    path: mrpc/{name}-*" for name in ("train", "validation"))
    (hub / "README.md").write_text(f"---\nconfigs:\n- config_name: mrpc\n  data_files:{splits}\n---\n")
    monkeypatch.setattr(glue, "HUB", str(hub))
    monkeypatch.setattr(glue, "check_hub", lambda *_: None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, count in (("train", 60), ("validation", 20)):
        rows = load_rows(glue_task("mrpc"), split, None)
        assert rows == load_rows(glue_task("mrpc"), split, str(tmp_path))
        assert len(rows) == count
    with pytest.raises(DataError, match=r"`nlu.task` 'cola': the hub's .* cannot be read \("):
        load_rows(glue_task("cola"), "train", None)


def test_padding_is_the_tokenizers(make: Any) -> None:
    data = make()
    short, long = sorted(data.part("test"), key=len)[:: len(data.part("test")) - 1]
    batch = collate_labelled([short, long], 7)
    assert (batch.input_ids[0][~batch.attention_mask[0]] == 7).all()


LABEL_NAMES = {
    # GLUE's own names of classes 0 and 1, and the label words that mean them.
    "sst2": {"negative": " negative", "positive": " positive"},
    "cola": {"unacceptable": " no", "acceptable": " yes"},
    "mrpc": {"not_equivalent": " no", "equivalent": " yes"},
    "qqp": {"not_duplicate": " no", "duplicate": " yes"},
    "rte": {"entailment": " yes", "not_entailment": " no"},
    "qnli": {"entailment": " yes", "not_entailment": " no"},
}


@pytest.mark.parametrize("task", TASKS)
def test_label_words_mean_glues_own_classes(task: str) -> None:
    assert TASKS[task].words == tuple(LABEL_NAMES[task].values())


@pytest.mark.parametrize("task", TASKS)
def test_glues_classes_are_named_in_the_files_in_that_order(data_root: Path, task: str) -> None:
    files = sorted((data_root / "glue" / task).glob("validation-*.parquet"))
    if not files:
        pytest.skip(f"no {task} at {data_root}")
    features = json.loads((pq.read_schema(files[0]).metadata or {}).get(b"huggingface", b"{}"))
    if not features:
        pytest.skip(f"the files of {task} do not name their classes")
    assert features["info"]["features"]["label"]["names"] == list(LABEL_NAMES[task])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mrpc", "rte", "cola", "sst2", "qqp"])
def test_real_tasks(data_root: Path, tiny_tokenizer: PreTrainedTokenizerFast, task: str) -> None:
    if not (data_root / "glue" / task).is_dir():
        pytest.skip(f"no {task} at {data_root}")
    check_glue(task, str(data_root))
    data = GlueData(TASKS[task], tiny_tokenizer, NluConfig(task=task, train_examples=50), str(data_root))
    sizes = {"mrpc": 408, "rte": 277, "cola": 1043, "sst2": 872, "qqp": 40430}
    examples = data.part("test")
    assert len(examples) == sizes[task]
    assert {example.label for example in examples} == {0, 1}
    assert all(any(example.private) for example in examples)
    assert len(data.part("train", 0)) == 50
