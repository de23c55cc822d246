"""Checkpoints of a training as safetensors: tensors by number, everything around them as JSON beside.

A file of Lightning's own is a pickle, which runs what it holds. This one holds numbers and text and nothing else.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from del_lightning.errors import ArtifactError

EXTENSION = ".ckpt.safetensors"
_CONTENT = "checkpoint"


class SafetensorsIO(CheckpointIO):
    """What Lightning's Trainer writes and reads its checkpoints with."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write all of it or nothing.

        Raises:
            ArtifactError: The checkpoint holds something that is neither a tensor nor plain data.
        """
        path, tensors = Path(path), dict[str, Tensor]()
        content = json.dumps(_plain(checkpoint, tensors))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        save_file(tensors, temporary, metadata={_CONTENT: content})
        temporary.replace(path)

    @override
    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Everything as it was, tensors in main memory.

        Args:
            path: A file that :meth:`save_checkpoint` wrote.
            map_location: Ignored: Lightning moves what it reads to where it belongs.
            weights_only: Ignored: there is no code in such a file.

        Raises:
            ArtifactError: It is not such a file, or a damaged one.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
                content = json.loads((file.metadata() or {})[_CONTENT])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path} must be a checkpoint of this package: {error}; delete it") from error
        found: dict[str, Any] = _restored(content, tensors)
        return found

    @override
    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete the file, if it is there."""
        Path(path).unlink(missing_ok=True)


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON-able form of a value; its tensors go into ``tensors``."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            name = str(len(tensors))
            # A copy: safetensors refuses tensors that share memory, as two running averages may.
            tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            return {"tensor": name}
        case dict():
            return {"dict": [[_plain(key, tensors), _plain(entry, tensors)] for key, entry in value.items()]}
        case tuple():
            return {"tuple": [_plain(entry, tensors) for entry in value]}
        case list():
            return [_plain(entry, tensors) for entry in value]
        case _:
            raise ArtifactError(f"a checkpoint must hold tensors and plain data, got {type(value).__name__}")


def _restored(content: Any, tensors: dict[str, Tensor]) -> Any:
    match content:
        case {"tensor": str(name)}:
            return tensors[name]
        case {"dict": list(entries)}:
            return {_restored(key, tensors): _restored(entry, tensors) for key, entry in entries}
        case {"tuple": list(entries)}:
            return tuple(_restored(entry, tensors) for entry in entries)
        case list(entries):
            return [_restored(entry, tensors) for entry in entries]
        case _:
            return content
