"""What is trained behind the release, on which schedule, and by which trainer."""

from dataclasses import dataclass

from del_lightning.config.checks import at_least, low_rank, one_of, positive, require
from del_lightning.config.names import PRECISIONS, STRATEGIES


@dataclass
class PromptConfig:
    """The soft prompt, trained on the server only."""

    virtual_tokens: int = 100
    init_text: str = (
        "The inputs are abrupted by the noise and you should try to recover them and generate the next token."
    )
    """Text whose embeddings start the prompt (the paper's wording)."""
    steps: int = 4000
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 0
    gradient_clip: float = 1.0
    validate_every: int = 200
    """Steps between two validations; the prompt of the best one is kept."""
    patience: int | None = None
    """Stop after this many validations without an improvement; null runs all steps."""

    def __post_init__(self) -> None:
        for key in ("virtual_tokens", "steps", "batch_size", "validate_every", "patience"):
            at_least(f"prompt.{key}", getattr(self, key), 1)
        at_least("prompt.warmup_steps", self.warmup_steps, 0)
        positive("prompt.learning_rate", self.learning_rate)
        require(self.weight_decay >= 0, "prompt.weight_decay", "at least 0", self.weight_decay)
        positive("prompt.gradient_clip", self.gradient_clip)
        require(bool(self.init_text.strip()), "prompt.init_text", "a non-empty text", self.init_text)


@dataclass
class AdapterConfig:
    """Low-rank adapter (LoRA) of the server's model, trained with every soft prompt, on the schedule of `prompt`."""

    rank: int = 0
    """0 trains the soft prompt alone, as the paper does."""
    alpha: int = 32
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        low_rank("adapter", self.rank, self.alpha, self.learning_rate, least=0)


@dataclass
class InverterConfig:
    """The trained inverter: an attacker that learns through the mechanism what context adds to a release."""

    width: int = 128
    """Width of the encoder, and the most dimensions of what it adds to the posterior."""
    layers: int = 2
    heads: int = 4
    """Attention heads of a layer, an even number: half of them look back, half ahead."""
    steps: int = 300
    batch_size: int = 8
    sequence_tokens: int = 64
    """Length of a training sequence in tokens."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    gradient_clip: float = 1.0
    validate_every: int = 50
    """Steps between two validations; the weights of the best one are kept."""
    patience: int | None = None
    """Stop after this many validations without an improvement; null runs all steps."""
    neighbours: bool = True
    """Whether training starts at the exact posterior under bigrams; False starts at one token's: faster and weaker."""

    def __post_init__(self) -> None:
        for key in ("width", "layers", "heads", "steps", "batch_size", "validate_every", "patience"):
            at_least(f"inverter.{key}", getattr(self, key), 1)
        require(self.heads % 2 == 0, "inverter.heads", "even", self.heads)
        require(self.width % self.heads == 0, "inverter.width", "a multiple of inverter.heads", self.width)
        at_least("inverter.warmup_steps", self.warmup_steps, 0)
        at_least("inverter.sequence_tokens", self.sequence_tokens, 4)
        positive("inverter.learning_rate", self.learning_rate)
        require(self.weight_decay >= 0, "inverter.weight_decay", "at least 0", self.weight_decay)
        positive("inverter.gradient_clip", self.gradient_clip)


@dataclass
class TrainerConfig:
    """How lightning's Trainer runs: devices, precision, checkpoints."""

    accelerator: str = "auto"
    """auto (CUDA where there is one), cuda (or Lightning's other name for it, gpu) or cpu."""
    devices: int = 1
    """Processes of one machine that train together, one a device (on a CPU, its cores shared between them). Batch
    sizes are those of one process. Calibration, attacks and evaluation run on the first device alone."""
    num_nodes: int = 1
    """Machines; each starts its processes by torchrun or SLURM."""
    strategy: str = "ddp"
    """Of several devices. ddp: each holds the whole frozen LLM; fsdp: its layers are spread over all of them, gathered
    one at a time. What trains is small and lies on every device either way."""
    activation_checkpointing: bool = False
    """Compute what is inside the LLM's layers again in the backward pass instead of keeping it: less memory, about a
    third more time, the same numbers."""
    compile: bool = False
    """Compile the LLM's norms and feed-forward parts (torch.compile), after a minute for the compiler; the same numbers
    up to rounding. `benchmarks/scaling.py` measures what it gains: nothing to speak of in float32 on two cores."""
    accumulate_grad_batches: int = 1
    precision: str = "32-true"
    """32-true (32), or bf16-mixed (bf16): the frozen LLM computes in bfloat16 while prompts, adapters and denoisers
    train; what is trained, the front-end, the codec, attacks and evaluation stay in float32 (or `model.dtype`)."""
    progress_bar: bool = True
    checkpoint_every: int = 25
    """Training steps between two resumable checkpoints."""
    log_every: int = 5
    attack_every: int = 50
    """Training steps between two measurements of the attack success rate; 0 turns them off."""

    def __post_init__(self) -> None:
        self.precision = {"32": "32-true", "bf16": "bf16-mixed"}.get(self.precision, self.precision)
        one_of("trainer.accelerator", self.accelerator, ("auto", "cuda", "gpu", "cpu"))
        one_of("trainer.precision", self.precision, PRECISIONS)
        one_of("trainer.strategy", self.strategy, STRATEGIES)
        for key in ("devices", "num_nodes", "accumulate_grad_batches", "checkpoint_every", "log_every"):
            at_least(f"trainer.{key}", getattr(self, key), 1)
        at_least("trainer.attack_every", self.attack_every, 0)


@dataclass
class LoggerConfig:
    """Where training curves go besides the stage's own record: csv, wandb or none."""

    kind: str = "csv"
    project: str = "del-lightning"
    """W&B project."""
    mode: str = "offline"
    """W&B mode: online, offline or disabled."""

    def __post_init__(self) -> None:
        one_of("logger.kind", self.kind, ("none", "csv", "wandb"))
        one_of("logger.mode", self.mode, ("online", "offline", "disabled"))
