"""Who may ask, how often, and for how much."""

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from del_lightning.errors import ConfigError


@dataclass(frozen=True)
class KeyLimits:
    """Limits of one key; None leaves the server's.

    Attributes:
        max_prompt_tokens: Private tokens of a request, at most; the server's limit holds as well.
        requests_per_minute: Instead of the server's; 0 sets no limit.
    """

    max_prompt_tokens: int | None = None
    requests_per_minute: int | None = None


_LEAST = {"max_prompt_tokens": 1, "requests_per_minute": 0}


def read_keys(file: str | Path) -> dict[str, KeyLimits]:
    """API keys of a text file: one a line, its limits behind it; empty lines and those that start with # are left out.

    Example of a line: ``c0ffee max_prompt_tokens=64 requests_per_minute=10``.

    Raises:
        ConfigError: The file cannot be read or holds no key, one twice, one that no header can carry, or a wrong limit.
    """
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`serve.keys_file` must be a readable text file, got {str(file)!r}: {error}") from None
    keys: dict[str, KeyLimits] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, *limits = line.split()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"`serve.keys_file` must hold keys of printable ASCII, got else in line {number}")
        if key in keys:
            raise ConfigError(f"`serve.keys_file` must hold each key once, got one again in line {number}")
        keys[key] = _limits(limits, number)
    if not keys:
        raise ConfigError(f"`serve.keys_file` must hold at least one key, got none in {str(file)!r}")
    return keys


def _limits(words: list[str], line: int) -> KeyLimits:
    """Read what stands behind a key. Errors do not quote it: it may be a part of a key with a space in it."""
    found: dict[str, int] = {}
    for word in words:
        name, _, value = word.partition("=")
        number = int(value) if value.isascii() and value.isdecimal() else -1
        if name not in _LEAST or name in found or number < _LEAST[name]:
            names = " and ".join(f"{name}=NUMBER (at least {least})" for name, least in _LEAST.items())
            raise ConfigError(f"`serve.keys_file` must hold {names}, once each, behind a key, got else in line {line}")
        found[name] = number
    return KeyLimits(**found)


class Keys:
    """The API keys of a server.

    Args:
        keys: The keys, of which only hashes are kept, with their limits; without any, everyone may ask.
    """

    def __init__(self, keys: Mapping[str, KeyLimits]) -> None:
        self._digests = {_digest(key): _digest(key).hex()[:8] for key in keys}
        self._limits = {_digest(key).hex()[:8]: limits for key, limits in keys.items()}

    @property
    def needed(self) -> bool:
        """Whether a request must show a key."""
        return bool(self._digests)

    def name(self, authorization: str | None) -> str | None:
        """Name of the key in an Authorization header, fit for logs; None if there is no valid one.

        All keys are compared, each in constant time, so that time tells nothing about them.
        """
        if not self.needed:
            return "anyone"
        scheme, _, key = (authorization or "").partition(" ")
        shown = _digest(key.strip())
        matches = [name for digest, name in self._digests.items() if hmac.compare_digest(digest, shown)]
        return matches[0] if matches and scheme.lower() == "bearer" else None

    def limits(self, name: str) -> KeyLimits:
        """Limits of the key that is called so."""
        return self._limits.get(name, KeyLimits())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class RateLimit:
    """Lets each key ask so many times a minute on average, and as many at once.

    Args:
        clock: Seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._balances: dict[str, tuple[float, float]] = {}

    def wait(self, name: str, per_minute: int) -> int:
        """Count a request of a key with this limit, 0 being none; returns 0, or the seconds until it may ask again."""
        if not per_minute:
            return 0
        now = self._clock()
        balance, since = self._balances.get(name, (float(per_minute), now))
        balance = min(per_minute, balance + (now - since) * per_minute / 60)
        allowed = balance >= 1
        self._balances[name] = (balance - allowed, now)
        return 0 if allowed else math.ceil((1 - balance) * 60 / per_minute)
