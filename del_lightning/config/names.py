"""The names that settings may hold."""

CORPORA = ("lee", "ptb", "wikitext2", "cnn_dailymail", "c4")
"""Corpora that :func:`del_lightning.data.load_corpus` knows."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that other machines cannot reach."""

METHODS = (
    "clean",
    "mean",
    "random",
    "projection",
    "del",
    "del-posterior",
    "del-plus",
    "gaussian-code",
    "gaussian-code-nbit",
    "gaussian-embedding",
    "gaussian-embedding-nbit",
    "metric-dp",
    "metric-dp-snd",
    "santext",
    "santext-plus",
    "custext",
    "custext-plus",
    "rantext",
    "inferdpt",
    "local-only",
    "dp-forward",
    "dp-forward-released",
)
"""Front-ends that a leaderboard can hold; :func:`del_lightning.methods.build` makes each."""

DEFAULT_METHODS = ("clean", "mean", "projection", "del")
"""Three controls and DEL itself."""

ATTACKS = (
    "nearest",
    "nearest-l2",
    "nearest-code",
    "bayes",
    "bigrams",
    "language-model",
    "server-model",
    "input-inference",
    "inverter",
)
"""Attackers that stage ``attack`` knows."""

CALIBRATING = ("nearest", "nearest-l2", "bayes", "bigrams")
"""Those that stage ``calibrate`` can hold to a target: cheap, and able to read every method."""

MATCHINGS = ("nearest", "worst", "guarantee")
"""What rows of a leaderboard can have in common, see :data:`del_lightning.report.schema.Matching`."""

GLUE_TASKS = ("sst2", "cola", "mrpc", "qqp", "rte", "qnli")
"""Binary tasks of GLUE."""

END_TO_END = ("linear", "prompt", "lora")
"""Ways to classify without a denoiser: a head alone, a soft prompt, a low-rank adapter at the server."""

SND = ("snd", "snd-prompt", "snd-user", "local")
"""Ways to classify in the SnD framework: denoiser at the server without and with a soft prompt, denoiser at the user,
and the user's denoiser without any server."""

NLU_VARIANTS = (*END_TO_END, *SND)
"""Ways to classify that stage ``nlu`` knows."""

STRATEGIES = ("ddp", "fsdp")

PRECISIONS = ("32-true", "bf16-mixed")
"""Lightning's names of the precisions that training knows."""
