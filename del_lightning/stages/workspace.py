"""What the stages of one run share: configuration, store, and the loaded model and data."""

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor

from del_lightning import memory, ranks
from del_lightning.artifacts import ArtifactStore
from del_lightning.attacks import log_prior
from del_lightning.bigrams import Bigrams
from del_lightning.codebook import Codebook
from del_lightning.codec import LinearCodec, check_dim
from del_lightning.config import Config
from del_lightning.data import GenerationDataModule, load_corpus
from del_lightning.data.tokens import Ragged
from del_lightning.errors import ConfigError, DelError
from del_lightning.llm import FrozenLLM
from del_lightning.loading import check_llm, load_llm
from del_lightning.memory import MemoryPlan
from del_lightning.methods import Method
from del_lightning.methods.factory import (
    CLASSES,
    LABELS,
    NEEDS_CODEBOOK,
    NEEDS_CODEC,
    NEEDS_FREQUENCIES,
    NEEDS_PRIOR,
    NEEDS_VOCABULARY,
    Parts,
    build,
    built,
    default_value,
    settings,
)
from del_lightning.methods.vocabulary import Vocabulary
from del_lightning.metrics import content_tokens
from del_lightning.metrics.coherence import SentenceEncoder
from del_lightning.precision import with_dtype
from del_lightning.report.schema import Leaderboard
from del_lightning.split import SplitModel
from del_lightning.stages.tracking import CurveLogger
from del_lightning.stages.training import pick_device, uses_cuda
from del_lightning.terminal import say, track


class Workspace:
    """Loads each shared thing once, when it is first needed; as a context it ends the run's W&B record."""

    def __init__(self, config: Config, overrides: Sequence[str] = ()) -> None:
        """``config`` has passed its own checks; ``overrides`` is what was typed to get it, for the report."""
        kind = "cuda" if uses_cuda(config.trainer) else "cpu"  # the launch is checked later
        self.config, self.overrides = with_dtype(config, torch.device(kind)), list(overrides)
        self.store = ArtifactStore(config.out, asdict(self.config))
        self.memory: MemoryPlan | None = None
        self.board: Leaderboard | None = None  # what stage report made
        self._methods: dict[str, Method] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A process may run several configurations, each of which is a W&B run of its own."""
        if "wandb_run" in self.__dict__:
            self.wandb_run.finish(exit_code=0 if kind is None else 1)

    def on(self, dataset: str) -> "Workspace":
        """The same configuration on another data set; what does not depend on the data is shared."""
        other = copy(self)
        other.config = replace(self.config, data=replace(self.config.data, name=dataset))
        other.__dict__["llm"] = self.llm
        of_the_data = ("data", "prior", "bigrams", "decoder_bigrams", "mean_prompt_tokens", "clean_choices")
        for name in of_the_data:
            other.__dict__.pop(name, None)
        other._methods = {name: made for name, made in self._methods.items() if name not in NEEDS_PRIOR}
        return other

    def check_memory(self) -> None:
        """Find the model and work out what training takes.

        Raises:
            DelError: No such device or model, the device cannot hold it, or a code would be wider than its embeddings.
        """
        architecture = check_llm(self.config.model)
        device = pick_device(self.config.trainer)
        if architecture is None:
            return
        try:
            self.memory = memory.check(self.config, architecture, device)
        except DelError:
            raise
        except Exception as error:  # noqa: BLE001 - of an estimate; the model itself may run
            say(f"memory: not known for {self.config.model.name} before it is loaded ({error})")
            return
        if self.sends_codes:
            check_dim(self.config.codec.dim, self.memory.width)

    @cached_property
    def device(self) -> torch.device:
        """Where everything runs."""
        return pick_device(self.config.trainer)

    @cached_property
    def llm(self) -> FrozenLLM:
        """The frozen language model on :attr:`device`, or in main memory if no device can hold all of it."""
        llm = load_llm(self.config.model)
        if self.config.trainer.compile:
            llm.compile_layers()  # before they are wrapped
        if self.config.trainer.activation_checkpointing:
            llm.recompute_layers()
        return llm.to(self.device) if self.memory is None or self.memory.fits_alone else llm

    @cached_property
    def local_llm(self) -> FrozenLLM:
        """The language model on the user's device that InferDPT needs; the server's own unless configured."""
        name = self.config.baseline.inferdpt.local_model
        return self.llm if name is None else load_llm(replace(self.config.model, name=name)).to(self.device)

    @cached_property
    def embedding_table(self) -> Tensor:
        """Clean embeddings (V, b), float32."""
        return self.llm.embedding_table()

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """Sentence encoder of COH."""
        return SentenceEncoder(self.config.evaluate.encoder, self.config.evaluate.pooling).to(self.device)

    @cached_property
    def data(self) -> GenerationDataModule:
        """The corpus of the leaderboard."""
        corpus = load_corpus(self.config.data.name, self.config.data.root)
        return GenerationDataModule(
            corpus,
            self.llm.tokenizer,
            self.config.data,
            batch_size=self.config.prompt.batch_size,
            seed=self.config.seed,
        )

    def training_text(self, batch_size: int, block_tokens: int) -> GenerationDataModule:
        """The same corpus in blocks of another length."""
        corpus = load_corpus(self.config.data.name, self.config.data.root)
        return GenerationDataModule(
            corpus,
            self.llm.tokenizer,
            self.config.data,
            batch_size=batch_size,
            seed=self.config.seed,
            block_tokens=block_tokens,
        )

    def decoded_text(self, name: str) -> GenerationDataModule:
        """The text that a method's server trains on.

        A server that decodes with bigrams knows the pairs of the text that they were counted in too well, so it trains
        on the other half.
        """
        if name not in NEEDS_PRIOR or not self.config.codebook.neighbours:
            return self.data
        data = copy(self.data)
        data.second_half = True
        return data

    @cached_property
    def public(self) -> GenerationDataModule:
        """The public corpus behind the codec."""
        codec = self.config.codec
        return GenerationDataModule(
            load_corpus(codec.corpus, self.config.data.root, "codec.corpus"),
            self.llm.tokenizer,
            self.config.data,
            batch_size=codec.batch_size,
            seed=self.config.seed,
            split_ratio=codec.split_ratio,
            block_tokens=codec.sequence_tokens,
            documents=codec.documents,
        )

    @cached_property
    def frequencies(self) -> Tensor:
        """Add-one smoothed token counts of the public corpus (V,), float32."""
        return self.public.unigram_counts(self.llm.vocab_size).float().to(self.device) + 1

    @cached_property
    def prior(self) -> Tensor:
        """ln Pr(token) (V,) in the training split of the very corpus under attack: what attackers know beforehand."""
        return log_prior(self.data.unigram_counts(self.llm.vocab_size)).to(self.device)

    @cached_property
    def content_tokens(self) -> Tensor:
        """Which tokens of the vocabulary carry content (V,), bool, on the CPU."""
        return content_tokens(self.llm.tokenizer, self.llm.vocab_size)

    @cached_property
    def bigrams(self) -> Bigrams:
        """Which token follows which in that training split."""
        return Bigrams(self.data.tokens("train"), self.prior)

    @cached_property
    def decoder_bigrams(self) -> Bigrams:
        """The same of its first half alone: what a server decodes with, see :meth:`decoded_text`."""
        tokens = self.data.tokens("train")
        half = len(tokens) // 2
        return Bigrams(Ragged(tokens.flat[: tokens.offsets[half]], tokens.offsets[: half + 1]), self.prior)

    @cached_property
    def mean_prompt_tokens(self) -> int:
        """Private tokens of a test prompt, on average: the length that guarantees of a sequence are quoted for."""
        prompts = self.data.prompts()
        return round(sum(len(prompt.private_ids) for prompt in prompts) / len(prompts))

    @property
    def sends_codes(self) -> bool:
        """Whether this configuration needs a codec."""
        return not built(self.config).isdisjoint(NEEDS_CODEC)

    @property
    def searched(self) -> set[str]:
        """Methods of the leaderboard whose parameter is calibrated."""
        return {name for name in self.config.methods if self.parameter(name) and self.given_value(name) is None}

    def parameter(self, name: str) -> str | None:
        """Name of a method's privacy parameter; None for a control."""
        return CLASSES[name].parameter

    def title(self, name: str) -> str:
        """A method's name in tables."""
        return LABELS[name]

    def given_value(self, name: str) -> float | None:
        """The value that the configuration sets a method's parameter to; None where it is to be calibrated."""
        return default_value(name, self.config.baseline, self.config.mechanism)

    def method(self, name: str) -> Method:
        """A front-end with all its tables, at some value of its parameter; built once."""
        if name not in self._methods:
            # Who asks first may be in inference mode, and what is made there cannot change devices for a training.
            with torch.inference_mode(False), torch.no_grad():
                self._methods[name] = self._build(name).to(self.device)
        return self._methods[name]

    def _build(self, name: str) -> Method:
        codec = self.codec() if name in NEEDS_CODEC else None
        vocabulary = self.vocabulary if name in NEEDS_VOCABULARY else None
        frequencies = self.frequencies if name in NEEDS_FREQUENCIES else None
        parts = Parts(self.embedding_table, codec, frequencies, vocabulary=vocabulary)
        if name in NEEDS_PRIOR:
            bigrams = self.decoder_bigrams if self.config.codebook.neighbours else None
            parts = replace(parts, prior=self.prior, bigrams=bigrams)
        if name in NEEDS_CODEBOOK:
            parts = replace(parts, codebook=self.codebook())
        # A method that is to be calibrated starts anywhere in its range.
        start = CLASSES[name].parameter_range[0] if self.parameter(name) and self.given_value(name) is None else None
        return build(name, parts, self.config.baseline, self.config.mechanism, start)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens as word-level methods see them; their distances are worked out once for all of these methods."""
        path = self.config.baseline.word_vectors
        return Vocabulary.from_tokenizer(self.llm.tokenizer, self.embedding_table, self.frequencies, path)

    def codebook(self) -> Codebook:
        """The semantic codebook of this configuration, built if it was not."""
        from del_lightning.stages import codebook as codebook_stage  # That module imports this one.

        return codebook_stage.load(self)

    def codec(self) -> LinearCodec:
        """The codec of this configuration, trained if it was not."""
        from del_lightning.stages import codec as codec_stage  # That module imports this one.

        return codec_stage.load(self)

    def method_key(self, name: str) -> dict[str, Any]:
        """A front-end's part of an artefact's key, but for the value of its parameter."""
        from del_lightning.stages import codec as codec_stage

        key: dict[str, Any] = {"name": name, **settings(name, self.config.baseline, self.config.mechanism)}
        if name == "mean":
            key["over"] = "vocabulary"
        if name in NEEDS_CODEC:
            key["codec"] = codec_stage.ensure(self).key
        if name in NEEDS_CODEBOOK:
            from del_lightning.stages import codebook as codebook_stage

            key["codebook"] = codebook_stage.ensure(self).key
        if name in NEEDS_PRIOR:
            key["neighbours"] = self.config.codebook.neighbours
        if name in (*NEEDS_VOCABULARY, *NEEDS_FREQUENCIES):
            key["frequencies"] = self.public.fingerprint
        if name in NEEDS_VOCABULARY and (path := self.config.baseline.word_vectors):
            key["word_vectors"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return key

    @cached_property
    @torch.inference_mode()
    def clean_choices(self) -> list[Tensor]:
        """The plain model's top-1 next tokens (N,) at the continuation of every test batch, clean prompt."""
        plain = SplitModel(self.llm)
        batches = track(self.data.test_dataloader(), "clean reference")
        return [plain.logits(batch.to(self.device), None).argmax(dim=-1) for batch in batches]

    @property
    def prompts_key(self) -> dict[str, int]:
        """What besides the data's fingerprint determines which test prompts there are; empty by default."""
        first = self.config.data.first_prompt
        return {"first_prompt": first} if first else {}

    @cached_property
    def model_key(self) -> dict[str, Any]:
        """The model's part of an artefact's key."""
        return {"fingerprint": self.llm.fingerprint, "dtype": self.config.model.dtype}

    def logger(self, part: str) -> Logger | bool:
        """Logger for one trained part (``codec``, ``soft_prompt/del/given``); all share one W&B run."""
        match self.config.logger.kind if ranks.is_first() else "none":
            case "csv":
                return CSVLogger(self.store.root / "logs", name=part.replace("/", "-"))
            case "wandb":
                return CurveLogger(self.wandb_run, part)
            case _:
                return False

    @cached_property
    def wandb_run(self) -> Any:
        """The W&B run of this configuration, started at first use."""
        import wandb

        self.store.root.mkdir(parents=True, exist_ok=True)
        try:
            return wandb.init(
                project=self.config.logger.project,
                mode=cast(Literal["online", "offline", "disabled"], self.config.logger.mode),
                dir=str(self.store.root),
                config=asdict(self.config),
            )
        except wandb.Error as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"`logger.mode` {self.config.logger.mode!r} is impossible, W&B says: {said}") from error
