"""Front-end and server joined into one model: what training and evaluation run.

    device   private tokens --release--> codes
    server   codes --restore--> embeddings ----------+
             public prefix, continuation --embed-----+--> [soft prompt ; embeddings] --> frozen LLM --> logits

Only private prompt tokens pass the front-end. The public instruction, the teacher-forced continuation and what the
server generates itself are embedded clean. The soft prompt stands once, in front of everything, padding included:
its positions are then the same for every sequence of a batch.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from del_lightning.artifacts import read_result
from del_lightning.codec import LinearCodec
from del_lightning.config import ModelConfig
from del_lightning.data import Batch
from del_lightning.errors import ArtifactError
from del_lightning.llm import FrozenLLM
from del_lightning.loading import load_llm
from del_lightning.methods import DEL, Method, Release
from del_lightning.prompt import SoftPrompt
from del_lightning.seeding import stream

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from del_lightning.report.schema import Leaderboard


def _full_precision(device: torch.device) -> torch.autocast:
    """The front-end's arithmetic is not the trainer's to round: its law is that of the accountant."""
    return torch.autocast(device.type, enabled=False)


class SplitModel(nn.Module):
    """A frozen LLM behind a private front-end, with an optional soft prompt.

    Args:
        llm: Language model; never trained.
        method: Front-end for private tokens; None leaves them clean.
        prompt: Soft prompt; None runs without.
        prefix: Public instruction in front of the private prompt that the soft prompt was trained with; kept for
            whoever builds batches.
    """

    def __init__(
        self, llm: FrozenLLM, method: Method | None = None, prompt: SoftPrompt | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.llm = llm
        self.method = method
        self.prompt = prompt
        self.prefix = prefix

    def release(self, batch: Batch, generator: torch.Generator | None = None) -> Release:
        """The device's half: release a batch's private tokens, row by row, as one sequence (1, N, ...)."""
        assert self.method is not None
        with _full_precision(batch.input_ids.device):
            if self.method.per_sequence:
                rows = zip(batch.input_ids, batch.private_mask, strict=True)
                return Release.concatenate([self.method.release(ids[mask][None], generator) for ids, mask in rows])
            return self.method.release(batch.input_ids[batch.private_mask][None], generator)

    def release_examples(self, batch: Batch, seed: int) -> Release:
        """Like :meth:`release`, with one noise stream an example, so that batching cannot change the noise."""
        assert self.method is not None
        device = batch.input_ids.device
        releases = [
            self.method.release(ids[mask][None], stream("noise", seed, index, device=device))
            for ids, mask, index in zip(batch.input_ids, batch.private_mask, batch.index.tolist(), strict=True)
        ]
        return Release.concatenate(releases)

    def embed(self, batch: Batch, release: Release | None) -> Tensor:
        """The server's half: embeddings (B, T, b), private positions restored from the release."""
        embeddings = self.llm.embed(batch.input_ids)
        if release is None or self.method is None:
            return embeddings
        with _full_precision(embeddings.device):
            lengths = batch.private_mask.sum(1)
            restored = self.method.restore_sequences(release, lengths[lengths > 0])[0].to(embeddings.dtype)
        return embeddings.masked_scatter(batch.private_mask[..., None], restored)

    def prepend_prompt(self, embeddings: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Put the soft prompt in front: (B, T, b), (B, T) -> (B, k + T, b), (B, k + T)."""
        if self.prompt is None:
            return embeddings, attention_mask
        virtual = self.prompt(len(embeddings), embeddings.dtype)
        visible = attention_mask.new_ones(len(embeddings), self.prompt.virtual_tokens)
        return torch.cat([virtual, embeddings], dim=1), torch.cat([visible, attention_mask], dim=1)

    def logits(self, batch: Batch, release: Release | None) -> Tensor:
        """Logits (N, V) that predict the batch's N continuation tokens, and none besides.

        Row i predicts ``batch.input_ids[batch.target_mask][i]``.
        """
        embeddings, attention_mask = self.prepend_prompt(self.embed(batch, release), batch.attention_mask)
        virtual = embeddings.shape[1] - batch.input_ids.shape[1]
        keep = nn.functional.pad(predicting_positions(batch.target_mask), (virtual, 0))
        return self.llm.logits(embeddings, attention_mask, keep, shared=virtual)

    def pooled(self, batch: Batch, release: Release | None) -> Tensor:
        """Final hidden state (B, h) at the last position, which alone has seen the whole sequence."""
        return self.last(batch, release)[0]

    def last(self, batch: Batch, release: Release | None) -> tuple[Tensor, Tensor]:
        """Final hidden states (B, h) and next-token logits (B, V) at the last position of every sequence."""
        embeddings, attention_mask = self.prepend_prompt(self.embed(batch, release), batch.attention_mask)
        return self.llm.last(embeddings, attention_mask, shared=embeddings.shape[1] - batch.input_ids.shape[1])

    def loss(self, batch: Batch, release: Release | None) -> Tensor:
        """Mean negative log-likelihood of the continuation tokens, in nats."""
        return nn.functional.cross_entropy(self.logits(batch, release).float(), targets(batch))

    @torch.inference_mode()
    def generate(
        self,
        batch: Batch,
        release: Release | None,
        *,
        max_new_tokens: int,
        top_p: float = 0.9,
        temperature: float = 0.7,
        do_sample: bool = True,
        seed: int = 0,
    ) -> list[list[int]]:
        """Continue every prompt of a left-padded batch; returns the new token ids of each, end of text removed.

        Args:
            batch: Prompts; continuation positions, if any, are treated as given text.
            release: What the device sent for the private positions.
            max_new_tokens: At most this many new tokens each.
            top_p: Nucleus of the sampling distribution, in (0, 1].
            temperature: Sampling temperature, > 0.
            do_sample: False takes the most likely token every time.
            seed: Seed of the sampling; the caller's global random state is left alone.
        """
        embeddings, attention_mask = self.prepend_prompt(self.embed(batch, release), batch.attention_mask)
        return self.llm.generate(
            embeddings,
            attention_mask,
            max_new_tokens=max_new_tokens,
            top_p=top_p,
            temperature=temperature,
            do_sample=do_sample,
            seed=seed,
        )

    @classmethod
    def from_artifacts(cls, folder: str | Path, llm: FrozenLLM | None = None) -> "SplitModel":
        """Assemble DEL and its soft prompt from an artefact of the prompt stage.

        Args:
            folder: Holds ``result.json``, ``codec.safetensors`` and the prompt in PEFT's format.
            llm: The language model the prompt was trained with; None loads it by the name recorded in the folder.

        Raises:
            ArtifactError: A file is missing, made for another model or method, or for use with a low-rank adapter.
            AssetError: The recorded model cannot be loaded.
        """
        folder = Path(folder)
        result = read_result(folder)
        if result.stage != "prompt":
            raise ArtifactError(f"{folder} must be an artefact of the prompt stage, got one of {result.stage!r}")
        llm = llm or load_llm(ModelConfig(**result.config["model"]))
        expected = result.determined_by["model"]["fingerprint"]
        if expected != llm.fingerprint:
            raise ArtifactError(f"{folder} was made for the model with fingerprint {expected}, got {llm.fingerprint}")
        method = result.determined_by["method"]
        if method["name"] != DEL.name:
            raise ArtifactError(f"{folder} must hold a prompt trained behind {DEL.name!r}, got {method['name']!r}")
        if "adapter" in result.determined_by:
            raise ArtifactError(
                f"{folder} must hold a soft prompt that was trained by itself, got one trained with a low-rank adapter "
                f"(adapter.rank={result.determined_by['adapter']['rank']}), which it does not work without"
            )
        codec = LinearCodec.load(folder / "codec.safetensors").to(llm.device)
        front = DEL(llm.embedding_table(), codec, bits=method["bits"], mu=method["value"], l2_clip=method["l2_clip"])
        prefix = result.config["data"]["prefix"]
        return cls(llm, front, SoftPrompt.load(folder).to(llm.device), prefix).eval()

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        results: "Leaderboard | None" = None,
        repo_id: str | None = None,
        license: str | None = None,
    ) -> Path:
        """Write DEL and its soft prompt into a folder that :meth:`from_pretrained` reads, with a model card.

        Args:
            folder: Created; may hold an earlier publication and nothing else.
            results: A leaderboard that holds this mechanism (``leaderboard.json`` of a report); None publishes no
                measurements.
            repo_id: Repository that the model card tells people to load; None leaves a gap for it.
            license: What the model card names, as the hub spells it (``apache-2.0``); None takes the language model's
                own where it is known, and names none otherwise.

        Raises:
            ArtifactError: The folder holds other files, this is not DEL with a soft prompt, or the results are of
                another model, mechanism or length of the soft prompt.
        """
        from del_lightning.hub import write_folder  # That module describes this one.

        return write_folder(folder, self, results=results, repo_id=repo_id, license=license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        results: "Leaderboard | None" = None,
        private: bool = True,
        license: str | None = None,
        api: "HfApi | None" = None,
    ) -> str:
        """Publish what :meth:`save_pretrained` writes as one commit to the Hugging Face hub; returns its address.

        Args:
            repo_id: ``owner/name``; created if there is none.
            results: As in :meth:`save_pretrained`.
            private: Whether a new repository is only its owner's to see.
            license: As in :meth:`save_pretrained`.
            api: The hub's client; None takes one with this machine's login.

        Raises:
            ArtifactError: As in :meth:`save_pretrained`, or the repository holds files of something else.
            RemoteError: The hub refused, or cannot be reached.
        """
        from del_lightning.hub import push

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, results=results, repo_id=repo_id, license=license)
            return push(folder, repo_id, private=private, api=api)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        llm: FrozenLLM | None = None,
        *,
        revision: str | None = None,
        api: "HfApi | None" = None,
    ) -> "SplitModel":
        """Load DEL and its soft prompt from a published folder or from the hub, and check every part.

        Args:
            name_or_folder: Folder on this machine, or ``owner/name`` on the hub.
            llm: The language model it was made for; None loads the one that the publication names.
            revision: Branch, tag or commit on the hub.
            api: The hub's client; None takes one with this machine's login.

        Raises:
            ArtifactError: A file is missing, unknown or damaged, holds other shapes or numbers that are none, promises
                more than its mechanism keeps, or was made for another language model.
            AssetError: There is no such folder or repository, the hub cannot be reached, or the language model cannot
                be loaded.
        """
        from del_lightning.hub import fetch, read_folder
        from del_lightning.hub.record import check_model, model_settings

        folder = fetch(str(name_or_folder), revision, api)
        record, codec, prompt = read_folder(folder)
        llm = llm or load_llm(model_settings(record, str(name_or_folder)))
        check_model(record, llm, str(name_or_folder))
        table = llm.embedding_table()
        front = DEL(table, codec.to(llm.device), bits=record.bits, mu=record.mu, l2_clip=record.l2_clip)
        return cls(llm, front, prompt.to(llm.device), record.prefix).eval()


def predicting_positions(target_mask: Tensor) -> Tensor:
    """Positions (B, T) whose logits predict the targets: the token at t is predicted at t - 1."""
    return nn.functional.pad(target_mask[:, 1:], (0, 1))


def targets(batch: Batch) -> Tensor:
    """Continuation tokens (N,) in the row order of :meth:`SplitModel.logits`."""
    return batch.input_ids[batch.target_mask]


def example_of_target(batch: Batch) -> Tensor:
    """Index of the example that each continuation token belongs to (N,)."""
    return batch.index[:, None].expand_as(batch.target_mask)[batch.target_mask]
