"""Prompts follow the protocol; batches are laid out right and never depend on where training was interrupted."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from del_lightning.config import DataConfig
from del_lightning.data import Batch, Corpus, Example, GenerationDataModule, check_corpus, collate, load_corpus
from del_lightning.data.generation import deal
from del_lightning.errors import AssetError, DataError

pytestmark = pytest.mark.usefixtures("cache")


def numbered(first: int, count: int, words: int) -> list[str]:
    """Documents of which every word is unlike any other."""
    return [" ".join(f"{first + d}-{w}" for w in range(words)) for d in range(count)]


CORPUS = Corpus(
    "toy",
    "memory",
    {"train": numbered(0, 30, 40), "validation": numbered(100, 12, 30), "test": numbered(200, 9, 25)}.__getitem__,
)


@pytest.fixture
def make(tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    def build(corpus: Corpus = CORPUS, batch_size: int = 4, seed: int = 0, **changes: Any) -> GenerationDataModule:
        more = {k: changes.pop(k) for k in ("split_ratio", "block_tokens", "documents") if k in changes}
        settings = {"min_words": 20, "prompt_words": 8, "train_tokens": 32, "prefix": "go on\n"} | changes
        return GenerationDataModule(
            corpus, tiny_tokenizer, DataConfig(**settings), batch_size=batch_size, seed=seed, **more
        )

    return build


def attach(module: GenerationDataModule, step: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1) -> None:
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step, global_rank=rank, world_size=world, accumulate_grad_batches=accumulate
    )


def train(module: GenerationDataModule, count: int) -> list[Batch]:
    return list(islice(module.train_dataloader(), count))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def blocks(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.index]


def test_collate_pads_on_the_left() -> None:
    batch = collate([Example([1], [2, 3], [4], 7), Example([], [5], [6], 8)], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [9, 9, 5, 6]]
    assert batch.attention_mask.tolist() == [[True] * 4, [False, False, True, True]]
    assert batch.private_mask.tolist() == [[False, True, True, False], [False, False, True, False]]
    assert batch.target_mask.tolist() == [[False, False, False, True], [False, False, False, True]]
    assert batch.index.tolist() == [7, 8]
    assert batch.to("cpu").input_ids.dtype == torch.int64


# --- training ----------------------------------------------------------------------------------------------------


def test_training_layout(make: Any) -> None:
    module = make(split_ratio=[0.25, 0.5])
    prefix = len(module.prefix_ids)
    stream = module.blocks("train")
    for batch in train(module, 20):
        assert batch.input_ids.shape == (4, prefix + 32)
        assert batch.attention_mask.all()
        assert (batch.input_ids[:, :prefix] == torch.tensor(module.prefix_ids)).all()
        assert torch.equal(batch.input_ids[:, prefix:], torch.from_numpy(stream[batch.index.numpy()]).long())
        private = batch.private_mask.sum(1)
        assert ((private >= 8) & (private <= 16)).all()
        assert (batch.target_mask.sum(1) == 32 - private).all()
        # One run of private tokens right after the prefix, one run of targets to the end.
        assert (batch.private_mask.int()[:, prefix:].diff(dim=1) <= 0).all()
        assert not batch.private_mask[:, :prefix].any()
        assert torch.equal(batch.private_mask[:, prefix:], ~batch.target_mask[:, prefix:])


def test_split_shares_fill_their_range(make: Any) -> None:
    shares = torch.cat([batch.private_mask.sum(1) for batch in train(make(split_ratio=[0.1, 0.9]), 200)]) / 32
    assert abs(float(shares.mean()) - 0.5) < 0.03
    assert float(shares.min()) < 0.15
    assert float(shares.max()) > 0.85


def test_smallest_blocks_keep_a_token_on_both_sides(make: Any) -> None:
    for ratio in ([0.01, 0.02], [0.98, 0.99]):
        for batch in train(make(block_tokens=4, split_ratio=ratio), 5):
            assert batch.private_mask.any(1).all()
            assert batch.target_mask.any(1).all()


def test_stream_joins_documents_with_line_breaks(make: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = tiny_tokenizer.decode(make().blocks("train").flatten().tolist())
    assert "\n".join(CORPUS.documents("train")).startswith(text[:-1])
    assert make(documents=2).blocks("train").size < make().blocks("train").size / 10


@pytest.mark.parametrize("accumulate", [1, 3])
def test_resumed_training_sees_the_same_batches(make: Any, accumulate: int) -> None:
    whole = train(make(), 60)
    resumed = make()
    attach(resumed, step=8, accumulate=accumulate)
    for a, b in zip(whole[8 * accumulate :], train(resumed, 60 - 8 * accumulate), strict=True):
        assert same(a, b)
    assert not any(same(a, b) for a, b in zip(whole, train(make(seed=1), 60), strict=True))


def test_every_epoch_is_another_permutation(make: Any) -> None:
    module = make()
    steps = len(module.blocks("train")) // 4
    first, second = blocks(train(module, steps)), blocks(train(module, 2 * steps)[steps:])
    assert len(set(first)) == len(set(second)) == 4 * steps
    assert first != second


def test_ranks_share_one_global_batch_without_overlap(make: Any) -> None:
    alone = train(make(batch_size=6), 100)
    ranks = []
    for rank in range(3):
        module = make(batch_size=2)
        attach(module, rank=rank, world=3)
        ranks.append(train(module, 100))
    for step, together in enumerate(alone):
        parts = [ranks[rank][step] for rank in range(3)]
        assert blocks(parts) == blocks([together])
        assert torch.equal(torch.cat([part.private_mask for part in parts]), together.private_mask)
        assert len(set(blocks(parts))) == 6


def test_the_second_half_leaves_the_first_to_the_decoder(make: Any) -> None:
    module = make()
    whole, documents = module.blocks("train"), module.tokens("train").rows()
    module.second_half = True
    half = module.blocks("train")
    assert half.shape[1] == whole.shape[1]
    assert 0 < len(half) < len(whole)
    line_break = module.tokenizer("\n", add_special_tokens=False)["input_ids"]
    expected = [token for row in documents[len(documents) // 2 :] for token in (*row.tolist(), *line_break)]
    assert half.flatten().tolist() == expected[: half.size]
    assert module.blocks("validation").tolist() == make().blocks("validation").tolist()


def test_fewer_blocks_than_a_batch_repeat(make: Any) -> None:
    module = make(block_tokens=1000, batch_size=8)
    count = len(module.blocks("train"))
    assert 1 < count < 8
    assert set(blocks(train(module, 1))) == set(range(count))


def test_text_shorter_than_a_block(make: Any) -> None:
    with pytest.raises(DataError, match=r"'train'.*'toy'.*100000 tokens.*got \d+ tokens"):
        make(block_tokens=100_000).train_dataloader()


def test_lightning_resumes_with_the_batches_of_an_uninterrupted_run(make: Any, tmp_path: Path) -> None:
    whole = fit(make(), tmp_path / "a", 6)
    fit(make(), tmp_path / "b", 2)
    resumed = fit(make(), tmp_path / "c", 6, tmp_path / "b" / "last.ckpt")
    assert resumed == whole[4:]  # two optimizer steps of two batches were done


class Recorder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(batch.index.tolist())
        return self.weight * batch.input_ids.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.target_mask.any()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(data: GenerationDataModule, folder: Path, steps: int, checkpoint: Path | None = None) -> list[list[int]]:
    module = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=2,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module.seen


# --- validation --------------------------------------------------------------------------------------------------


def test_validation_is_fixed(make: Any) -> None:
    first, second = (list(make(seed=s, validation_blocks=7, eval_batch_size=3).val_dataloader()) for s in (0, 1))
    assert [len(batch.index) for batch in first] == [3, 3, 1]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert len(set(blocks(first))) == 7


def test_validation_shards_cover_every_block_once(make: Any) -> None:
    whole = blocks(list(make(validation_blocks=7).val_dataloader()))
    parts: list[int] = []
    for rank in range(2):
        module = make(validation_blocks=7)
        attach(module, rank=rank, world=2)
        parts += blocks(list(module.val_dataloader()))
    assert sorted(parts) == sorted(whole)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 16])
@pytest.mark.parametrize("count", [4, 7, 8, 33])
def test_every_rank_has_as_many_batches(count: int, size: int, world: int) -> None:
    parts = [deal(range(count), rank, world, size) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(item for part in parts for batch in part for item in batch) == list(range(count))
    assert all(1 <= len(batch) <= size + 1 for part in parts for batch in part)
    assert deal(range(7), 0, 1, 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_validation_needs_a_block_a_rank(make: Any) -> None:
    module = make(validation_blocks=2)
    attach(module, world=3)
    with pytest.raises(DataError, match=r"data\.validation_blocks.*3 ranks.*got 2"):
        module.val_dataloader()


# --- prompts -----------------------------------------------------------------------------------------------------


def test_prompt_and_reference_are_the_text(make: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    module = make(reference_tokens=5)
    texts = CORPUS.documents("test")
    assert [p.prompt + p.reference for p in module.prompts()] == texts
    for prompt in module.prompts():
        assert len(prompt.prompt.split()) == 8
        assert tiny_tokenizer.decode(prompt.private_ids) == prompt.prompt
        assert len(prompt.reference_ids) == 5
        assert prompt.reference.startswith(tiny_tokenizer.decode(prompt.reference_ids))
        assert prompt.private_tensor().tolist() == prompt.private_ids


def test_only_long_texts_are_eligible_and_drawn_evenly(make: Any) -> None:
    texts = [*numbered(0, 5, 19), *numbered(10, 10, 20)]
    corpus = Corpus("toy", "memory", lambda _split: texts)
    assert [p.prompt.split("-")[0] for p in make(corpus).prompts()] == [str(n) for n in range(10, 20)]
    assert [p.prompt.split("-")[0] for p in make(corpus, max_prompts=4).prompts()] == ["10", "12", "15", "17"]


def test_other_prompts_change_nothing_that_is_trained_on(make: Any) -> None:
    corpus = Corpus("toy", "memory", lambda _split: numbered(10, 10, 20))
    usual, others = (make(corpus, max_prompts=4, first_prompt=first) for first in (0, 4))
    assert [p.prompt.split("-")[0] for p in others.prompts()] == ["14", "16", "19", "11"]
    assert usual.fingerprint == others.fingerprint
    assert usual.fingerprint != make(corpus, max_prompts=5).fingerprint


def test_long_prompts_can_be_left_out(make: Any) -> None:
    short, long = " ".join(["a"] * 20), " ".join(["incomprehensible"] * 20)
    module = make(Corpus("toy", "memory", lambda _split: [long, short]), max_prompt_tokens=20)
    assert [p.prompt for p in module.prompts()] == [" ".join(["a"] * 8)]


def test_no_eligible_text(make: Any) -> None:
    with pytest.raises(DataError, match=r"'toy'.*data\.min_words=99.*got none"):
        make(min_words=99).prompts()


def test_evaluation_batches_hold_each_prompt_once(make: Any) -> None:
    texts = [" ".join(["cat"] * n) for n in (40, 20, 33, 25, 60)]
    module = make(Corpus("toy", "memory", lambda _split: texts), eval_batch_size=2, reference_tokens=30)
    prompts = module.prompts()
    for batches, with_reference in ((list(module.test_dataloader()), True), (module.generation_batches(2), False)):
        assert sorted(blocks(batches)) == list(range(5))
        for batch in batches:
            for row, index in enumerate(batch.index):
                prompt = prompts[int(index)]
                reference = prompt.reference_ids if with_reference else []
                ids = batch.input_ids[row]
                assert ids[batch.attention_mask[row]].tolist() == [*module.prefix_ids, *prompt.private_ids, *reference]
                assert ids[batch.private_mask[row]].tolist() == prompt.private_ids
                assert ids[batch.target_mask[row]].tolist() == reference
    lengths = [batch.input_ids.shape[1] for batch in module.test_dataloader()]
    assert lengths == sorted(lengths)


def test_prefix_takes_the_opening_token_and_drops_the_closing_one(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers.processors import TemplateProcessing

    backend = type(tiny_tokenizer.backend_tokenizer).from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<bos>"])
    ids = {name: backend.token_to_id(name) for name in ("<bos>", "<eos>")}
    backend.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=list(ids.items()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    config = DataConfig(min_words=20, prompt_words=8, prefix="go on\n")
    module = GenerationDataModule(CORPUS, tokenizer, config, batch_size=1, seed=0)
    plain = tokenizer("go on\n", add_special_tokens=False)["input_ids"]
    assert module.prefix_ids == [ids["<bos>"], *plain]
    special = set(ids.values())
    assert not special & set(module.blocks("train").flatten().tolist())
    assert not special & {t for p in module.prompts() for t in [*p.private_ids, *p.reference_ids]}


# --- what calibration and artefacts ask for ----------------------------------------------------------------------


def test_private_tokens_come_from_prompts(make: Any) -> None:
    module = make()
    pool = [t for p in module._eligible("validation") for t in p.private_ids]
    drawn = module.private_tokens("validation", len(pool), seed=0)
    assert sorted(drawn.tolist()) == sorted(pool)  # without replacement
    assert torch.equal(drawn, module.private_tokens("validation", len(pool), seed=0))
    assert not torch.equal(drawn, module.private_tokens("validation", len(pool), seed=1))


def test_private_tokens_fall_back_to_all_text(make: Any) -> None:
    module = make(min_words=31)  # validation texts have 30
    everything = module.tokens("validation").flat.tolist()
    assert sorted(module.private_tokens("validation", len(everything), seed=0).tolist()) == sorted(everything)
    more = module.private_tokens("validation", 2 * len(everything), seed=0)
    assert len(more) == 2 * len(everything)


def test_unigram_counts_cover_the_vocabulary(make: Any) -> None:
    module = make()
    assert module.unigram_counts(300).sum() == len(module.tokens("train").flat)
    assert module.unigram_counts(300, "test").sum() == len(module.tokens("test").flat)


def test_fingerprint_follows_what_determines_the_data(make: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    base = make().fingerprint
    same_data = [make(seed=3), make(batch_size=1), make(root="/elsewhere"), make(eval_batch_size=2)]
    assert {module.fingerprint for module in same_data} == {base}
    texts = {split: CORPUS.documents(split) for split in ("train", "validation")} | {"test": numbered(300, 9, 25)}
    other = [
        make(prompt_words=9),
        make(prefix="on\n"),
        make(documents=5),
        make(block_tokens=16),
        make(Corpus("toy", "memory", texts.__getitem__)),
    ]
    assert len({base, *(module.fingerprint for module in other)}) == 6


# --- real text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "prompts"),
    [
        ("wikitext2", {"min_words": 100, "prompt_words": 50}, 200),
        ("ptb", {"min_words": 30, "prompt_words": 20}, 200),
        ("cnn_dailymail", {"min_words": 100, "prompt_words": 50, "max_prompts": 60}, 60),
        ("c4", {"min_words": 100, "prompt_words": 50, "max_prompts": 60}, 60),
    ],
)
def test_real_prompts(make: Any, data_root: Path, name: str, settings: dict[str, int], prompts: int) -> None:
    corpus = load_corpus(name, str(data_root))
    # A part of the text is enough, and byte-level tokens are many.
    part = Corpus(name, corpus.source, lambda split: corpus.documents(split)[:2500])
    check(make(part, **settings), settings, prompts)


def test_lee_prompts(make: Any) -> None:
    try:
        check_corpus("lee", None)
    except AssetError as error:
        pytest.skip(str(error))
    settings = {"min_words": 100, "prompt_words": 50}
    check(make(load_corpus("lee"), **settings), settings, 48)


def check(module: GenerationDataModule, settings: dict[str, int], prompts: int) -> None:
    found = module.prompts()
    assert len(found) == prompts
    texts = set(module.corpus.documents("test"))
    for prompt in found:
        assert prompt.prompt + prompt.reference in texts
        assert len(prompt.prompt.split()) == settings["prompt_words"]
        assert len(prompt.prompt.split()) + len(prompt.reference.split()) >= settings["min_words"]
    assert train(module, 1)[0].target_mask.any()
    assert len(module.private_tokens("validation", 500, seed=0)) == 500
