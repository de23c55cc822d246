"""What stage ``export`` left for the server: one codec and soft prompt each, found by the frame's fingerprints.

Codes are decoded with the amplitude of the client's integer thresholds, which is the paper's A to within their
rounding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from del_lightning.errors import ArtifactError, ConfigError, DelError, FrameError
from del_lightning.llm import FrozenLLM
from del_lightning.methods import DEL, Release
from del_lightning.prompt import SoftPrompt
from del_lightning.serve.bundle import MANIFEST, Manifest
from del_lightning.split import SplitModel
from del_lightning.wire import Codes, Frame, Header, Public

SERVER, CLIENT = "server", "client"
_ROUNDING = 1e-3
"""Most that thresholds may differ from the mu they were made of, as a share of A."""


class MismatchError(DelError):
    """A frame was made for another model, setting or mechanism than this server holds."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A frame's content as the language model will see it, but for the soft prompt.

    Attributes:
        prefix: Public token ids in front of the private tokens.
        codes: (T, d) codes of the private tokens.
        suffix: Public token ids behind them.
    """

    prefix: list[int]
    codes: Codes
    suffix: list[int]

    def __len__(self) -> int:
        return len(self.prefix) + len(self.codes) + len(self.suffix)


class Export:
    """One export: decodes codes and knows the soft prompt; the language model's layers are not among it.

    Args:
        folder: Written by stage ``export``; holds ``server/`` and, for the web page, ``client/``.
        llm: The language model that it was made for.

    Raises:
        ArtifactError: A file is missing, damaged, or does not fit the others or the language model.
    """

    def __init__(self, folder: Path, llm: FrozenLLM) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder / SERVER)
        split = SplitModel.from_artifacts(folder / SERVER, llm)
        self.method, self.soft_prompt = cast(DEL, split.method), cast(SoftPrompt, split.prompt)
        self.tokenizer, self._embed, self._dtype = llm.tokenizer, llm.model.get_input_embeddings(), llm.dtype
        self._vocabulary, self.end_ids = llm.vocab_size, frozenset(llm.end_ids)
        self._set_amplitude()

    @property
    def client(self) -> Path:
        """Folder of the client's bundle."""
        return self.folder / CLIENT

    def _set_amplitude(self) -> None:
        """Decode with the client's A, which must be what the artefact's mu stands for."""
        quantizer, manifest = self.method.quantizer, self.manifest
        mechanism = (quantizer.bits, self.method.codec.dim)
        near = math.isclose(manifest.amplitude, quantizer.amplitude, rel_tol=_ROUNDING)
        if (manifest.bits, manifest.dim) != mechanism or not near:
            raise ArtifactError(f"{self.folder / SERVER / MANIFEST} must state its artefact's mechanism, got another")
        quantizer.amplitude = manifest.amplitude

    def prompt(self, frame: Frame) -> Prompt:
        """Read a frame that :func:`find_export` found to be made for this export.

        Raises:
            FrameError: A public token id is not in the vocabulary.
        """
        return Prompt(self._public(frame.prefix, opening=True), frame.codes, self._public(frame.suffix, opening=False))

    def _public(self, public: Public, *, opening: bool) -> list[int]:
        """Token ids of public text, as training and evaluation tokenise it."""
        if isinstance(public, str):
            ids: list[int] = list(self.tokenizer(public, add_special_tokens=opening)["input_ids"])
            while ids and ids[-1] == self.tokenizer.eos_token_id != self.tokenizer.bos_token_id:
                ids.pop()  # some tokenizers close every text, but this one goes on
            return ids
        if any(token >= self._vocabulary for token in public):
            raise FrameError(f"public token ids of the frame must be below {self._vocabulary}, got {max(public)}")
        return list(public)

    @torch.inference_mode()
    def embed(self, prompt: Prompt) -> Tensor:
        """Embeddings (T, b) of a prompt: what ``SplitModel.embed`` makes of the same codes."""
        device = self.soft_prompt.embeddings.device
        release = Release(torch.from_numpy(prompt.codes).to(device)[None])
        restored = self.method.restore(release)[0].to(self._dtype)
        public = [torch.tensor(ids, dtype=torch.long, device=device) for ids in (prompt.prefix, prompt.suffix)]
        return torch.cat([self._embed(public[0]), restored, self._embed(public[1])])


def load_exports(folders: Sequence[Path], llm: FrozenLLM) -> dict[str, Export]:
    """Load all exports of a server by the fingerprint of their setting.

    Args:
        folders: Written by stage ``export`` for the same language model.
        llm: The language model.

    Raises:
        ConfigError: No folder, or two with the same setting.
        ArtifactError: See :class:`Export`.
    """
    exports: dict[str, Export] = {}
    for folder in folders:
        export = Export(folder, llm)
        if (other := exports.get(export.manifest.setting)) is not None:
            raise ConfigError(f"`serve.exports` must hold different settings, got {other.folder} and {folder} alike")
        exports[export.manifest.setting] = export
    if not exports:
        raise ConfigError("`serve.exports` must name a folder that stage=export wrote, got none")
    return exports


def find_export(exports: Mapping[str, Export], frame: Header) -> Export:
    """The export that a frame was made for, from its header alone.

    Raises:
        MismatchError: There is none (the message lists what there is), or its codes come from another mechanism.
    """
    export = exports.get(frame.setting)
    if export is None or export.manifest.model != frame.model:
        offered = ", ".join(f"{one.manifest.model}/{one.manifest.setting}" for one in exports.values())
        raise MismatchError(f"model/setting of the frame must be one of {offered}, got {frame.model}/{frame.setting}")
    for name in ("bits", "dim", "a_plus"):
        expected, value = getattr(export.manifest, name), getattr(frame, name)
        if value != expected:
            raise MismatchError(f"`{name}` of the frame must be {expected} for its setting, got {value}")
    return export
