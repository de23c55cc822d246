from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import del_lightning
from del_lightning.artifacts import ArtifactStore, Outcome
from del_lightning.codec import LinearCodec, pca_codec
from del_lightning.data import Batch, Example, collate
from del_lightning.errors import ArtifactError
from del_lightning.llm import FrozenLLM
from del_lightning.methods import DEL, Clean, DPForward, MeanEmbedding, Method, Projection
from del_lightning.prompt import SoftPrompt
from del_lightning.split import SplitModel, example_of_target, predicting_positions, targets

FAMILIES = ("llama", "qwen2", "gpt2", "opt", "gemma", "gemma2", "gemma3", "mixtral")
TOLERANCE = 1e-4
"""Logits of a padded and an unpadded batch: the same sums in another order. A shifted position changes them by 0.1."""

Factory = Callable[..., FrozenLLM]

EXAMPLES = [
    Example(range(10, 13), range(30, 34), range(50, 55), 4),
    Example(range(60, 63), range(80, 91), range(110, 113), 7),
    Example(range(150, 153), range(170, 172), range(200, 202), 2),
]


def batch_of(examples: Sequence[Example] = EXAMPLES) -> Batch:
    return collate(examples, pad_id=0)


def codec_for(llm: FrozenLLM, dim: int = 4) -> LinearCodec:
    weights = torch.ones(llm.vocab_size)
    codec = pca_codec(llm.embedding_table(), weights, dim)
    codec.calibrate_bound(llm.embedding_table(), weights, 0.95)
    return codec


def method_for(llm: FrozenLLM, name: str) -> Method:
    table = llm.embedding_table()
    match name:
        case "clean":
            return Clean(table)
        case "mean":
            return MeanEmbedding(table)
        case "projection":
            return Projection(table, codec_for(llm))
        case _:
            return DEL(table, codec_for(llm), bits=4, mu=8.0)


def prompt_for(llm: FrozenLLM, virtual_tokens: int = 5) -> SoftPrompt:
    noise = torch.randn(virtual_tokens, llm.hidden_size, generator=torch.Generator().manual_seed(5))
    return SoftPrompt(noise * llm.embedding_table().std())


def plain_logits(llm: FrozenLLM, batch: Batch) -> Tensor:
    """Logits of the plain model on token ids alone, one unpadded sequence at a time, at the continuation."""
    rows = []
    for ids, mask, target in zip(batch.input_ids, batch.attention_mask, batch.target_mask, strict=True):
        logits = llm.model(input_ids=ids[mask][None]).logits[0]
        rows.append(logits[:-1][target[mask][1:]])
    return torch.cat(rows)


@pytest.mark.parametrize("method", [None, "clean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_identity_front_end_is_the_plain_model(tiny_llm: Factory, family: str, method: str | None) -> None:
    """Codec and noise off, no soft prompt: the same logits as the plain LLM to 1e-5 in float32."""
    llm = tiny_llm(family)
    split = SplitModel(llm, None if method is None else method_for(llm, method))
    for example in EXAMPLES:
        batch = batch_of([example])
        release = None if method is None else split.release(batch)
        expected = plain_logits(llm, batch)
        assert expected.std() > 0.1
        torch.testing.assert_close(split.logits(batch, release), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mean", "projection", "del"])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_only_private_tokens_pass_the_front_end(tiny_llm: Factory, family: str, name: str) -> None:
    llm = tiny_llm(family)
    split = SplitModel(llm, method_for(llm, name))
    batch = batch_of()
    release = split.release(batch, torch.Generator().manual_seed(0))
    assert release.payload.shape[:2] == (1, int(batch.private_mask.sum()))
    clean, seen = llm.embed(batch.input_ids), split.embed(batch, release)
    assert torch.equal(seen[~batch.private_mask], clean[~batch.private_mask])
    # Row by row: the third release belongs to the third private token of the batch, and to no other.
    torch.testing.assert_close(seen[batch.private_mask], split.method.restore(release)[0])
    assert ((seen - clean).abs().amax(-1) > 0)[batch.private_mask].all()


def test_release_says_nothing_of_public_tokens(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    split = SplitModel(llm, method_for(llm, "del"))
    other = [Example([5, 6], example.private, [9, 9, 9], example.index) for example in EXAMPLES]
    releases = [split.release(batch_of(rows), torch.Generator().manual_seed(0)) for rows in (EXAMPLES, other)]
    assert torch.equal(releases[0].payload, releases[1].payload)


@pytest.mark.parametrize("soft_prompt", [False, True], ids=["plain", "soft-prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_never_changes_logits(tiny_llm: Factory, family: str, soft_prompt: bool) -> None:
    llm = tiny_llm(family)
    split = SplitModel(llm, method_for(llm, "del"), prompt_for(llm) if soft_prompt else None)
    together = split.logits(batch_of(), split.release_examples(batch_of(), seed=0))
    alone = [batch_of([example]) for example in EXAMPLES]
    expected = torch.cat([split.logits(batch, split.release_examples(batch, seed=0)) for batch in alone])
    torch.testing.assert_close(together, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("virtual_tokens", [2, 9], ids=["short", "beyond the sliding windows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_soft_prompt_for_a_batch_is_one_for_each(tiny_llm: Factory, family: str, virtual_tokens: int) -> None:
    """Without padding the model reads the soft prompt once for all sequences: same logits, same gradient."""
    llm = tiny_llm(family)
    split = SplitModel(llm, None, prompt_for(llm, virtual_tokens))
    examples = [Example(range(s, s + 3), range(s + 9, s + 16), range(s + 20, s + 25), s) for s in (10, 60, 150)]
    read: list[torch.Size] = []
    hook = llm.model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(inputs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    together = split.logits(batch_of(examples), None)
    hook.remove()
    assert read == [(1, virtual_tokens), (3, 15)]
    alone = torch.cat([split.logits(batch_of([example]), None) for example in examples])
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=TOLERANCE)
    gradients = [
        torch.autograd.grad(logits.logsumexp(-1).square().sum(), split.prompt.embeddings)[0]
        for logits in (together, alone)
    ]
    assert gradients[1].abs().amax(-1).min() > 0
    torch.testing.assert_close(*gradients, atol=1e-3 * float(gradients[1].abs().max()), rtol=1e-3)


@pytest.mark.parametrize("soft_prompt", [False, True], ids=["plain", "soft-prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_never_changes_greedy_continuations(tiny_llm: Factory, family: str, soft_prompt: bool) -> None:
    llm = tiny_llm(family)
    split = SplitModel(llm, method_for(llm, "del"), prompt_for(llm) if soft_prompt else None)
    prompts = [Example(example.prefix, example.private, [], example.index) for example in EXAMPLES]

    def continuations(batch: Batch) -> list[list[int]]:
        release = split.release_examples(batch, seed=0)
        return split.generate(batch, release, max_new_tokens=10, do_sample=False)

    together = continuations(batch_of(prompts))
    assert together == [continuations(batch_of([prompt]))[0] for prompt in prompts]
    assert max(map(len, together)) == 10


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_teacher_forcing_step_by_step(tiny_llm: Factory, family: str) -> None:
    """The cached, batched decoder picks what the full forward pass ranks first, behind noise and soft prompt."""
    llm = tiny_llm(family)
    split = SplitModel(llm, method_for(llm, "del"), prompt_for(llm))
    prompts = [Example(example.prefix, example.private, [], example.index) for example in EXAMPLES]
    release = split.release_examples(batch_of(prompts), seed=0)
    generated = split.generate(batch_of(prompts), release, max_new_tokens=6, do_sample=False)
    assert any(generated)
    continued = [
        Example(prompt.prefix, prompt.private, [*tokens, 0][:6], prompt.index)
        for prompt, tokens in zip(prompts, generated, strict=True)
    ]
    batch = batch_of(continued)
    assert torch.equal(split.logits(batch, release).argmax(-1), targets(batch))


def test_soft_prompt_stands_once_in_front_of_everything(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    prompt = prompt_for(llm)
    split, batch = SplitModel(llm, None, prompt), batch_of(EXAMPLES[:1])
    ids = batch.input_ids
    inputs = torch.cat([prompt.embeddings[None], llm.embed(ids)], dim=1)
    full = llm.model(inputs_embeds=inputs).logits[0, prompt.virtual_tokens :]
    torch.testing.assert_close(split.logits(batch, None), full[:-1][batch.target_mask[0, 1:]], atol=1e-5, rtol=1e-5)


def test_soft_prompt_matters(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    without, behind = SplitModel(llm).logits(batch_of(), None), SplitModel(llm, None, prompt_for(llm))
    assert (behind.logits(batch_of(), None) - without).abs().max() > 0.1


def test_noise_does_not_depend_on_the_batch(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    split = SplitModel(llm, method_for(llm, "del"))

    def codes(examples: Sequence[Example], seed: int = 0) -> dict[int, Tensor]:
        batch = batch_of(examples)
        parts = split.release_examples(batch, seed).payload[0].split(batch.private_mask.sum(1).tolist())
        return dict(zip(batch.index.tolist(), parts, strict=True))

    together, alone = codes(EXAMPLES), [codes([example]) for example in EXAMPLES]
    reordered, other_seed = codes(EXAMPLES[::-1]), codes(EXAMPLES, seed=1)
    for index, part in together.items():
        assert torch.equal(reordered[index], part)
        assert any(torch.equal(one[index], part) for one in alone if index in one)
        assert not torch.equal(other_seed[index], part)
    # Two examples with the same text still get noise of their own.
    twins = codes([Example([], range(30, 50), [1], index) for index in (0, 1)])
    assert not torch.equal(twins[0], twins[1])


def test_a_method_that_clips_sequences_gets_one_at_a_time(tiny_llm: Factory) -> None:
    llm, batch = tiny_llm(), batch_of()
    method = DPForward(llm.embedding_table(), torch.ones(llm.vocab_size), epsilon=1e9, clip=0.1)
    split = SplitModel(llm, method)
    lengths = batch.private_mask.sum(1).tolist()
    for release in (split.release(batch), split.release_examples(batch, 0)):
        assert release.sequence_tokens is not None
        assert release.sequence_tokens[0].tolist() == [length for length in lengths for _ in range(length)]
        norms = [float(part.norm()) for part in release.payload[0].split(lengths)]
        assert norms == pytest.approx([0.1] * 3, rel=1e-2)


def test_logits_are_the_rows_of_all_logits_at_the_targets(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    split = SplitModel(llm, method_for(llm, "del"), prompt_for(llm))
    batch = batch_of()
    release = split.release_examples(batch, seed=0)
    embeddings, mask = split.prepend_prompt(split.embed(batch, release), batch.attention_mask)
    full = llm.logits(embeddings, mask, mask).split((batch.attention_mask.sum(1) + 5).tolist())
    expected = [logits[-1 - int(count) : -1] for logits, count in zip(full, batch.target_mask.sum(1), strict=True)]
    torch.testing.assert_close(split.logits(batch, release), torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_loss_is_the_mean_nll_of_the_continuation(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    batch = batch_of()
    log_probabilities = plain_logits(llm, batch).log_softmax(-1)
    truth = torch.cat([torch.tensor(list(example.continuation)) for example in EXAMPLES])
    assert torch.equal(targets(batch), truth)
    expected = -log_probabilities[torch.arange(len(truth)), truth].mean()
    torch.testing.assert_close(SplitModel(llm).loss(batch, None), expected, atol=1e-5, rtol=1e-5)


def test_targets_know_their_example() -> None:
    assert example_of_target(batch_of()).tolist() == [4] * 5 + [7] * 3 + [2] * 2


def test_a_token_is_predicted_one_position_earlier() -> None:
    mask = torch.tensor([[False, False, True, True], [False, True, False, True]])
    expected = torch.tensor([[False, True, True, False], [True, False, True, False]])
    assert torch.equal(predicting_positions(mask), expected)


def test_gradient_reaches_the_prompt_and_nothing_else(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    split = SplitModel(llm, method_for(llm, "del"), prompt_for(llm))
    split.loss(batch_of(), split.release_examples(batch_of(), seed=0)).backward()
    with_gradient = [name for name, parameter in split.named_parameters() if parameter.grad is not None]
    assert with_gradient == ["prompt.embeddings"]


def test_sampling_follows_its_seed_and_leaves_the_global_state(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    split, prompts = SplitModel(llm), batch_of([Example(range(10, 20), [], [], 0)] * 4)

    def sample(seed: int) -> list[list[int]]:
        return split.generate(prompts, None, max_new_tokens=8, temperature=2.0, top_p=1.0, seed=seed)

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = sample(1)
    assert torch.equal(torch.rand(3), expected)
    assert sample(1) == first != sample(2)
    assert len({tuple(row) for row in first}) > 1  # equal prompts, different draws


def store_prompt(llm: FrozenLLM, root: Path, method: DEL, prompt: SoftPrompt, name: str = "del", **key: Any) -> Path:
    """What the prompt stage leaves."""

    def build(folder: Path) -> Outcome:
        prompt.save(folder, llm)
        method.codec.save(folder / "codec.safetensors")
        return Outcome()

    settings = {"name": name, "value": 8.0, "bits": 4, "l2_clip": None}
    determined_by = {"model": {"fingerprint": llm.fingerprint, "dtype": "float32"}, "method": settings, **key}
    config = {"model": {"name": llm.name, "dtype": "float32", "revision": None}, "data": {"prefix": ""}}
    return ArtifactStore(root, config).get("prompt", determined_by, build).folder


def test_from_artifacts_is_the_model_that_was_trained(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    method = method_for(llm, "del")
    trained = SplitModel(llm, method, prompt_for(llm))
    folder = store_prompt(llm, tmp_path, method, prompt_for(llm))
    loaded = del_lightning.SplitModel.from_artifacts(folder, llm)
    batch = batch_of()
    released = loaded.release_examples(batch, seed=3)
    assert torch.equal(released.payload, trained.release_examples(batch, seed=3).payload)
    assert torch.equal(loaded.logits(batch, released), trained.logits(batch, released))
    assert loaded.method.statement(5) == method.statement(5)


def test_from_artifacts_loads_the_recorded_model(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    llm.model.save_pretrained(tmp_path / "model")
    llm.tokenizer.save_pretrained(tmp_path / "model")
    llm.name = str(tmp_path / "model")
    folder = store_prompt(llm, tmp_path, method_for(llm, "del"), prompt_for(llm))
    loaded = SplitModel.from_artifacts(str(folder))
    assert torch.equal(loaded.llm.embedding_table(), llm.embedding_table())


def test_from_artifacts_refuses_another_model(tiny_llm: Factory, tmp_path: Path) -> None:
    llm, other = tiny_llm(), tiny_llm(seed=1)
    folder = store_prompt(llm, tmp_path, method_for(llm, "del"), prompt_for(llm))
    expected = f"was made for the model with fingerprint {llm.fingerprint}, got {other.fingerprint}"
    with pytest.raises(ArtifactError, match=expected):
        SplitModel.from_artifacts(folder, other)


def test_from_artifacts_refuses_a_control(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    folder = store_prompt(llm, tmp_path, method_for(llm, "del"), prompt_for(llm), name="clean")
    with pytest.raises(ArtifactError, match="must hold a prompt trained behind 'del', got 'clean'"):
        SplitModel.from_artifacts(folder, llm)


def test_from_artifacts_refuses_what_needs_an_adapter(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    folder = store_prompt(llm, tmp_path, method_for(llm, "del"), prompt_for(llm), adapter={"rank": 16})
    with pytest.raises(ArtifactError, match=r"with a low-rank adapter \(adapter.rank=16\)"):
        SplitModel.from_artifacts(folder, llm)


def test_from_artifacts_names_what_is_missing(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    with pytest.raises(ArtifactError, match=r"found no result\.json"):
        SplitModel.from_artifacts(tmp_path / "absent", llm)
    folder = store_prompt(llm, tmp_path, method_for(llm, "del"), prompt_for(llm))
    (folder / "codec.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"codec\.safetensors"):
        SplitModel.from_artifacts(folder, llm)
