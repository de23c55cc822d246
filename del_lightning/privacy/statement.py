"""What a front-end guarantees, in a form that cannot be misread.

A mu that belongs to one token says little about a prompt, and at the settings at which language models stay useful
it certifies almost nothing. So a statement always carries the exact epsilon of the whole sequence beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from del_lightning.privacy.accountant import BinomialAccountant
from del_lightning.privacy.checks import require, require_count
from del_lightning.privacy.gaussian import GaussianAccountant

if TYPE_CHECKING:
    from del_lightning.report.schema import PrivacyColumns

UNITS = ("token", "span", "sequence", "user")
"""What one secret may be: a token, some neighbouring ones, a prompt, or everything that a user ever sends."""

_EXACT_MU_TRIALS = 1 << 24
"""Up to this many bits the effective mu of a unit is worked out (about a second)."""


@dataclass(frozen=True, kw_only=True)
class UnitGuarantee:
    """What holds when all tokens of one unit may differ at once; all numbers exact."""

    unit: str
    tokens: int
    """Releases that belong to the unit."""
    epsilon: float
    """At the statement's delta."""
    total_variation: float
    """Advantage of the best test between the two worst inputs; 1 means that they can be told apart."""
    max_epsilon: float
    """Pure epsilon (delta = 0); infinite for Gaussian noise."""
    mu_effective: float | None = None
    """Smallest mu' such that the unit is mu'-GDP; None beyond 16 million released bits."""
    attack_bound: float | None = None
    """No attacker names the unit's text with a higher probability, given the statement's prior."""


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
    units: tuple[UnitGuarantee, ...] = ()
    """The guarantee for each unit, in the order of :data:`UNITS`."""
    caveat: str = ""

    def __post_init__(self) -> None:
        shown = self.mu_token is None or self.epsilon_sequence is not None
        require(shown, "epsilon_sequence", "given wherever mu_token is", self.epsilon_sequence)
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
        statement = cls.for_accountant(token, sequence_tokens=sequence_tokens, delta=delta, prior=prior)
        nominal = {"mu": float(mu), "bits": float(bits), "dim": float(dim)}
        return replace(statement, mu_token=float(mu), parameters=nominal)

    @classmethod
    def for_accountant(
        cls,
        token: BinomialAccountant,
        *,
        sequence_tokens: int,
        span_tokens: int | None = None,
        user_tokens: int | None = None,
        delta: float = 1e-5,
        prior: float | None = None,
    ) -> Self:
        """The exact guarantee of a quantizer given by its accountant, for instance that of the client's thresholds.

        Args:
            token: The accountant of one token's release.
            sequence_tokens: Private tokens of a prompt, each released once.
            span_tokens: Tokens of a phrase that is one secret; leaves the unit out if None.
            user_tokens: Tokens of all requests of one user together; leaves the unit out if None.
            delta: In [0, 1).
            prior: Probability of the attacker's best guess of a unit without the release; adds attack bounds.

        Raises:
            ConfigError: An argument is out of range.
        """
        counts = _counts(sequence_tokens, span_tokens, user_tokens)
        units = tuple(_quantizer_unit(unit, token.compose(t), delta, prior) for unit, t in counts.items())
        return cls(
            mechanism=f"stochastic {token.bits}-bit quantizer",
            parameters={"mu": token.mu_token, "bits": float(token.bits), "dim": float(token.dim)},
            mu_token=token.mu_token,
            paper_bound_vacuous=token.paper_bound_vacuous,
            caveat=_strength(token.total_variation),
            **_shared(units, delta),
        )

    @classmethod
    def for_gaussian(
        cls,
        *,
        mu: float,
        sequence_tokens: int,
        span_tokens: int | None = None,
        user_tokens: int | None = None,
        delta: float = 1e-5,
        prior: float | None = None,
    ) -> Self:
        """The exact guarantee of Gaussian noise that is mu-GDP a token; arguments as in :meth:`for_accountant`."""
        token = GaussianAccountant(mu)
        counts = _counts(sequence_tokens, span_tokens, user_tokens)
        units = tuple(_gaussian_unit(unit, token.compose(t), t, delta, prior) for unit, t in counts.items())
        return cls(
            mechanism="Gaussian mechanism",
            parameters={"mu": float(mu)},
            mu_token=float(mu),
            caveat=_strength(token.total_variation),
            **_shared(units, delta),
        )

    @classmethod
    def for_metric(cls, mechanism: str, *, eta: float, distance: str) -> Self:
        """Metric privacy: the loss between two tokens is at most eta times their distance, and no epsilon follows.

        Args:
            mechanism: What is released.
            eta: Loss for a unit of distance, in nats.
            distance: The distance meant, for instance "L2 distance of embeddings".
        """
        caveat = f"metric privacy at eta {eta:.4g} for a unit of {distance}; far-apart tokens are barely protected"
        return cls(mechanism=mechanism, parameters={"eta": float(eta)}, caveat=caveat)

    @classmethod
    def for_substitution(cls, mechanism: str, *, epsilon: float, sequence_tokens: int, caveat: str) -> Self:
        """Token substitution that is epsilon-differentially private a token, by its authors' own account.

        A sequence adds up to T epsilon (pure, worst case over all its tokens).

        Args:
            mechanism: What is released.
            epsilon: Pure epsilon of one substituted token, at least 0.
            sequence_tokens: Private tokens of a prompt, each substituted once.
            caveat: Under what assumption the authors' epsilon holds, for instance within which set of tokens.
        """
        require(epsilon >= 0, "epsilon", "at least 0", epsilon)
        require_count("sequence_tokens", sequence_tokens)
        return cls(
            mechanism=mechanism,
            parameters={"epsilon": float(epsilon)},
            delta=0.0,
            epsilon_token=float(epsilon),
            epsilon_sequence=sequence_tokens * float(epsilon),
            sequence_tokens=sequence_tokens,
            max_epsilon=float(epsilon),
            caveat=caveat,
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

    def at(self, unit: str) -> UnitGuarantee:
        """The guarantee for one unit.

        Raises:
            ConfigError: The statement does not cover this unit.
        """
        covered = {guarantee.unit: guarantee for guarantee in self.units}
        require(unit in covered, "unit", "one of " + (", ".join(covered) or "none"), unit)
        return covered[unit]

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
        for other in (guarantee for guarantee in self.units if guarantee.unit in ("span", "user")):
            line += f", {other.epsilon:.4g} a {other.unit} of {other.tokens} tokens"
        if self.mu_token is not None and self.mu_effective is not None:
            line += f"; mu {self.mu_token:.4g} a token (exact: {self.mu_effective:.4g})"
        return line

    def columns(self) -> "PrivacyColumns":
        """The statement as columns of the leaderboard."""
        from del_lightning.report.schema import PrivacyColumns  # The client states its privacy without the report.

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


def _counts(sequence_tokens: int, span_tokens: int | None, user_tokens: int | None) -> dict[str, int]:
    """Tokens of each unit asked for, in the order of UNITS."""
    require_count("sequence_tokens", sequence_tokens)
    counts = {"token": 1}
    if span_tokens is not None:
        require_count("span_tokens", span_tokens)
        counts["span"] = span_tokens
    counts["sequence"] = sequence_tokens
    if user_tokens is not None:
        require_count("user_tokens", user_tokens)
        counts["user"] = user_tokens
    return counts


def _quantizer_unit(unit: str, accountant: BinomialAccountant, delta: float, prior: float | None) -> UnitGuarantee:
    return UnitGuarantee(
        unit=unit,
        tokens=accountant.tokens,
        epsilon=accountant.epsilon(delta),
        total_variation=accountant.total_variation,
        max_epsilon=accountant.max_epsilon,
        mu_effective=accountant.effective_mu if accountant.trials <= _EXACT_MU_TRIALS else None,
        attack_bound=None if prior is None else accountant.attack_bound(prior),
    )


def _gaussian_unit(
    unit: str, accountant: GaussianAccountant, tokens: int, delta: float, prior: float | None
) -> UnitGuarantee:
    return UnitGuarantee(
        unit=unit,
        tokens=tokens,
        epsilon=accountant.epsilon(delta),
        total_variation=accountant.total_variation,
        max_epsilon=math.inf,
        mu_effective=accountant.effective_mu,
        attack_bound=None if prior is None else accountant.attack_bound(prior),
    )


def _shared(units: tuple[UnitGuarantee, ...], delta: float) -> dict[str, Any]:
    """The fields that a statement repeats from its units, so that tables need not look for them."""
    by_unit = {guarantee.unit: guarantee for guarantee in units}
    token, sequence = by_unit["token"], by_unit["sequence"]
    return {
        "delta": delta,
        "mu_effective": token.mu_effective,
        "epsilon_token": token.epsilon,
        "epsilon_sequence": sequence.epsilon,
        "sequence_tokens": sequence.tokens,
        "max_epsilon": token.max_epsilon,
        "attack_bound": token.attack_bound,
        "units": units,
    }


def _strength(distance: float) -> str:
    """Plain words where the worst-case guarantee is too weak to matter; ``distance``: total variation, a token."""
    if distance < 0.99:
        return ""
    return (
        "the worst-case guarantee says almost nothing: the best test tells the two worst tokens apart with "
        f"advantage {distance:.6g}; judge by the measured attacks"
    )
