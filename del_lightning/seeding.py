"""Independent random streams named by what they are for.

A stream is a pure function of its name (seed, purpose, step, rank, example ...), never of what was drawn before.
So a resumed run draws the noise an uninterrupted one would, ranks never share a stream, and two methods evaluated
on the same prompt meet the same randomness. For simulation only: the client draws from the operating system.
"""

import hashlib

import torch


def stream_seed(*name: int | str) -> int:
    """Map a stream's name to a 63-bit seed by hashing it.

    >>> stream_seed(0, "train", 1) == stream_seed(0, "train", 1)
    True
    >>> stream_seed(0, "train", 1) == stream_seed(0, "train", 2)
    False
    """
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(*name: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator of the named stream on ``device``."""
    return torch.Generator(device=device).manual_seed(stream_seed(*name))
