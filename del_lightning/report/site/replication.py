"""Every table and figure of the paper as far as known: its claim in our words, and the rule that our runs are held to.

Nothing here is a result of ours: those are computed by :mod:`del_lightning.report.site.rules` from the loaded runs.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from del_lightning.report import words
from del_lightning.report.schema import NluLeaderboard
from del_lightning.report.site import away, own_settings, rules
from del_lightning.report.site.claims import Finding, listed
from del_lightning.report.site.coverage import Part, Scope
from del_lightning.report.site.runs import Board, Run

PAPER_GENERATION = (
    "LLMs of 7B to 72B and a 16B mixture of experts; WikiText-2, PTB and CNN/DailyMail; 20,000 codec and 4,000 "
    "soft-prompt steps; COH by a SimCSE encoder."
)

_LLMS = (
    Part("LLMs of 7B to 72B", r"(?<![\d.])([7-9]|[1-6]\d|7[0-2])b\b"),
    Part("a 16B mixture of experts", r"\b16b\b|moe"),
)
_CORPORA = ("WikiText-2", "PTB", "CNN/DailyMail")
_BITS = tuple(Part(f"n = {bits}", rf"\bn = {bits}\b") for bits in (1, 2, 4, 8))
_TARGETS = tuple(Part(f"ASR {target}", rf"ASR {target}(?!\d)") for target in ("0.02", "0.1", "0.15"))


@dataclass(frozen=True)
class Item:
    """One table or figure of the paper, or several that make the same claim.

    Attributes:
        anchor: Its place on the page.
        name: The paper's name of it.
        title: What it is about.
        claim: What the paper says, in our words, with its numbers as far as known.
        setting: Where the paper measured it.
        criterion: The rule in words: what is compared, and what counts as agreement.
        scope: What it covers, as far as known.
        rule: From the loaded runs to a verdict.
    """

    anchor: str
    name: str
    title: str
    claim: str
    setting: str
    criterion: str
    scope: Scope
    rule: Callable[[Sequence[Run]], Finding]


ITEMS = (
    Item(
        "generation",
        "Tables 1, 2 and 9",
        "Text generation against RANTEXT and InferDPT",
        "At equal attack success DEL's continuations are more coherent than those of RANTEXT and InferDPT. Its own "
        "tables hold exceptions at ASR .02: on WikiText-2 InferDPT with a local Llama reaches COH .742 against .562, "
        "and InferDPT is ahead .664 to .586 on a 16B mixture of experts and .648 to .606 on a 72B model.",
        PAPER_GENERATION,
        "COH of DEL with its soft prompt minus COH of each method, at every nearest-neighbour target that both were "
        "calibrated to, averaged over trainings where there are several. Agrees where the interval lies above 0 and "
        "the mean embedding with a soft prompt, which sends the length alone, is shown to lie below 0.",
        Scope(_CORPORA, _LLMS, (Part("RANTEXT", "RANTEXT,"), Part("InferDPT", "InferDPT,")), _TARGETS),
        rules.coherence(("rantext", "inferdpt"), "RANTEXT or InferDPT"),
    ),
    Item(
        "baselines",
        "Table 5",
        "Text generation against further baselines",
        "Sets further methods that privatise text or embeddings beside DEL. Read as: DEL is ahead of them too.",
        PAPER_GENERATION,
        "As above, for SANTEXT, CUSTEXT, metric DP and DP-Forward with their variants.",
        Scope(
            _CORPORA,
            _LLMS,
            tuple(Part(name, f"{re.escape(name)},") for name in ("SANTEXT", "CUSTEXT", "Metric DP", "DP-Forward")),
            _TARGETS,
        ),
        rules.coherence(rules.FURTHER, "SANTEXT, CUSTEXT, metric DP or DP-Forward"),
    ),
    Item(
        "gaussian",
        "Fig. 3, Remark 4.3",
        "The quantizer against Gaussian noise",
        "At equal privacy the n-bit quantizer is nearly as good as Gaussian noise on the same vector, which takes 32 "
        "bits a coordinate.",
        "Qwen2.5-7B on PTB.",
        "Paired difference in nats a token, Gaussian minus DEL, at equal nearest-neighbour ASR and at equal "
        "guarantee, with a soft prompt where both have one. Agrees where the interval lies above −ln 1.1 (DEL's "
        "perplexity is less than 10% higher) and the mean embedding, which sends nothing, is shown to lie below it.",
        Scope(("PTB",), (Part("Qwen2.5-7B", r"qwen2\.5-7b"),)),
        rules.gaussian,
    ),
    Item(
        "attacks",
        "Fig. 4",
        "Success of inversion and of input inference",
        "Shows how much nearest-neighbour inversion and input inference read over models, data sets and mechanisms; "
        "the former's success is what all methods are compared at. Read as: both read less the stricter the mechanism "
        "is, and the former stands for what an attacker can do.",
        "Several LLMs, data sets and mechanisms.",
        "For each curve: success of either attack at the loosest setting minus that at the strictest; agrees above 0. "
        "For DEL at each calibrated setting: the nearest neighbour's success minus the strongest other attack's; "
        "agrees where the interval lies above −2 points, because only then one stands for the other.",
        Scope(
            settings=(
                Part("inversion by the nearest neighbour", "nearest neighbour"),
                Part("input inference", rules.INPUT_INFERENCE),
            ),
        ),
        rules.attacks,
    ),
    Item(
        "understanding",
        "Tables 3 and 4, Fig. 5",
        "Classification of MRPC and QQP in the SnD framework",
        "Sets stochastic n-bit quantization beside metric DP behind a denoiser at the server, with and without a soft "
        "prompt of 20 tokens. Read as: the quantizer classifies better, and a soft prompt helps. Not everywhere: on "
        "MRPC at 4 bits AUC is .590 against .598 for metric DP.",
        "Six-layer denoiser at the server, accuracy and AUC.",
        "AUC at equal nearest-neighbour ASR: DEL minus metric DP, and DEL with minus without soft prompt. Agrees "
        "where both intervals, over seeds and over examples, lie above 0.",
        Scope(
            tuple(f"GLUE {task.upper()}" for task in rules.PAPER_TASKS),
            methods=(Part("metric DP", "Metric DP,"),),
            settings=(
                Part("a denoiser at the server", r"denoiser at the server(?! \+)"),
                Part("the same with a soft prompt", r"denoiser at the server \+ soft prompt"),
            ),
        ),
        rules.understanding,
    ),
    Item(
        "data-transfer",
        "Table 6",
        "A soft prompt trained on C4, used on other data",
        "Takes a soft prompt that was trained on public text to other data. Read as: it still helps there.",
        PAPER_GENERATION,
        "Nats a token behind no soft prompt minus those behind the transferred one, at the same mu. Agrees where the "
        "interval lies above 0.",
        Scope(models=_LLMS, settings=(Part("trained on C4", "trained on c4 "),)),
        away.data_transfer,
    ),
    Item(
        "mu-transfer",
        "Table 7",
        "A soft prompt trained at one mu, used at another",
        "Takes a soft prompt to a setting that it was not trained at: trained at mu 52 and used at 40 it reaches PPL "
        "35.91, against 32.09 for the matched one. Read as: it still helps, and less than the matched one.",
        PAPER_GENERATION,
        "Nats a token behind no soft prompt minus those behind the transferred one, and behind the transferred one "
        "minus those behind the matched one. Agrees where both intervals lie above 0.",
        Scope(models=_LLMS, settings=(Part("trained at mu 52, used at 40", r"at mu 40\D.*trained on \w+ at mu 52"),)),
        away.mu_transfer,
    ),
    Item(
        "width",
        "Table 8",
        "Width of the code",
        "A code of d = b / 32 numbers is better at the strict mu 20, a wider one of d = 128 at the loose mu 60. (There "
        "mu names a setting; it is no guarantee.)",
        PAPER_GENERATION,
        "Two runs that differ in the width alone, at the same mu: difference in nats a token. Agrees where the "
        "interval lies on the narrow code's side below mu 34.6, the geometric mean of 20 and 60, and on the "
        "wide code's above it.",
        Scope(
            models=_LLMS,
            settings=(
                Part("mu 20", r"μ\s=\s20\D"),
                Part("mu 60", r"μ\s=\s60\D"),
                Part("d = 128", r"\bd = 128\b"),
            ),
        ),
        own_settings.width,
    ),
    Item(
        "bits",
        "Bits n",
        "One, two, four or eight bits a coordinate",
        "A few bits a coordinate are enough: the quantizer's error exceeds the Gaussian's by a term that shrinks with "
        "2ⁿ − 1 and does not depend on mu (Remark 4.3).",
        PAPER_GENERATION,
        "Runs that differ in the bits alone, at the same target or mu: nats a token at the most bits minus those at "
        "fewer. Agrees where the interval lies above −ln 1.1 (fewer bits cost less than 10% of perplexity) and no bits "
        "at all, the mean embedding, are shown to lie below it.",
        Scope(models=_LLMS, settings=_BITS),
        own_settings.bits,
    ),
    Item(
        "payload",
        "Headline",
        "What is sent",
        "The payload falls by up to 32 times from n = 1 alone, and another 32 times from d = b / 32.",
        "Bits a token against an embedding of 32-bit floats.",
        "Nominal bits a token of DEL at d = b / 32. Agrees if the saving is 32 × 32 / n within 1%, n = 1 among the "
        "runs.",
        Scope(settings=_BITS[:1]),
        own_settings.payload,
    ),
)
"""In the order of the page."""


def circumstances(finding: Finding) -> str:
    """How our side was trained and measured; empty without a run."""
    runs = finding.runs
    if not runs:
        return ""
    parts = [listed([words.schedule(run.board) for run in runs if run.board.schedule]), _sizes(runs)]
    encoders = listed([run.board.encoder for run in runs if not isinstance(run.board, NluLeaderboard)])
    if encoders:
        parts.append(f"COH by {encoders}")
    return "; ".join(filter(None, parts)) + "."


def _sizes(runs: Sequence[Run]) -> str:
    return listed([_size(run.board) for run in runs])


def _size(board: Board) -> str:
    if isinstance(board, NluLeaderboard):
        return f"{words.count(board.eval_examples)} examples, {words.repeats(board)}"
    return f"{words.count(board.prompts)} prompts, {words.draws(len(board.seeds))}"
