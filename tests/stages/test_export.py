"""Export of a small trained setting: both folders fit together, and the client's needs no language model."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from del_lightning.codec import LinearCodec
from del_lightning.config import (
    CodecConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LoggerConfig,
    MechanismConfig,
    ModelConfig,
    PromptConfig,
    StageConfig,
    TrainerConfig,
)
from del_lightning.data import Corpus
from del_lightning.errors import ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.methods import DEL
from del_lightning.privacy import BinomialAccountant
from del_lightning.serve.bundle import Bundle, Manifest
from del_lightning.split import SplitModel
from del_lightning.stages import export, workspace
from del_lightning.stages.workspace import Workspace
from tests.modules.factory import sentences

TEXT = "the cat sat on a mat"


@pytest.fixture(scope="module")
def config(tiny_llm: Callable[..., FrozenLLM], tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("export")
    llm = tiny_llm(hidden=32)
    llm.model.save_pretrained(folder / "model")
    llm.tokenizer.save_pretrained(folder / "model")
    return Config(
        out=str(folder / "runs"),
        methods=["del"],
        stage=StageConfig("del_lightning.stages.export.run", "export"),
        model=ModelConfig(name=str(folder / "model")),
        data=DataConfig(
            prefix="go on ", min_words=10, prompt_words=5, train_tokens=12, split_ratio=[0.2, 0.6], validation_blocks=2
        ),
        codec=CodecConfig(corpus="lee", dim=4, steps=0, sequence_tokens=12),
        mechanism=MechanismConfig(bits=3, mu=30.0),
        prompt=PromptConfig(virtual_tokens=3, steps=1, batch_size=2, validate_every=1),
        evaluate=EvaluateConfig(delta=1e-6),
        trainer=TrainerConfig(accelerator="cpu", progress_bar=False, attack_every=0),
        logger=LoggerConfig(kind="none"),
    )


@pytest.fixture(scope="module")
def patch(tmp_path_factory: pytest.TempPathFactory) -> pytest.MonkeyPatch:
    """A made-up corpus in place of real text, and a cache of its own."""
    texts = {"train": sentences(0, 12), "validation": sentences(1, 6), "test": sentences(2, 4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEL_LIGHTNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(workspace, "load_corpus", lambda name, *_: Corpus(name, "made up", texts.__getitem__))
        yield patch


@pytest.fixture(scope="module")
def ws(config: Config, patch: pytest.MonkeyPatch) -> Workspace:
    return Workspace(config)


@pytest.fixture(scope="module")
def folder(ws: Workspace) -> Path:
    export.run(ws)
    (found,) = (path.parent for path in Path(ws.config.out).glob("export/*/result.json"))
    return found


def test_both_sides_hold_the_same_manifest(folder: Path, ws: Workspace) -> None:
    client, server = Manifest.load(folder / "client"), Manifest.load(folder / "server")
    assert replace(client, files={}) == replace(server, files={})
    assert client.model == ws.llm.fingerprint
    assert (client.bits, client.dim, client.mu) == (3, 4, 30.0)
    assert list(client.prefix_ids) == ws.data.prefix_ids == ws.llm.tokenizer("go on ")["input_ids"]
    assert set(server.files) == {"result.json", "codec.safetensors", "adapter_config.json", "adapter_model.safetensors"}
    details = json.loads((folder / "result.json").read_text())["details"]
    assert details["fingerprint"] == client.setting
    assert details["client_bytes"] == sum(file.stat().st_size for file in (folder / "client").iterdir())


def test_what_the_client_guarantees_is_what_the_manifest_says(folder: Path) -> None:
    bundle = Bundle(folder / "client")
    manifest = bundle.manifest
    token = BinomialAccountant.from_threshold(manifest.a_plus, 4, 3)
    assert manifest.budget_epsilon == token.compose(10_000).epsilon(1e-6)
    assert manifest.budget_tokens == 10_000
    [shown] = re.findall(r"exact epsilon (\S+) a token", manifest.statement)
    assert token.epsilon(1e-6) <= float(shown) <= token.epsilon(1e-6) * 1.001
    assert manifest.amplitude == manifest.bound * 2**31 / (manifest.a_plus - 2**31)


def test_client_and_server_mean_the_same_mechanism(folder: Path, ws: Workspace) -> None:
    bundle = Bundle(folder / "client")
    split = SplitModel.from_artifacts(folder / "server", ws.llm)
    method = split.method
    assert isinstance(method, DEL)
    # The client's thresholds say the code table of the server's codec, to 31 bits ...
    shares = (bundle.thresholds.astype(np.float64) - 2**31) / (bundle.manifest.a_plus - 2**31)
    assert np.allclose(shares * float(method.codec.bound), method.code_table.numpy(), atol=1e-8)
    # ... so that what the server decodes is unbiased.
    assert bundle.manifest.amplitude == pytest.approx(method.quantizer.amplitude, rel=1e-8)
    codes = bundle.release(np.full(20_000, 40))
    decoded = method.quantizer.decode(torch.from_numpy(codes)).mean(dim=0)
    sigma = method.quantizer.variance(method.code_table[40]).div(20_000).sqrt()
    assert ((decoded - method.code_table[40]).abs() < 5 * sigma).all()


def test_client_tokenizes_as_training_did(folder: Path, ws: Workspace) -> None:
    ids, _ = Bundle(folder / "client").encode(TEXT)
    assert ids.tolist() == ws.llm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]


def test_prior_is_the_public_corpus(folder: Path, ws: Workspace) -> None:
    stored = np.exp(np.load(folder / "client" / "prior.npy").astype(float) / -2048)
    assert np.allclose(stored, (ws.frequencies / ws.frequencies.sum()).numpy(), rtol=1e-3)


def test_a_finished_export_is_not_made_again(folder: Path, config: Config, patch: pytest.MonkeyPatch) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    export.run(Workspace(config))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert len(list(Path(config.out).glob("export/*/result.json"))) == 1


def test_another_setting_has_another_fingerprint(folder: Path, config: Config, patch: pytest.MonkeyPatch) -> None:
    other = Workspace(replace(config, mechanism=MechanismConfig(bits=3, mu=31.0)))
    (setting,) = export.settings(other)
    found = export.ensure(other, setting).folder
    ours, theirs = Manifest.load(folder / "client"), Manifest.load(found / "client")
    assert (ours.model, ours.setting) != (theirs.model, theirs.setting)
    assert ours.model == theirs.model


def test_an_interrupted_export_starts_over(config: Config, patch: pytest.MonkeyPatch) -> None:
    ws = Workspace(replace(config, mechanism=MechanismConfig(bits=2, mu=5.0)))
    (setting,) = export.settings(ws)
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(export, "quantize_prior", lambda frequencies: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export.ensure(ws, setting)
    (partial,) = Path(config.out).glob("export/*.partial")
    (partial / "client" / "left-over").touch()
    done = export.ensure(ws, setting).folder
    assert Bundle(done / "client").manifest.bits == 2
    assert not (done / "client" / "left-over").exists()


def test_a_configuration_without_del_has_nothing_to_export(config: Config, patch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"`methods` must hold 'del' for stage=export, got \['clean'\]"):
        export.run(Workspace(replace(config, methods=["clean"])))


def test_codec_of_the_server_is_the_trained_one(folder: Path, ws: Workspace) -> None:
    trained = next(Path(ws.config.out).glob("codec/*/codec.safetensors"))
    assert (folder / "server" / "codec.safetensors").read_bytes() == trained.read_bytes()
    assert LinearCodec.load(folder / "server" / "codec.safetensors").dim == 4
