"""The typed record of every run: what ``result.json``, ``leaderboard.json`` and the report pages hold.

A number is never stored bare: :class:`Estimate` carries its sample size and, where one exists, its 95% interval.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2


def _is_missing(found: Any) -> bool:
    """Whether a number that older boards lack stays out of the file."""
    return found is None


def _is_empty(found: list[Any]) -> bool:
    """Whether a field that older boards lack stays out of the file."""
    return not found


class Record(BaseModel):
    """Base of all records: unknown fields are refused, infinities survive a round trip through JSON."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Estimate(Record):
    """A measured number, how many samples it rests on, and its 95% interval."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    interval: Literal["bootstrap", "clopper-pearson", "exact", "t", "none"] = "none"


class Environment(Record):
    """Where a run took place."""

    revision: str | None
    """Git commit of the code, when it ran from a checkout."""
    dirty: bool | None
    python: str
    platform: str
    processor: str
    instructions: str | None = Field(default=None, exclude_if=_is_missing)
    """Widest vector instructions that torch uses of the processor, and whether it multiplies bfloat16; None in results
    from before this was recorded."""
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
    statement: str = ""
    """The whole guarantee in one line, caveat included, every figure rounded up."""


class CommunicationColumns(Record):
    """What a row sends, nominal bits before any entropy coding."""

    bits_per_token: float
    ratio_fp32: float
    """Bits of an fp32 embedding over bits_per_token; infinity if nothing but the length is sent."""
    ratio_fp16: float


class DeviceColumns(Record):
    """What a row asks of the user's device, besides a tokenizer."""

    parameters: int
    bytes: int
    milliseconds: Estimate | None = None
    """Time to privatise one prompt on the machine of the run; of the simulation, not of a client's secure sampler."""
    note: str = ""


class PairedDifference(Record):
    """This row minus DEL at the same target, matching and choice of soft prompt, paired over prompts."""

    nll: Estimate | None = None
    """Nats a token; positive: worse than DEL."""
    coherence: Estimate | None = None
    """Positive: better than DEL."""


Matching = Literal["nearest", "worst", "guarantee"]
"""What methods have in common in one part of a leaderboard: the nearest neighbour's ASR (the paper's), the worst
ASR of the attacks that calibration runs, or DEL's formal guarantee at its nearest-neighbour target."""


class LeaderboardRow(Record):
    """One method at one setting, with or without its own soft prompt."""

    method: str
    """Name in the configuration: clean, mean, del, gaussian-code ..."""
    label: str
    """What a table prints, for instance ``DEL, ASR 0.1``."""
    is_control: bool
    parameter: str | None = None
    """Name of the privacy parameter: mu, eta or epsilon."""
    value: float | None = None
    target: float | None = None
    """ASR to which the parameter was calibrated."""
    matching: Matching | None = None
    soft_prompt: bool
    virtual_tokens: int | None = None
    prompt_steps: int | None = None
    adapter_rank: int | None = None
    """Rank of the low-rank adapter that the server trained with the soft prompt; None without one."""
    perplexity: Estimate | None
    """None for a method whose server returns text only."""
    coherence: Estimate
    agreement: Estimate | None
    """Share of continuation positions at which the top-1 token equals the clean model's."""
    retained: Estimate | None = None
    """Information retained R; None where a control it needs was not run or the row has no soft prompt."""
    difference: PairedDifference | None = None
    asr: dict[str, Estimate]
    """Attack name -> top-1 token recovery on the test prompts."""
    recovery: dict[str, dict[str, Estimate]] = {}
    """Attack name -> further measures: top-5, top-10, content tokens, whole sequences, ROUGE-L."""
    certified: float | None = None
    """No attacker that knows only the prior names a token with a higher probability; None without a guarantee."""
    privacy: PrivacyColumns
    communication: CommunicationColumns
    device: DeviceColumns | None = None
    clipped_share: float | None = None
    """Share of code coordinates that clipping changed."""
    nll_by_prompt: list[float] = Field(default=[], exclude_if=_is_empty)
    """Mean NLL of each prompt's continuation (nats a token, over seeds), which pairs rows of different boards; empty
    where the server returns text only, and in boards from before it was kept."""


class Sample(Record):
    """One test prompt and what each row made of it (text: kept out of committed results)."""

    prompt: str
    reference: str
    continuations: dict[str, str]
    """Row name (label, plus ' + soft prompt') -> continuation."""


class Reading(Record):
    """What one attack made of one private prompt."""

    attack: str
    tokens: list[str]
    """Text of its first guess for every private token."""
    hits: list[bool]


class GalleryLevel(Record):
    """One setting's release of a prompt, read by several attacks."""

    label: str
    privacy: PrivacyColumns
    readings: list[Reading]


class GalleryPrompt(Record):
    """A private prompt and what the attacks read of it at several settings (text: kept out of committed results)."""

    tokens: list[str]
    levels: list[GalleryLevel]


class Texts(Record):
    """``texts.json``: the data-set text of one report, apart from its numbers (never committed)."""

    title: str
    """Of the leaderboard that it belongs to, as is ``generated``."""
    generated: str
    samples: list[Sample]
    gallery: list[GalleryPrompt]


class TrainingCurve(Record):
    """History of one trained part."""

    name: str
    history: list[dict[str, float]]


class CurvePoint(Record):
    """Attack success at one value of a privacy parameter."""

    value: float
    asr: dict[str, Estimate]
    """Attack name -> top-1 token recovery."""


class Calibration(Record):
    """One calibration: the value that came out and what was measured at it."""

    target: float
    attacks: list[str]
    """Attacks that had to comply."""
    value: float
    reached: bool
    """False when success does not cross the target within the range; the note then says which end was returned."""
    note: str
    asr: Estimate
    """The highest success among these attacks."""


class MethodCalibration(Record):
    """Everything that calibration measured of one method: the evidence behind all its targets."""

    method: str
    label: str
    parameter: str
    found: dict[str, list[Calibration]]
    """Matching (nearest or worst) -> one calibration a target."""
    outline: list[CurvePoint]
    """The whole curve, over a share of the tokens."""
    points: list[CurvePoint]
    """What decided, over all tokens."""


class NluCost(Record):
    """What a way to classify asks of both sides, for one text."""

    server_parameters: int
    """Numbers trained for this task and held by the server, besides the frozen model."""
    user_parameters: int
    """Numbers on the user's device: tables of the front-end, denoiser, head."""
    user_bytes: int
    bits_per_token: float
    """Payload of one private token; 0 where nothing or only the length is sent."""
    bits_per_text: float
    """Payload of all private tokens of a text of mean length."""
    bits_back: float
    """What the server answers: a class, or its pooled output as 32-bit floats."""


class NluValidation(Record):
    """What one training reached on held-out examples: cross-entropy in nats, or a denoiser's mean squared error."""

    start: float | None
    """Before the first step; None where that could not be kept."""
    best: float
    """Of the weights that were kept."""


class NluRow(Record):
    """One way to classify behind one front-end at one privacy level, over all seeds."""

    variant: str
    """linear, prompt, lora, snd, snd-prompt, snd-user, local, or majority."""
    method: str
    label: str
    """The front-end, for instance ``DEL, 2 bits, ASR 0.1``."""
    is_control: bool
    bits: int | None = None
    parameter: str | None = None
    value: float | None = None
    target: float | None = None
    matching: Matching | None = None
    seeds: int
    steps: int | None = None
    """Training steps through the language model; None where only a head was trained on cached states."""
    over_seeds: dict[str, Estimate]
    """Figure (accuracy, f1, matthews, auc) -> mean over seeds, with Student's interval over seeds."""
    over_examples: dict[str, Estimate]
    """The same means with bootstrap intervals over the reported examples, for these very seeds."""
    asr: dict[str, Estimate] = {}
    """Attack -> top-1 token recovery from what was sent; empty where nothing is sent."""
    privacy: PrivacyColumns | None = None
    """For one token, and for a text: both sentences together. None where nothing is sent."""
    cost: NluCost
    validation: list[NluValidation] = Field(default=[], exclude_if=_is_empty)
    """One a seed; empty where a head alone was trained, and in boards from before it was recorded."""
    scores: list[list[float]] = Field(default=[], exclude_if=_is_empty)
    """Probability of class 1 of every reported example under each seed: the figures are those of these numbers."""


class NluAttribute(Record):
    """What an attacker infers of whole texts from one front-end's releases."""

    label: str
    """The front-end."""
    attribute: str
    majority: float
    """Accuracy of always answering the commoner value."""
    accuracy: Estimate
    auc: Estimate


class NluLeaderboard(Record):
    """``leaderboard.json`` of stage ``nlu``: one task, every way to classify behind every front-end."""

    schema_version: int = SCHEMA_VERSION
    title: str
    schedule: str
    task: str
    metric: str
    """GLUE's own figure of the task."""
    model: str
    head: str
    train_examples: int
    selection_examples: int
    eval_examples: int
    private_tokens: int
    """Private tokens over all reported examples."""
    seeds: list[int]
    denoised_prompt_rate: float | None = Field(default=None, exclude_if=_is_missing)
    """Learning rate of the soft prompt that a denoiser's loss trains; None in boards from before it had its own, whose
    soft prompts learned at the denoiser's rate and hardly moved."""
    tuned_start_counts: bool | None = Field(default=None, exclude_if=_is_missing)
    """Whether a soft prompt or adapter whose training only lost is left as it started; None in boards from before."""
    best_constant: float | None = Field(default=None, exclude_if=_is_missing)
    """Mean squared error, on held-out examples, of the best constant in a denoiser's place."""
    labels: list[int] = Field(default=[], exclude_if=_is_empty)
    """True class of every reported example."""
    rows: list[NluRow]
    attributes: list[NluAttribute]
    calibrations: list[MethodCalibration]
    notes: list[str]
    config: dict[str, Any]
    overrides: list[str] = []
    environment: Environment
    wall_seconds: float
    """Sum over the artefacts behind the report."""
    generated: str


class TransferCell(Record):
    """DEL at one setting, behind a soft prompt that was trained there, elsewhere, or not at all."""

    trained_on: str | None
    """Data set; None without a soft prompt."""
    trained_at: float | None
    """mu; None without a soft prompt."""
    used_at: float
    """mu of the mechanism in use."""
    perplexity: Estimate
    coherence: Estimate
    agreement: Estimate
    over_matched: PairedDifference | None
    """This cell minus the one whose soft prompt was trained on this data at this mu; None for that one itself."""
    over_none: PairedDifference | None
    """This cell minus the one without a soft prompt; None for that one itself."""


class TransferBoard(Record):
    """``transfer.json``: soft prompts of DEL, used on one data set."""

    schema_version: int = SCHEMA_VERSION
    title: str
    schedule: str
    dataset: str
    model: str
    encoder: str
    bits: int
    dim: int
    prompts: int
    private_tokens: int
    virtual_tokens: int
    seeds: list[int]
    """Of noise and sampling."""
    seed: int
    """Of everything that was trained."""
    privacy: dict[str, PrivacyColumns]
    """mu -> what it guarantees."""
    cells: list[TransferCell]
    config: dict[str, Any]
    overrides: list[str] = []
    environment: Environment
    wall_seconds: float
    """Sum over the artefacts behind the table."""
    generated: str


class AttackCurve(Record):
    """Success of every attack on one method over the values of its parameter, on the test prompts."""

    method: str
    label: str
    parameter: str
    points: list[CurvePoint]
    certified: list[float | None]
    """For each point the bound on any attacker that knows only the prior; None without a guarantee."""


class AttackDifference(Record):
    """By how much more one attack reads than another of the same release of the same prompts."""

    stronger: str
    weaker: str
    difference: Estimate
    """Share of the private tokens; the interval resamples prompts. Positive: the order is as named."""


class AttackedSetting(Record):
    """One method at one setting under every attack, and the attacks against each other."""

    method: str
    label: str
    value: float | None
    privacy: PrivacyColumns
    certified: float | None
    """Bound on attacks that look at one token's release; None without a guarantee."""
    asr: dict[str, Estimate]
    differences: list[AttackDifference]


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
    reference_tokens: list[int] = Field(default=[], exclude_if=_is_empty)
    """Tokens of each prompt's continuation that perplexity is measured on; empty in older boards."""
    seeds: list[int]
    rows: list[LeaderboardRow]
    calibrations: list[MethodCalibration]
    curves: list[TrainingCurve]
    attack_curves: list[AttackCurve] = []
    attacked: list[AttackedSetting] = []
    """Every setting and level, when the suite holds more than one attack."""
    notes: list[str]
    config: dict[str, Any]
    overrides: list[str] = []
    """What was typed behind ``python -m del_lightning``, with this machine's folders replaced."""
    environment: Environment
    wall_seconds: float
    """Sum over the artefacts behind the report."""
    generated: str
