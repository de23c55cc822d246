"""What a request may wish for: the same bounds on both sides, so that the client refuses before anything is paid."""

import math

from del_lightning.privacy.checks import require

DEFAULT_NEW_TOKENS = 200
"""Longest answer where none is wished for and the server's limit is not lower."""

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.001, 100.0
"""Logits are divided by the temperature: a tiny one would make infinities. 0 takes the likeliest token."""

SEEDS = 1 << 63
"""Seeds are below."""


def check_wishes(max_tokens: int | None, temperature: float, top_p: float, seed: int | None) -> None:
    """Refuse what no server takes.

    Raises:
        ConfigError: a wish is out of range.
    """
    require(max_tokens is None or max_tokens >= 1, "max_tokens", "at least 1", max_tokens)
    possible = temperature == 0 or LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE  # false for nan
    require(possible, "temperature", f"0 or between {LEAST_TEMPERATURE:g} and {MOST_TEMPERATURE:g}", temperature)
    require(math.isfinite(top_p) and 0 < top_p <= 1, "top_p", "in (0, 1]", top_p)
    require(seed is None or 0 <= seed < SEEDS, "seed", "at least 0 and below 2^63", seed)
