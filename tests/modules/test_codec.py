from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from del_lightning.checkpoints import SafetensorsIO
from del_lightning.codec import LinearCodec
from del_lightning.config import CodecConfig, TrainerConfig
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Projection
from del_lightning.modules import CodecTraining
from del_lightning.split import SplitModel
from del_lightning.stages.training import fit
from tests.modules.factory import data_for, split_for

Factory = Callable[..., FrozenLLM]
TRAINER = TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=4, log_every=1)
CONFIG = CodecConfig(corpus="lee", steps=4, batch_size=2, learning_rate=0.02, warmup_steps=1, validate_every=2)
NOISE = 9.0


def module_for(llm: FrozenLLM, config: CodecConfig = CONFIG) -> CodecTraining:
    return CodecTraining(llm, split_for(llm).method.codec, config, bits=4, seed=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mu", [None, NOISE])
def test_training_changes_both_maps_and_nothing_else(tiny_llm: Factory, tmp_path: Path, mu: float | None) -> None:
    module = module_for(tiny_llm(), replace(CONFIG, train_noise_mu=mu))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, data_for(module.llm), TRAINER, tmp_path)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"codec.encoder.weight", "codec.decoder.weight"}
    checkpoint = SafetensorsIO().load_checkpoint(tmp_path / "last.ckpt.safetensors")
    assert checkpoint["state_dict"].keys() == changed


def test_perplexity_falls(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    torch.manual_seed(0)
    codec = LinearCodec(llm.hidden_size, 4, bound=1.0)  # random: much to learn
    module = CodecTraining(llm, codec, replace(CONFIG, steps=60, validate_every=20, learning_rate=0.3), bits=4)
    result = fit(module, data_for(llm), TRAINER, tmp_path)
    perplexities = [row["val/perplexity"] for row in result.history if "val/perplexity" in row]
    assert perplexities[-1] < 0.9 * perplexities[0]
    assert result.best == min(perplexities)


def test_loss_is_that_of_the_split_model_without_noise(tiny_llm: Factory) -> None:
    """What is trained is what the projection control and DEL later run."""
    llm = tiny_llm()
    module = module_for(llm)
    batch = next(iter(data_for(llm).train_dataloader()))
    loss = module.loss(batch, seeded())
    split = SplitModel(llm, Projection(llm.embedding_table(), module.codec))
    torch.testing.assert_close(loss, split.loss(batch, split.release(batch)))


def test_noise_passes_its_gradient_straight_through_to_the_encoder(tiny_llm: Factory) -> None:
    """With the code's noise held fixed, v_hat = v + (v_hat - v): the encoder's gradient is that of the identity."""
    llm = tiny_llm()
    module = module_for(llm, replace(CONFIG, train_noise_mu=NOISE))
    embeddings = llm.embedding_table()[:20]
    module.restored(embeddings, seeded()).sum().backward()
    clean = module.codec.encoder(embeddings)
    inside = (clean.abs() < module.codec.bound).float()
    assert inside.mean() > 0.5
    upstream = module.codec.decoder.weight.sum(0) * inside
    torch.testing.assert_close(module.codec.encoder.weight.grad, upstream.T @ embeddings, atol=1e-4, rtol=1e-4)
    noisy = module.quantizer.decode(module.quantizer.encode(clean.detach(), seeded()))
    expected = noisy.sum(0).expand(llm.hidden_size, -1)
    torch.testing.assert_close(module.codec.decoder.weight.grad, expected, atol=1e-3, rtol=1e-4)


def test_noise_is_fresh_and_follows_its_stream(tiny_llm: Factory) -> None:
    module = module_for(tiny_llm(), replace(CONFIG, train_noise_mu=NOISE))
    embeddings = module.llm.embedding_table()[:20]
    once = module.restored(embeddings, seeded(1))
    assert torch.equal(module.restored(embeddings, seeded(1)), once)
    assert not torch.equal(module.restored(embeddings, seeded(2)), once)


def test_without_noise_the_paper_is_followed(tiny_llm: Factory) -> None:
    module = module_for(tiny_llm())
    embeddings = module.llm.embedding_table()[:20]
    expected = module.codec.decode(module.codec.encode(embeddings))
    assert torch.equal(module.restored(embeddings, seeded(1)), expected)


def test_optimizer_is_the_papers(tiny_llm: Factory) -> None:
    settings = module_for(tiny_llm()).configure_optimizers()
    (group,) = settings["optimizer"].param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.95), 1e-4)


def test_bfloat16_model_trains_a_float32_codec(tiny_llm: Factory, tmp_path: Path) -> None:
    module = module_for(tiny_llm(dtype=torch.bfloat16))
    before = module.codec.encoder.weight.detach().clone()
    fit(module, data_for(module.llm), TRAINER, tmp_path)
    assert module.codec.encoder.weight.dtype == torch.float32
    assert not torch.equal(module.codec.encoder.weight, before)
