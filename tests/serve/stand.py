"""What the tests of the server share: exports of a tiny random model, and a server around them on a free port."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from del_lightning.config import (
    CodecConfig,
    Config,
    DataConfig,
    LoggerConfig,
    MechanismConfig,
    ModelConfig,
    PromptConfig,
    ServeConfig,
    StageConfig,
    TrainerConfig,
)
from del_lightning.data import Corpus
from del_lightning.data.generation import Example, collate
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Release
from del_lightning.serve.access import KeyLimits
from del_lightning.serve.base import Delta, Engine, Event, Failed, Finished, Generation, Request
from del_lightning.serve.bundle import Bundle
from del_lightning.serve.engine import TransformersEngine
from del_lightning.serve.exports import Export, Prompt, load_exports
from del_lightning.serve.sampling import Sampling
from del_lightning.serve.server import Service
from del_lightning.split import SplitModel
from del_lightning.stages import export, workspace
from del_lightning.stages.serve import Server
from del_lightning.stages.workspace import Workspace
from del_lightning.wire import Frame, encode_frame
from tests.modules.factory import sentences

T = TypeVar("T")
MUS = (30.0, 3.0)
"""Two settings of one model."""


@dataclass(frozen=True)
class Stand:
    """A language model and its exports."""

    llm: FrozenLLM
    folders: list[Path]
    config: Config

    def exports(self) -> dict[str, Export]:
        return load_exports(self.folders, self.llm)

    def bundle(self, number: int = 0) -> Bundle:
        return Bundle(self.folders[number] / "client")

    def split(self, number: int = 0) -> SplitModel:
        """The offline model, decoding with the amplitude of the client's thresholds."""
        split = SplitModel.from_artifacts(self.folders[number] / "server", self.llm)
        split.method.quantizer.amplitude = self.bundle(number).manifest.amplitude
        return split


def make_stand(llm: FrozenLLM, root: Path, mus: Sequence[float] = MUS) -> Stand:
    """Run stage export for a tiny model and a made-up corpus, once for every mu."""
    llm.model.save_pretrained(root / "model")
    llm.tokenizer.save_pretrained(root / "model")
    config = Config(
        out=str(root / "runs"),
        methods=["del"],
        stage=StageConfig("del_lightning.stages.export.run", "export"),
        model=ModelConfig(name=str(root / "model")),
        data=DataConfig(
            prefix="go on ", min_words=10, prompt_words=5, train_tokens=12, split_ratio=[0.2, 0.6], validation_blocks=2
        ),
        codec=CodecConfig(corpus="lee", dim=4, steps=0, sequence_tokens=12),
        prompt=PromptConfig(virtual_tokens=5, steps=1, batch_size=2, validate_every=1),
        trainer=TrainerConfig(accelerator="cpu", progress_bar=False, attack_every=0),
        logger=LoggerConfig(kind="none"),
        serve=ServeConfig(port=0),
    )
    texts = {"train": sentences(0, 12), "validation": sentences(1, 6), "test": sentences(2, 4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEL_LIGHTNING_CACHE", str(root / "cache"))
        patch.setattr(workspace, "load_corpus", lambda name, *_: Corpus(name, "made up", texts.__getitem__))
        for mu in mus:
            config.mechanism = MechanismConfig(bits=3, mu=mu)
            export.run(Workspace(config))
    folders = [path.parent for path in Path(config.out).glob("export/*/result.json")]
    order = {load: number for number, load in enumerate(mus)}
    return Stand(llm, sorted(folders, key=lambda folder: order[Bundle(folder / "client").manifest.mu]), config)


def codes_of(stand: Stand, tokens: int, seed: int, number: int = 0) -> Any:
    """Random codes (tokens, d)."""
    manifest = stand.bundle(number).manifest
    return np.random.default_rng(seed).integers(0, 1 << manifest.bits, (tokens, manifest.dim), dtype=np.uint8)


def frame_of(stand: Stand, codes: Any, number: int = 0, **changes: Any) -> bytes:
    """A request with these codes."""
    manifest = stand.bundle(number).manifest
    content: dict[str, Any] = {
        "model": manifest.model,
        "setting": manifest.setting,
        "bits": manifest.bits,
        "a_plus": manifest.a_plus,
        "codes": codes,
        "prefix": manifest.prefix_ids,
    }
    return encode_frame(Frame(**content | changes))


def offline(stand: Stand, codes: Any, sampling: Sampling, number: int = 0, suffix: Sequence[int] = ()) -> list[int]:
    """What an evaluation makes of the same codes: ``SplitModel.generate`` with a batch of one."""
    prefix = stand.bundle(number).manifest.prefix_ids
    batch = collate([Example(prefix, [0] * len(codes), [], 0)], pad_id=0)
    if suffix:
        batch = collate([Example(prefix, [0] * len(codes), suffix, 0)], pad_id=0)
    (tokens,) = stand.split(number).generate(
        batch,
        Release(torch.from_numpy(codes)[None]),
        max_new_tokens=sampling.max_tokens,
        top_p=sampling.top_p,
        temperature=sampling.temperature or 1.0,
        do_sample=sampling.temperature > 0,
        seed=sampling.seed,
    )
    return tokens


def request_of(stand: Stand, codes: Any, sampling: Sampling, exports: dict[str, Export], number: int = 0) -> Request:
    """A request as the engine gets it."""
    manifest = stand.bundle(number).manifest
    return Request(Prompt(list(manifest.prefix_ids), codes, []), exports[manifest.setting], sampling)


async def collect(generation: Generation) -> tuple[list[int], str, Event]:
    """Ids, text and last event of a request."""
    ids: list[int] = []
    text = ""
    while isinstance(event := await generation.next(), Delta):
        ids += event.ids
        text += event.text
    assert isinstance(event, Finished | Failed)
    return ids, text, event


def with_engine(engine: Engine, work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work`` on an event loop with the engine started."""

    async def main() -> T:
        await engine.start()
        try:
            return await asyncio.wait_for(work(), 60)
        finally:
            await engine.close()

    return asyncio.run(main())


def make_service(
    stand: Stand,
    config: ServeConfig | None = None,
    keys: Sequence[str] | Mapping[str, KeyLimits] = (),
    engine: Engine | None = None,
) -> Service:
    config = config or ServeConfig(port=0, requests_per_minute=0)
    exports = stand.exports()
    engine = engine or TransformersEngine(stand.llm, list(exports.values()), rows=config.rows, queue=config.queue)
    return Service(config, exports, engine, keys if isinstance(keys, Mapping) else dict.fromkeys(keys, KeyLimits()))


@contextmanager
def serving(service: Service) -> Iterator[tuple[str, Server]]:
    """A server in a thread; yields its address."""
    server = Server(service)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
