import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor

from del_lightning.data import Batch, Example, collate
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.prompt import CONFIG_FILE, WEIGHTS_FILE, SoftPrompt
from del_lightning.split import SplitModel

Factory = Callable[..., FrozenLLM]

# PEFT drops the position ids that transformers hands it, and says so: with one prompt at a time there are none to keep.
pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning")


def random_prompt(llm: FrozenLLM, virtual_tokens: int = 4, seed: int = 3) -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    scale = float(llm.embedding_table().std())
    return SoftPrompt(scale * torch.randn(virtual_tokens, llm.hidden_size, generator=generator))


def prompts() -> Batch:
    """Two prompts of different lengths, all of it public."""
    return collate([Example(range(20, 29), [], [], 0), Example(range(40, 45), [], [], 1)], pad_id=0)


def generated(llm: FrozenLLM, prompt: SoftPrompt) -> list[list[int]]:
    return SplitModel(llm, None, prompt).generate(prompts(), None, max_new_tokens=12, do_sample=False)


def generated_by_peft(model: PeftModel, batch: Batch) -> list[list[int]]:
    tokens = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    rows: list[list[int]] = tokens[:, batch.input_ids.shape[1] :].tolist()
    return [row[: row.index(0)] if 0 in row else row for row in rows]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_text_starts_the_prompt_as_the_model_would_embed_it(tiny_llm: Factory, family: str) -> None:
    llm = tiny_llm(family)
    ids = llm.tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    prompt = SoftPrompt.from_text("the cat sat", len(ids), llm)
    # Hooked where the model's own first layer receives them: Gemma scales its embeddings on the way.
    assert torch.equal(prompt.embeddings, llm.model.get_input_embeddings()(torch.tensor(ids)))
    assert prompt.embeddings.requires_grad


@pytest.mark.parametrize("virtual_tokens", [1, 2, 3, 7])
def test_text_is_cut_or_repeated_to_the_length(tiny_llm: Factory, virtual_tokens: int) -> None:
    llm = tiny_llm()
    ids = llm.tokenizer("cat dog bird", add_special_tokens=False)["input_ids"]
    expected = llm.embed(torch.tensor([ids[i % len(ids)] for i in range(virtual_tokens)]))
    assert torch.equal(SoftPrompt.from_text("cat dog bird", virtual_tokens, llm).embeddings, expected)


def test_text_without_tokens_is_refused(tiny_llm: Factory) -> None:
    with pytest.raises(ConfigError, match=r"`prompt\.init_text` must hold at least one token, got ''"):
        SoftPrompt.from_text("", 3, tiny_llm())


def test_training_does_not_touch_the_models_own_embeddings(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    before = llm.embedding_table().clone()
    prompt = SoftPrompt.from_text("the cat", 2, llm)
    with torch.no_grad():
        prompt.embeddings.add_(1.0)
    assert torch.equal(llm.embed(torch.arange(llm.vocab_size)), before)


def test_prompt_stays_float32_over_a_bfloat16_model(tiny_llm: Factory) -> None:
    llm = tiny_llm(dtype=torch.bfloat16)
    prompt = SoftPrompt.from_text("the cat", 2, llm)
    assert prompt.embeddings.dtype == torch.float32
    assert prompt(3, torch.bfloat16).dtype == torch.bfloat16
    assert prompt(3, torch.bfloat16).shape == (3, 2, llm.hidden_size)
    split = SplitModel(llm, None, prompt)
    batch = collate([Example([5, 6], [], [7, 8, 9], 0)], pad_id=0)
    split.loss(batch, None).backward()
    assert prompt.embeddings.grad is not None
    assert prompt.embeddings.grad.dtype == torch.float32
    assert prompt.embeddings.grad.abs().sum() > 0
    # A step that bfloat16 would round away is kept.
    before = prompt.embeddings.detach().clone()
    torch.optim.SGD([prompt.embeddings], lr=1e-6).step()
    assert not torch.equal(prompt.embeddings, before)
    assert torch.equal(prompt.embeddings.bfloat16(), before.bfloat16())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_saved_here_loads_in_peft_and_generates_the_same(tiny_llm: Factory, tmp_path: Path, family: str) -> None:
    llm = tiny_llm(family)
    prompt = random_prompt(llm)
    prompt.save(tmp_path, llm)
    plain = SplitModel(llm).generate(prompts(), None, max_new_tokens=12, do_sample=False)
    expected = generated(llm, prompt)
    assert expected != plain  # otherwise the prompt would prove nothing
    model = PeftModel.from_pretrained(llm.model, str(tmp_path)).eval()
    # PEFT looks the prompt up in float32 and the model in its own type: equal here.
    assert torch.equal(model.get_prompt(1)[0], prompt.embeddings)
    one_by_one = [collate([Example(ids, [], [], i)], pad_id=0) for i, ids in enumerate((range(20, 29), range(40, 45)))]
    assert [generated_by_peft(model, batch)[0] for batch in one_by_one] == expected


def test_saved_by_peft_loads_here_and_generates_the_same(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    torch.manual_seed(0)
    model = get_peft_model(llm.model, config)
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(tmp_path))
    prompt = SoftPrompt.load(tmp_path)
    assert torch.equal(prompt.embeddings, model.get_prompt(1)[0])
    single = collate([Example(range(20, 29), [], [], 0)], pad_id=0)
    assert generated_by_peft(model.eval(), single)[0] == generated(llm, prompt)[0]


def test_round_trip_is_exact(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm(dtype=torch.bfloat16)
    prompt = random_prompt(llm)
    prompt.save(tmp_path / "deep" / "folder", llm)
    loaded = SoftPrompt.load(tmp_path / "deep" / "folder")
    assert torch.equal(loaded.embeddings, prompt.embeddings)
    assert loaded.virtual_tokens == 4
    assert loaded.embeddings.requires_grad


def saved(llm: FrozenLLM, folder: Path) -> Path:
    random_prompt(llm).save(folder, llm)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_load_names_the_folder_where_a_file_is_missing(tiny_llm: Factory, tmp_path: Path, missing: str) -> None:
    folder = saved(tiny_llm(), tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ArtifactError, match=f"{folder} must hold a PEFT prompt-tuning adapter"):
        SoftPrompt.load(folder)


def test_load_refuses_another_kind_of_adapter(tiny_llm: Factory, tmp_path: Path) -> None:
    edit_config(saved(tiny_llm(), tmp_path), peft_type="LORA")
    with pytest.raises(ArtifactError, match="must have peft_type PROMPT_TUNING, got 'LORA'"):
        SoftPrompt.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{"])
def test_load_refuses_a_damaged_config(tiny_llm: Factory, tmp_path: Path, content: bytes) -> None:
    (saved(tiny_llm(), tmp_path) / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        SoftPrompt.load(tmp_path)


def test_load_refuses_damaged_weights(tiny_llm: Factory, tmp_path: Path) -> None:
    path = saved(tiny_llm(), tmp_path) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        SoftPrompt.load(tmp_path)


def test_gradient_of_a_batch_is_summed_on_the_one_prompt() -> None:
    prompt = SoftPrompt(torch.zeros(2, 3))
    weights: Tensor = torch.arange(12.0).view(2, 2, 3)
    (prompt(2, torch.float32) * weights).sum().backward()
    assert prompt.embeddings.grad is not None
    assert torch.equal(prompt.embeddings.grad, weights.sum(0))
