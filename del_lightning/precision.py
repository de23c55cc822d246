"""The type of numbers in which a device runs a language model fastest: `model.dtype=auto`.

A processor without instructions for bfloat16 computes with it several times slower than with float32, because every
product is widened in software first; with them, bfloat16 is the faster one and takes half the memory.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from del_lightning.config import Config
from del_lightning.errors import ConfigError

IN_HARDWARE = ("amx_bf16", "avx512_bf16", "avx10_2", "sve_bf16", "bf16")
"""What a processor's list of features calls products of bfloat16, x86 and ARM."""


def fastest_dtype(device: torch.device) -> str:
    """``bfloat16`` where the device is known to have instructions for it, otherwise ``float32``."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.type == "cpu" and _multiplies_bfloat16() else "float32"


def with_dtype(config: Config, device: torch.device) -> Config:
    """The configuration with ``model.dtype=auto`` replaced by :func:`fastest_dtype`; any other as it is.

    Keys, records and pages hold what was computed in, not that it was left to the machine. Several machines without
    GPUs would each choose for itself: there ``auto`` stays, for :func:`check_dtype` to refuse.
    """
    if config.model.dtype != "auto" or (config.trainer.num_nodes > 1 and device.type == "cpu"):
        return config
    return replace(config, model=replace(config.model, dtype=fastest_dtype(device)))


def check_dtype(config: Config) -> None:
    """Refuse what :func:`with_dtype` could not decide.

    Raises:
        ConfigError: ``model.dtype`` is still ``auto``.
    """
    if config.model.dtype == "auto":
        raise ConfigError(
            f"`model.dtype` must be float32 or bfloat16 where {config.trainer.num_nodes} machines train on their "
            "processors, which may differ, got 'auto'"
        )


def advice(config: Config, device: torch.device) -> str | None:
    """A line for who asked for bfloat16 where it is known to be slow; None where there is nothing to say."""
    asked = [
        *(["model.dtype=bfloat16"] if config.model.dtype == "bfloat16" else []),
        *(["trainer.precision=bf16-mixed"] if config.trainer.precision.startswith("bf16") else []),
    ]
    if not asked or device.type != "cpu" or _multiplies_bfloat16() is not False:
        return None
    said = "this processor has no instructions for bfloat16 and is several times faster in float32"
    return f"{' and '.join(asked)}: {said}"


def instructions() -> str:
    """The processor's widest vector instructions that torch uses, as torch names them, and bfloat16 if it has that."""
    return torch.backends.cpu.get_cpu_capability() + (" with bfloat16" if _multiplies_bfloat16() else "")


def _multiplies_bfloat16() -> bool | None:
    """Whether this processor multiplies bfloat16 in hardware, and torch has it do so; None if that is not known."""
    capabilities = _capabilities()
    return None if capabilities is None else any(capabilities.get(name, False) for name in IN_HARDWARE)


def _capabilities() -> Mapping[str, Any] | None:
    """Features of this processor; None where torch is too old to tell, or (macOS) makes no use of them."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    return None if tell is None or sys.platform == "darwin" else tell()
