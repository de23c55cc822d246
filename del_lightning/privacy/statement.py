"""What a front-end guarantees, in a form that cannot be misread.

A mu that belongs to one token says little about a prompt, and at the settings at which language models stay useful
it certifies almost nothing. So a statement always carries the exact epsilon of the whole sequence beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from del_lightning.privacy.accountant import BinomialAccountant
from del_lightning.privacy.checks import require, require_count
from del_lightning.privacy.gaussian import GaussianAccountant

if TYPE_CHECKING:
    from del_lightning.report.schema import PrivacyColumns

Accountant = BinomialAccountant | GaussianAccountant

UNITS = ("token", "span", "sequence", "user")
"""What one secret may be: a token, some neighbouring ones, a prompt, or everything that a user ever sends."""

PRIOR = 0.05
"""Success of a best guess without the release, unless another is given: about that of the commonest token."""

_EXACT_MU_TRIALS = 1 << 24
"""Up to this many bits the effective mu of a unit is worked out (a few seconds at most)."""
_TELLING = 0.99
"""From this advantage of the best test on, a worst-case guarantee is called weak."""


@dataclass(frozen=True, kw_only=True)
class UnitGuarantee:
    """What holds when all tokens of one unit may differ at once; None where the method does not say."""

    unit: str
    tokens: int
    """Releases that belong to the unit."""
    epsilon: float
    """At the statement's delta."""
    max_epsilon: float
    """Pure epsilon (delta = 0); infinite for Gaussian noise."""
    total_variation: float | None = None
    """Advantage of the best test between the two worst inputs; 1 means that they can be told apart."""
    mu_effective: float | None = None
    """Smallest mu' such that the unit is mu'-GDP; None beyond 16 million released bits."""
    attack_bound: float | None = None
    """No attacker names the unit's text with a higher probability, given the statement's prior."""

    @property
    def name(self) -> str:
        """With its size: "a span of 4 tokens"."""
        return "a token" if self.unit == "token" else f"a {self.unit} of {self.tokens} tokens"


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """The guarantee of one release; None where the method gives none.

    Epsilons hold at ``delta``; the unit "token" covers one private token given all others, the unit "sequence" all
    ``sequence_tokens`` of them. The length of the prompt is never protected.
    """

    mechanism: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    unit: str = "token"
    """What ``mu_token``, ``mu_effective``, ``max_epsilon`` and ``attack_bound`` refer to."""
    delta: float | None = None
    mu_token: float | None = None
    """GDP parameter of the paper's calibration."""
    paper_bound_vacuous: bool | None = None
    prior: float | None = None
    """Probability of an attacker's best guess of a unit without the release, which the attack bounds assume."""
    units: tuple[UnitGuarantee, ...] = ()
    """The guarantee for each unit, in the order of :data:`UNITS`; empty where there is none."""
    caveat: str = ""

    def __post_init__(self) -> None:
        covered = [guarantee.unit for guarantee in self.units]
        shown = self.mu_token is None or "sequence" in covered
        require(shown, "units", "a guarantee for the sequence wherever mu_token is given", covered)
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
        prior: float | None = PRIOR,
    ) -> Self:
        """The exact guarantee of a stochastic quantizer calibrated by the paper's formula.

        Args:
            dim: Code width d.
            bits: n in 1..8.
            mu: The paper's GDP parameter a token, > 0.
            sequence_tokens: Private tokens of a prompt, each released once.
            delta: In [0, 1).
            prior: As in :meth:`for_accountant`.

        Raises:
            ConfigError: An argument is out of range.
        """
        token = BinomialAccountant.from_mu(mu, dim, bits)
        found = cls.for_accountant(token, sequence_tokens=sequence_tokens, delta=delta, prior=prior)
        # What was asked for, not what comes back from c/A after rounding.
        return replace(found, mu_token=float(mu), parameters={**found.parameters, "mu": float(mu)})

    @classmethod
    def for_accountant(
        cls,
        token: BinomialAccountant,
        *,
        sequence_tokens: int,
        span_tokens: int | None = None,
        user_tokens: int | None = None,
        delta: float = 1e-5,
        prior: float | None = PRIOR,
    ) -> Self:
        """The exact guarantee of a quantizer given by its accountant, for instance that of the client's thresholds.

        Args:
            token: The accountant of one token's release.
            sequence_tokens: Private tokens of a prompt, each released once.
            span_tokens: Tokens of a phrase that is one secret; leaves the unit out if None.
            user_tokens: Tokens of all requests of one user together; leaves the unit out if None.
            delta: In [0, 1).
            prior: Probability of the attacker's best guess of a unit without the release, in (0, 1]; leaves attack
                bounds out if None.

        Raises:
            ConfigError: An argument is out of range.
        """
        units = _exact(token, _counts(sequence_tokens, span_tokens, user_tokens), delta, prior)
        return cls(
            mechanism=f"stochastic {token.bits}-bit quantizer",
            parameters={"mu": token.mu_token, "bits": float(token.bits), "dim": float(token.dim)},
            delta=delta,
            mu_token=token.mu_token,
            paper_bound_vacuous=token.paper_bound_vacuous,
            prior=prior,
            units=units,
            caveat=_weakness(units),
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
        prior: float | None = PRIOR,
    ) -> Self:
        """The exact guarantee of Gaussian noise that is mu-GDP a token; arguments as in :meth:`for_accountant`."""
        token = GaussianAccountant(mu)
        units = _exact(token, _counts(sequence_tokens, span_tokens, user_tokens), delta, prior)
        return cls(
            mechanism="Gaussian mechanism",
            parameters={"mu": float(mu)},
            delta=delta,
            mu_token=float(mu),
            prior=prior,
            units=units,
            caveat=_weakness(units),
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

        A sequence adds up to T epsilon (pure, worst case over all its tokens). Since the account holds with a caveat,
        no bound on attacks is derived from it.

        Args:
            mechanism: What is released.
            epsilon: Pure epsilon of one substituted token, at least 0.
            sequence_tokens: Private tokens of a prompt, each substituted once.
            caveat: Under what assumption the authors' epsilon holds, for instance within which set of tokens.
        """
        require(epsilon >= 0, "epsilon", "at least 0", epsilon)
        units = tuple(
            UnitGuarantee(
                unit=unit, tokens=tokens, epsilon=tokens * float(epsilon), max_epsilon=tokens * float(epsilon)
            )
            for unit, tokens in _counts(sequence_tokens).items()
        )
        return cls(mechanism=mechanism, parameters={"epsilon": float(epsilon)}, delta=0.0, units=units, caveat=caveat)

    @classmethod
    def none(cls, mechanism: str, caveat: str) -> Self:
        """A front-end without any guarantee, for instance clean text or a projection without noise."""
        return cls(mechanism=mechanism, caveat=caveat)

    @classmethod
    def length_only(cls, mechanism: str, *, sequence_tokens: int, delta: float) -> Self:
        """A front-end that sends nothing but the number of private tokens: epsilon 0 at every delta."""
        nothing = {"epsilon": 0.0, "max_epsilon": 0.0, "total_variation": 0.0, "mu_effective": 0.0}
        units = tuple(
            UnitGuarantee(unit=unit, tokens=tokens, attack_bound=PRIOR, **nothing)
            for unit, tokens in _counts(sequence_tokens).items()
        )
        caveat = "the number of private tokens is visible"
        return cls(mechanism=mechanism, delta=delta, mu_token=0.0, prior=PRIOR, units=units, caveat=caveat)

    @property
    def epsilon_token(self) -> float | None:
        """Epsilon of one token."""
        return self._figure("token", "epsilon")

    @property
    def epsilon_sequence(self) -> float | None:
        """Epsilon of a whole prompt."""
        return self._figure("sequence", "epsilon")

    @property
    def sequence_tokens(self) -> int | None:
        """Private tokens of a prompt."""
        return next((guarantee.tokens for guarantee in self.units if guarantee.unit == "sequence"), None)

    @property
    def mu_effective(self) -> float | None:
        """Smallest mu' for which the exact trade-off function of a token is mu'-GDP."""
        return self._figure("token", "mu_effective")

    @property
    def max_epsilon(self) -> float | None:
        """Pure epsilon (delta = 0) of a token."""
        return self._figure("token", "max_epsilon")

    @property
    def attack_bound(self) -> float | None:
        """No attacker recovers a token with a higher probability, given the prior."""
        return self._figure("token", "attack_bound")

    def _figure(self, unit: str, name: str) -> float | None:
        return next((getattr(guarantee, name) for guarantee in self.units if guarantee.unit == unit), None)

    def at(self, unit: str) -> UnitGuarantee:
        """The guarantee for one unit.

        Raises:
            ConfigError: The statement does not cover this unit.
        """
        covered = {guarantee.unit: guarantee for guarantee in self.units}
        require(unit in covered, "unit", "one of " + (", ".join(covered) or "none"), unit)
        return covered[unit]

    def summary(self) -> str:
        """One readable line; mu never appears without the epsilon of the sequence, and every figure is rounded up."""
        parts = [self._guarantee(), self._bounds()]
        if self.paper_bound_vacuous:
            parts.append("the bound of the paper's Theorem 4.2 is vacuous here")
        return f"{self.mechanism}: " + "; ".join(part for part in (*parts, self.caveat) if part)

    def plain(self) -> tuple[str, ...]:
        """The guarantee of every unit in plain words, a text each; every figure is rounded up."""
        return tuple(self._in_words(guarantee) for guarantee in self.units)

    def _in_words(self, guarantee: UnitGuarantee) -> str:
        name = guarantee.name.replace("a sequence of", "a whole prompt of").capitalize()
        pair = "two tokens" if guarantee.tokens == 1 else f"two texts of {guarantee.tokens} tokens"
        words = (
            f"{name}: whatever else somebody knows, seeing what was sent changes the odds between any {pair} by at "
            f"most a factor of exp({_up(guarantee.epsilon)}), apart from probability {self.delta:g}."
        )
        if guarantee.attack_bound is not None:
            words += (
                f" A guess that is right with probability {self.prior:g} beforehand is right with probability "
                f"{_up(guarantee.attack_bound)} at most afterwards."
            )
        if guarantee.total_variation is not None and guarantee.total_variation >= _TELLING:
            words += " In the worst case that excludes almost nothing: judge by the measured attacks."
        return words

    def _guarantee(self) -> str:
        if not self.units:
            return "no differential privacy guarantee"
        figures = ", ".join(f"{_up(guarantee.epsilon)} {guarantee.name}" for guarantee in self.units)
        line = f"{'exact ' if self.mu_token is not None else ''}epsilon {figures} (delta {self.delta:g})"
        if self.mu_token is not None and self.mu_effective is not None:
            line += f"; mu {_up(self.mu_token)} a token (exact: {_up(self.mu_effective)})"
        return line

    def _bounds(self) -> str:
        bounded = [(u.name, u.attack_bound) for u in self.units if u.attack_bound is not None]
        if not bounded:
            return ""
        shown = ", ".join(f"{_up(bound)} for {name}" for name, bound in bounded)
        return f"a best guess of probability {self.prior:g} rises to at most {shown}"

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
            statement=self.summary(),
        )


def _counts(sequence_tokens: int, span_tokens: int | None = None, user_tokens: int | None = None) -> dict[str, int]:
    """Tokens of each unit asked for, in the order of UNITS."""
    asked = {"token": 1, "span": span_tokens, "sequence": sequence_tokens, "user": user_tokens}
    counts = {unit: tokens for unit, tokens in asked.items() if tokens is not None}
    for unit, tokens in counts.items():
        require_count(f"{unit}_tokens", tokens)
    return counts


def _exact(
    token: Accountant, counts: Mapping[str, int], delta: float, prior: float | None
) -> tuple[UnitGuarantee, ...]:
    """The guarantee of each unit, worked out from that of one token."""
    accountants = {unit: token.compose(tokens) for unit, tokens in counts.items()}
    return tuple(
        UnitGuarantee(
            unit=unit,
            tokens=counts[unit],
            epsilon=accountant.epsilon(delta),
            max_epsilon=accountant.max_epsilon,
            total_variation=accountant.total_variation,
            mu_effective=_mu(accountant),
            attack_bound=None if prior is None else accountant.attack_bound(prior),
        )
        for unit, accountant in accountants.items()
    )


def _mu(accountant: Accountant) -> float | None:
    if isinstance(accountant, BinomialAccountant) and accountant.trials > _EXACT_MU_TRIALS:
        return None
    return accountant.effective_mu


def _weakness(units: Iterable[UnitGuarantee]) -> str:
    """Plain words on the smallest unit whose worst-case guarantee is too weak to matter; the larger ones' is too."""
    weak = [u for u in units if u.total_variation is not None and u.total_variation >= _TELLING]
    if not weak:
        return ""
    unit = min(weak, key=lambda u: u.tokens)
    return (
        f"the worst-case guarantee of {unit.name} says almost nothing: the best test tells the two worst ones apart "
        f"with advantage {unit.total_variation:.6g}; judge by the measured attacks"
    )


def _up(value: float) -> str:
    """Four digits, never less than the value."""
    return f"{float(Context(prec=4, rounding=ROUND_CEILING).create_decimal(repr(value))):g}"
