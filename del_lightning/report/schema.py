"""The typed record of every run: what ``result.json``, ``leaderboard.json`` and the report pages hold.

A number is never stored bare: :class:`Estimate` carries its sample size and, where one exists, its 95% interval.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class Record(BaseModel):
    """Base of all records: unknown fields are refused, infinities survive a round trip through JSON."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Estimate(Record):
    """A measured number, how many samples it rests on, and its 95% interval."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    interval: Literal["bootstrap", "clopper-pearson", "exact", "none"] = "none"


class Environment(Record):
    """Where a run took place."""

    revision: str | None
    """Git commit of the code, when it ran from a checkout."""
    dirty: bool | None
    python: str
    platform: str
    processor: str
    cores: int
    memory_gib: float
    accelerator: str | None
    packages: dict[str, str]


class StageResult(Record):
    """``result.json`` of one stage's folder."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    key: str
    """Hash of everything that determines the artefact."""
    determined_by: dict[str, Any]
    """What that hash was taken of."""
    config: dict[str, Any]
    environment: Environment
    started: str
    """UTC, ISO 8601."""
    wall_seconds: float
    metrics: dict[str, Estimate] = {}
    details: dict[str, Any] = {}
    """Stage-specific facts (calibration evidence, files, notes)."""
    history: list[dict[str, float]] = []
    """Training curve: one entry a logged step, always with the key ``step``."""


class PrivacyColumns(Record):
    """What a row guarantees; None where the method has no such guarantee."""

    mechanism: str
    parameters: dict[str, float]
    mu_token: float | None = None
    """GDP parameter of the paper's calibration, a token."""
    mu_effective: float | None = None
    """Smallest mu' for which the exact trade-off function is mu'-GDP, a token."""
    epsilon_token: float | None = None
    epsilon_sequence: float | None = None
    """At the mean prompt length ``sequence_tokens``."""
    delta: float | None = None
    sequence_tokens: int | None = None
    paper_bound_vacuous: bool | None = None
    """True when gamma of Theorem 4.2 makes the paper's lower bound trivial."""
    caveat: str = ""


class CommunicationColumns(Record):
    """What a row sends, nominal bits before any entropy coding."""

    bits_per_token: float
    ratio_fp32: float
    """Bits of an fp32 embedding over bits_per_token; infinity if nothing but the length is sent."""
    ratio_fp16: float


class LeaderboardRow(Record):
    """One method at one setting, with or without its own soft prompt."""

    method: str
    """clean, mean, projection or del."""
    label: str
    """What a table prints, for instance ``DEL, ASR 0.1``."""
    is_control: bool
    target: float | None = None
    """ASR to which the mechanism was calibrated."""
    soft_prompt: bool
    virtual_tokens: int | None = None
    prompt_steps: int | None = None
    perplexity: Estimate
    coherence: Estimate
    agreement: Estimate
    """Share of continuation positions at which the top-1 token equals the clean model's."""
    retained: Estimate | None = None
    """Information retained R; None where a control it needs was not run or the row has no soft prompt."""
    asr: dict[str, Estimate]
    """Attack name -> top-1 token recovery on the test prompts."""
    privacy: PrivacyColumns
    communication: CommunicationColumns
    clipped_share: float | None = None
    """Share of code coordinates that clipping changed."""


class Sample(Record):
    """One test prompt and what each row made of it (text: kept out of committed results)."""

    prompt: str
    reference: str
    continuations: dict[str, str]
    """Row name (label, plus ' + soft prompt') -> continuation."""


class TrainingCurve(Record):
    """History of one trained part."""

    name: str
    history: list[dict[str, float]]


class Calibration(Record):
    """Evidence of one calibration: what was searched and what came out."""

    target: float
    mu: float
    reached: bool
    """False when no mu in the range meets the target; the note then says what was returned instead."""
    note: str
    asr: Estimate
    evidence: list[dict[str, float]]
    """Every mu tried with its hits, n, low and high."""


class Leaderboard(Record):
    """``leaderboard.json``: everything the report pages show except the samples' text."""

    schema_version: int = SCHEMA_VERSION
    title: str
    schedule: str
    dataset: str
    model: str
    encoder: str
    """Sentence encoder of COH: part of the metric's name."""
    prompts: int
    private_tokens: int
    """Private tokens over all prompts, each counted once."""
    seeds: list[int]
    rows: list[LeaderboardRow]
    calibrations: list[Calibration]
    curves: list[TrainingCurve]
    notes: list[str]
    config: dict[str, Any]
    overrides: list[str] = []
    """What was typed behind ``python -m del_lightning``, with this machine's folders replaced."""
    environment: Environment
    wall_seconds: float
    """Sum over the artefacts behind the report."""
    generated: str
