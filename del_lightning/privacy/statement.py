"""What a front-end guarantees, in a form that cannot be misread.

A mu that belongs to one token says little about a prompt, and at the settings at which language models stay useful
it certifies almost nothing. So a statement always carries the exact epsilon of the whole sequence beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from del_lightning.privacy.accountant import BinomialAccountant
from del_lightning.report.schema import PrivacyColumns


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """The guarantee of one release; None where the method gives none.

    Epsilons are exact and hold at ``delta``; the unit "token" covers one private token given all others, the unit
    "sequence" all ``sequence_tokens`` of them. The length of the prompt is never protected.
    """

    mechanism: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    unit: str = "token"
    """What ``mu_token``, ``mu_effective``, ``max_epsilon`` and ``attack_bound`` refer to."""
    delta: float | None = None
    mu_token: float | None = None
    """GDP parameter of the paper's calibration."""
    mu_effective: float | None = None
    """Smallest mu' for which the exact trade-off function is mu'-GDP."""
    epsilon_token: float | None = None
    epsilon_sequence: float | None = None
    sequence_tokens: int | None = None
    max_epsilon: float | None = None
    """Pure epsilon (delta = 0)."""
    attack_bound: float | None = None
    """No attacker recovers a token with a higher probability."""
    paper_bound_vacuous: bool | None = None
    caveat: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    @classmethod
    def for_quantizer(
        cls,
        *,
        dim: int,
        bits: int,
        mu: float,
        sequence_tokens: int,
        delta: float = 1e-5,
        prior: float | None = None,
    ) -> Self:
        """The exact guarantee of a stochastic quantizer calibrated by the paper's formula.

        Args:
            dim: Code width d.
            bits: n in 1..8.
            mu: The paper's GDP parameter a token, > 0.
            sequence_tokens: Private tokens of a prompt, each released once.
            delta: In [0, 1).
            prior: Probability of the attacker's best guess without the release; adds :attr:`attack_bound`.

        Raises:
            ConfigError: An argument is out of range.
        """
        token = BinomialAccountant.from_mu(mu, dim, bits)
        return cls(
            mechanism=f"stochastic {bits}-bit quantizer",
            parameters={"mu": float(mu), "bits": float(bits), "dim": float(dim)},
            delta=delta,
            mu_token=float(mu),
            mu_effective=token.effective_mu,
            epsilon_token=token.epsilon(delta),
            epsilon_sequence=token.compose(sequence_tokens).epsilon(delta),
            sequence_tokens=sequence_tokens,
            max_epsilon=token.max_epsilon,
            attack_bound=None if prior is None else token.attack_bound(prior),
            paper_bound_vacuous=token.paper_bound_vacuous,
            caveat=_strength(token),
        )

    @classmethod
    def none(cls, mechanism: str, caveat: str) -> Self:
        """A front-end without any guarantee, for instance clean text or a projection without noise."""
        return cls(mechanism=mechanism, caveat=caveat)

    @classmethod
    def length_only(cls, mechanism: str, *, sequence_tokens: int, delta: float) -> Self:
        """A front-end that sends nothing but the number of private tokens: epsilon 0 at every delta."""
        return cls(
            mechanism=mechanism,
            delta=delta,
            mu_token=0.0,
            mu_effective=0.0,
            epsilon_token=0.0,
            epsilon_sequence=0.0,
            sequence_tokens=sequence_tokens,
            max_epsilon=0.0,
            caveat="the number of private tokens is visible",
        )

    def summary(self) -> str:
        """One readable line; mu never appears without the epsilon of the sequence."""
        parts = [self._guarantee()]
        if self.attack_bound is not None:
            parts.append(f"any attack on a token succeeds with probability at most {self.attack_bound:.4g}")
        if self.paper_bound_vacuous:
            parts.append("the bound of the paper's Theorem 4.2 is vacuous here")
        if self.caveat:
            parts.append(self.caveat)
        return f"{self.mechanism}: " + "; ".join(parts)

    def _guarantee(self) -> str:
        if self.epsilon_sequence is None or self.epsilon_token is None:
            return "no differential privacy guarantee"
        line = (
            f"exact epsilon {self.epsilon_token:.4g} a token, {self.epsilon_sequence:.4g} a sequence of "
            f"{self.sequence_tokens} tokens (delta {self.delta:g})"
        )
        if self.mu_token is not None and self.mu_effective is not None:
            line += f"; mu {self.mu_token:.4g} a token (exact: {self.mu_effective:.4g})"
        return line

    def columns(self) -> PrivacyColumns:
        """The statement as columns of the leaderboard."""
        return PrivacyColumns(
            mechanism=self.mechanism,
            parameters=dict(self.parameters),
            mu_token=self.mu_token,
            mu_effective=self.mu_effective,
            epsilon_token=self.epsilon_token,
            epsilon_sequence=self.epsilon_sequence,
            delta=self.delta,
            sequence_tokens=self.sequence_tokens,
            paper_bound_vacuous=self.paper_bound_vacuous,
            caveat=self.caveat,
        )


def _strength(token: BinomialAccountant) -> str:
    """Plain words where the worst-case guarantee is too weak to matter."""
    distance = token.total_variation
    if distance < 0.99:
        return ""
    return (
        "the worst-case guarantee says almost nothing: the best test tells the two worst tokens apart with "
        f"advantage {distance:.6g}; judge by the measured attacks"
    )
