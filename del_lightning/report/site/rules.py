"""The rules behind the replication page: pure functions from the loaded runs to a verdict.

The paper's numbers and ours are of different models, schedules and sentence encoders, so a rule never compares a
value of theirs with one of ours. It asks whether the direction that the paper reports is there in our rows, beyond
the noise. Methods are compared where the paper compares them: at equal success of the nearest neighbour.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from del_lightning.metrics.intervals import bootstrap_ratio
from del_lightning.report import arrange, nlu, paired, words
from del_lightning.report.arrange import Entry
from del_lightning.report.schema import (
    AttackCurve,
    Estimate,
    Leaderboard,
    LeaderboardRow,
    Matching,
    NluLeaderboard,
    NluRow,
    TransferBoard,
    TransferCell,
)
from del_lightning.report.site.claims import (
    Comparison,
    Finding,
    both,
    exact,
    listed,
    logarithm,
    minus,
    negative,
    tally,
    weigh,
)
from del_lightning.report.site.runs import Run

TEN_PERCENT = math.log(1.1)
"""Nats a token by which a perplexity 10% higher is worse: what "nearly as good" may cost."""
POINTS = 0.02
"""Success by which one attack may stay behind the strongest and still stand for it."""
BETWEEN_MU = math.sqrt(20 * 60)
"""Below it a mu counts as strict, above it as loose: halfway between the two of the paper's Table 8."""
SAVING = 32
"""Factor that one bit a coordinate saves, and again b / d of the paper's code width."""

PAPER_TASKS = ("mrpc", "qqp")
METRIC = ("metric-dp", "metric-dp-snd")
FURTHER = (
    *("santext", "santext-plus", "custext", "custext-plus"),
    *METRIC,
    *("dp-forward", "dp-forward-released"),
)
"""Baselines besides RANTEXT and InferDPT."""
INPUT_INFERENCE = "input inference"
DETERMINING = ("model", "data", "codec", "mechanism", "prompt", "evaluate", "seed")
"""Parts of the configuration that utility depends on."""


def generation(runs: Iterable[Run]) -> Iterator[tuple[Run, Leaderboard]]:
    """The runs that continue text."""
    return ((run, run.board) for run in runs if isinstance(run.board, Leaderboard))


def classification(runs: Iterable[Run]) -> Iterator[tuple[Run, NluLeaderboard]]:
    """The runs that classify."""
    return ((run, run.board) for run in runs if isinstance(run.board, NluLeaderboard))


def loaded(runs: Sequence[Run]) -> str:
    """What there is to compare, for a verdict that finds nothing."""
    boards = [board for _, board in generation(runs)]
    methods = listed([name for board in boards for name in arrange.method_names(board).values()])
    return f"Methods loaded: {methods or 'none'}."


# --- generation against other methods ---------------------------------------------------------------------------------


def coherence(methods: Sequence[str], names: str) -> Callable[[Sequence[Run]], Finding]:
    """Rule: DEL with its soft prompt writes more coherent text than these methods at equal nearest-neighbour ASR."""

    def rule(runs: Sequence[Run]) -> Finding:
        missing = (
            f"No loaded run holds {names} calibrated to a nearest-neighbour target beside DEL with its soft prompt. "
            f"{loaded(runs)}"
        )
        worst = list(_coherences(runs, methods, "worst"))
        remark = f"Matched by the strongest attack instead: {tally(worst)}" if worst else ""
        return weigh(list(_coherences(runs, methods, "nearest")), missing, remark, _local_alone(runs, methods))

    return rule


def _coherences(runs: Sequence[Run], methods: Sequence[str], matching: Matching) -> Iterator[Comparison]:
    for run, board in generation(runs):
        for ours, theirs in _beside(board, matching):
            if theirs.row.method not in methods or ours.prompted is None:
                continue
            yield Comparison(
                (run,),
                f"COH at {words.MATCHED[matching]} {theirs.row.target:g}",
                (words.row_name(ours.best), ours.best.coherence),
                (words.row_name(theirs.best), theirs.best.coherence),
                _coherence_gain(ours.best, theirs.best),
            )


def _beside(board: Leaderboard, matching: Matching) -> Iterator[tuple[Entry, Entry]]:
    """(DEL, another method) at every target that both stand at."""
    targets = dict.fromkeys(e.row.target for e in arrange.tested(board) if e.row.matching == matching)
    for target in targets:
        entries = arrange.matched(board, matching, target)
        ours = next((entry for entry in entries if entry.is_reference), None)
        if ours is not None:
            yield from ((ours, theirs) for theirs in entries if not theirs.is_reference)


def _coherence_gain(ours: LeaderboardRow, theirs: LeaderboardRow) -> Estimate:
    """DEL minus the other: paired over prompts where the result was, which takes equal choices of a soft prompt."""
    paired = theirs.difference.coherence if theirs.difference else None
    if paired is not None and theirs.soft_prompt == ours.soft_prompt:
        return negative(paired)
    return minus(ours.coherence, theirs.coherence)


def _local_alone(runs: Sequence[Run], methods: Sequence[str]) -> str:
    """InferDPT's own control: what its local model writes without the server."""
    if "inferdpt" not in methods:
        return ""
    found = [
        f"{words.with_interval(entry.row.coherence)} ({run.data})"
        for run, board in generation(runs)
        for entry in arrange.controls(board)
        if entry.row.method == "local-only"
    ]
    return f"InferDPT's local model alone reaches COH {listed(found)}." if found else ""


def gaussian(runs: Sequence[Run]) -> Finding:
    """Rule: the quantizer is at most a tenth of perplexity worse than Gaussian noise on the same code."""
    found, saved = [], []
    for run, board in generation(runs):
        for matching in ("nearest", "guarantee"):
            for ours, theirs in _beside(board, matching):
                difference = theirs.best.difference
                row = ours.prompted if theirs.best.soft_prompt else ours.plain
                if theirs.row.method != "gaussian-code" or difference is None or difference.nll is None:
                    continue
                if row is None or row.perplexity is None or theirs.best.perplexity is None:
                    continue
                what = f"PPL at {words.MATCHED[matching]} {theirs.row.target:g}; difference in nats a token, paired"
                first = words.row_name(row), row.perplexity
                second = words.row_name(theirs.best), theirs.best.perplexity
                found.append(Comparison((run,), what, first, second, difference.nll, TEN_PERCENT))
                saved.append(_payloads(row, theirs.row))
    missing = f"No loaded run holds Gaussian noise on the code matched to DEL. {loaded(runs)}"
    return weigh(found, missing, f"DEL sends {listed(saved)}.")


def _payloads(ours: LeaderboardRow, theirs: LeaderboardRow) -> str:
    sent = (words.count(row.communication.bits_per_token) for row in (ours, theirs))
    return "{} bits a token against {}".format(*sent)


# --- attacks ----------------------------------------------------------------------------------------------------------


def attacks(runs: Sequence[Run]) -> Finding:
    """Rule: the paper's two attacks read less where privacy is stricter, and the nearest neighbour stands for all."""
    falling = [
        one
        for run, board in generation(runs)
        for curve in board.attack_curves
        for matches in (words.is_nearest, lambda name: name == INPUT_INFERENCE)
        for one in _falling(run, curve, matches)
    ]
    standing = [one for run, board in generation(runs) for one in _standing(run, board)]
    missing = f"No loaded run holds attack curves, or DEL under more than one attack. {loaded(runs)}"
    parts = (
        f"Success falls with mu: {tally(falling)}" if falling else "",
        f"The nearest neighbour stands for the strongest attack: {tally(standing)}" if standing else "",
    )
    return weigh([*falling, *standing], missing, *parts)


def _falling(run: Run, curve: AttackCurve, matches: Callable[[str], bool]) -> Iterator[Comparison]:
    """Success at the loosest setting of a curve against that at the strictest."""
    points = sorted(curve.points, key=lambda point: point.value)
    names = [name for point in points for name in point.asr if matches(name)]
    if len(points) < 2 or not names:
        return
    strict, loose = points[0].asr.get(names[0]), points[-1].asr.get(names[0])
    if strict is not None and loose is not None:
        what = f"ASR of {names[0]} on {curve.label}, loosest against strictest of {len(points)} settings"
        yield Comparison((run,), what, ("loosest", loose), ("strictest", strict), minus(loose, strict))


def _standing(run: Run, board: Leaderboard) -> Iterator[Comparison]:
    """The nearest neighbour's success against the strongest other attack's, on DEL where it was calibrated."""
    for entry in arrange.tested(board):
        if not entry.is_reference or entry.row.matching != "nearest":
            continue
        nearest = words.attack_result(entry.row, words.is_nearest)
        others = {k: v for k, v in entry.row.asr.items() if not words.is_nearest(k) and k != "worst"}
        if nearest is None or not others:
            continue
        name = max(others, key=lambda other: others[other].value)
        what = f"ASR on {entry.row.label}"
        gap = minus(nearest, others[name])
        yield Comparison((run,), what, ("nearest neighbour", nearest), (name, others[name]), gap, POINTS)


# --- classification ---------------------------------------------------------------------------------------------------


def understanding(runs: Sequence[Run]) -> Finding:
    """Rule: in the SnD framework the quantizer beats metric DP, and a soft prompt helps it; by AUC, on MRPC and QQP."""
    boards = [(run, board) for run, board in classification(runs) if board.task in PAPER_TASKS]
    mechanism = [one for run, board in boards for one in _against_metric(run, board)]
    prompt = [one for run, board in boards for one in _with_prompt(run, board)]
    tasks = listed([run.data for run, _ in classification(runs)])
    missing = f"No loaded run classifies MRPC or QQP in the SnD framework behind DEL. Tasks loaded: {tasks or 'none'}."
    parts = (
        f"Quantizer against metric DP: {tally(mechanism)}" if mechanism else "",
        f"With against without soft prompt: {tally(prompt)}" if prompt else "",
        _above_chance([row for _, board in boards for row in board.rows]),
    )
    return weigh([*mechanism, *prompt], missing, *parts)


def _against_metric(run: Run, board: NluLeaderboard) -> Iterator[Comparison]:
    for ours in _snd(board):
        for theirs in board.rows:
            same = (theirs.variant, theirs.matching, theirs.target) == (ours.variant, ours.matching, ours.target)
            if theirs.method in METRIC and same:
                yield _auc(run, board, ours, theirs)


def _with_prompt(run: Run, board: NluLeaderboard) -> Iterator[Comparison]:
    for ours in _snd(board):
        without = nlu.row_of(board, "snd", ours.label)
        if ours.variant == "snd-prompt" and without is not None:
            yield _auc(run, board, ours, without)


def _snd(board: NluLeaderboard) -> list[NluRow]:
    """DEL's rows behind the denoiser at the server, as in the paper, at its own way to match."""
    return [
        row
        for row in board.rows
        if row.method == arrange.REFERENCE and row.variant in ("snd", "snd-prompt") and row.matching == "nearest"
    ]


def _auc(run: Run, board: NluLeaderboard, first: NluRow, second: NluRow) -> Comparison:
    """Counts only where other seeds and other examples would both leave it."""
    seeds = minus(first.over_seeds["auc"], second.over_seeds["auc"])
    examples = paired.auc_difference(board, first, second)
    examples = examples or minus(first.over_examples["auc"], second.over_examples["auc"])
    named = [(f"{row.label}: {nlu.VARIANTS[row.variant]}", row.over_seeds["auc"]) for row in (first, second)]
    return Comparison((run,), f"AUC on {run.data}", named[0], named[1], both(seeds, examples))


def _above_chance(rows: Iterable[NluRow]) -> str:
    ours = [row for row in rows if row.method == arrange.REFERENCE and row.variant in ("snd", "snd-prompt")]
    above = sum(nlu.beats_chance(row) for row in ours)
    return f"Of DEL's {len(ours)} rows in this framework {above} can be told from chance." if ours else ""


# --- a setting of DEL itself ------------------------------------------------------------------------------------------


def quantizer(board: Leaderboard) -> dict[str, float]:
    """Bits, code width and embedding width of DEL on this board; empty without DEL."""
    for entry in arrange.tested(board):
        sent, parameters = entry.row.communication, entry.row.privacy.parameters
        if entry.is_reference and {"bits", "dim"} <= parameters.keys() and math.isfinite(sent.ratio_fp32):
            width = round(sent.ratio_fp32 * sent.bits_per_token / 32)
            return {"bits": parameters["bits"], "dim": parameters["dim"], "width": width}
    return {}


def peers(runs: Sequence[Run], section: str, key: str) -> list[list[tuple[Run, Leaderboard]]]:
    """Runs of DEL that differ in one setting and in nothing else that utility depends on."""
    groups: dict[str, list[tuple[Run, Leaderboard]]] = {}
    for run, board in generation(runs):
        if quantizer(board):
            groups.setdefault(_without(board.config, section, key), []).append((run, board))
    return [group for group in groups.values() if len(group) > 1]


def _without(config: dict[str, Any], section: str, key: str) -> str:
    """What determines a run, one setting apart."""
    parts = {name: config.get(name) for name in DETERMINING}
    adapter = config.get("adapter") or {}
    parts["adapter"] = adapter if adapter.get("rank") else None  # none in boards from before there were adapters
    parts[section] = {name: value for name, value in (config.get(section) or {}).items() if name != key}
    return json.dumps(parts, sort_keys=True)


def _same_setting(first: Leaderboard, second: Leaderboard) -> Iterator[tuple[LeaderboardRow, LeaderboardRow]]:
    """DEL's rows of two boards at the same target or the same given mu, with a soft prompt where both have one."""
    for one in (entry for entry in arrange.tested(first) if entry.is_reference):
        for other in (entry for entry in arrange.tested(second) if entry.is_reference):
            if not _alike(one.row, other.row):
                continue
            if one.prompted and other.prompted:
                yield one.prompted, other.prompted
            elif one.plain and other.plain:
                yield one.plain, other.plain


def _alike(one: LeaderboardRow, other: LeaderboardRow) -> bool:
    if (one.matching, one.target) != (other.matching, other.target):
        return False
    return one.target is not None or _same_mu(one, other)


def _same_mu(one: LeaderboardRow, other: LeaderboardRow) -> bool:
    return one.value is not None and other.value is not None and math.isclose(one.value, other.value, rel_tol=0.01)


def _nats(row: LeaderboardRow) -> Estimate | None:
    """The row's perplexity as nats a token, where it can be compared."""
    found = row.perplexity
    return logarithm(found) if found is not None and 0 < found.value < math.inf else None


def _perplexities(
    runs: tuple[Run, Run], what: str, rows: tuple[LeaderboardRow, LeaderboardRow], names: tuple[str, str], margin: float
) -> Iterator[Comparison]:
    """The first row's perplexity is the lower one, or at most so much higher; in nats a token."""
    ours, theirs = _nats(rows[0]), _nats(rows[1])
    if ours is not None and theirs is not None and rows[0].perplexity and rows[1].perplexity:
        first, second = ((name, row.perplexity) for name, row in zip(names, rows, strict=True) if row.perplexity)
        paired = _paired_nats(runs, rows)
        if paired is not None:
            what = f"{what}; difference in nats a token, paired"
        yield Comparison(runs, what, first, second, paired or minus(theirs, ours), margin)


def _paired_nats(runs: tuple[Run, Run], rows: tuple[LeaderboardRow, LeaderboardRow]) -> Estimate | None:
    """The second row's nats a token minus the first's, prompt by prompt; None where a board does not hold them.

    The runs must have the same prompts, which :func:`peers` sees to.
    """
    tokens = [run.board.reference_tokens for run in runs if isinstance(run.board, Leaderboard)]
    if len(tokens) != len(runs) or tokens[0] != tokens[1]:
        return None
    if not all(len(row.nll_by_prompt) == len(tokens[0]) > 0 for row in rows):
        return None
    ours, theirs = (np.array(row.nll_by_prompt) for row in rows)
    weight = np.array(tokens[0])
    return bootstrap_ratio(weight * (theirs - ours), weight)


def width(runs: Sequence[Run]) -> Finding:
    """Rule: a code of b / 32 numbers has the lower perplexity at a strict mu, a wider one at a loose mu."""
    found = [
        one
        for group in peers(runs, "codec", "dim")
        for first, second in combinations(group, 2)
        for one in _widths(first, second)
    ]
    widths = sorted({f"{size['dim']:g}" for _, board in generation(runs) if (size := quantizer(board))}, key=float)
    missing = (
        "It takes two runs that differ in codec.dim alone, one of them at b / 32, with DEL at the same given mu. "
        f"Widths loaded: {listed(widths) or 'none'}."
    )
    return weigh(found, missing)


def _widths(first: tuple[Run, Leaderboard], second: tuple[Run, Leaderboard]) -> Iterator[Comparison]:
    (narrow, small), (wide, large) = sorted((first, second), key=lambda one: quantizer(one[1])["dim"])
    sizes = quantizer(small), quantizer(large)
    if sizes[0]["dim"] != sizes[0]["width"] // SAVING or sizes[0]["dim"] == sizes[1]["dim"]:
        return
    for one, other in _same_setting(small, large):
        if one.value is None or not _same_mu(one, other):
            continue
        names = [f"d = {size['dim']:g}" for size in sizes]
        pairs = [(narrow, one, names[0]), (wide, other, names[1])]
        strict = one.value < BETWEEN_MU
        ours, theirs = pairs if strict else pairs[::-1]
        what = f"PPL at a {'strict' if strict else 'loose'} setting: {words.guarantee(one.privacy)}"
        yield from _perplexities((ours[0], theirs[0]), what, (ours[1], theirs[1]), (ours[2], theirs[2]), 0.0)


def bits(runs: Sequence[Run]) -> Finding:
    """Rule: fewer bits a coordinate cost at most a tenth of perplexity against the most bits that were run."""
    found: list[Comparison] = []
    for group in peers(runs, "mechanism", "bits"):
        most, *fewer = sorted(group, key=lambda one: -quantizer(one[1])["bits"])
        for few in fewer:
            sizes = [quantizer(board)["bits"] for _, board in (few, most)]
            if sizes[0] == sizes[1]:
                continue
            for rows in _same_setting(few[1], most[1]):
                matched = f"{words.MATCHED[rows[0].matching]} {rows[0].target:g}" if rows[0].matching else "equal mu"
                names = (f"n = {sizes[0]:g}", f"n = {sizes[1]:g}")
                short = [name for name, one, row in zip(names, (few, most), rows, strict=True) if _short(one[1], row)]
                if short:
                    matched += f", which {listed(short)} cannot reach at any mu"
                found += _perplexities((few[0], most[0]), f"PPL at {matched}", rows, names, TEN_PERCENT)
    known = sorted({f"{size['bits']:g}" for _, board in generation(runs) if (size := quantizer(board))}, key=float)
    missing = (
        "It takes two runs that differ in mechanism.bits alone, with DEL at the same target or mu. "
        f"Bits loaded: {listed(known) or 'none'}."
    )
    return weigh(found, missing)


def _short(board: Leaderboard, row: LeaderboardRow) -> bool:
    """Whether a row stays below its target: no setting of its method is read that often."""
    calibrations = [one for one in board.calibrations if one.method == row.method]
    results = [result for one in calibrations for result in one.found.get(row.matching or "", [])]
    return any(result.target == row.target and not result.reached for result in results)


def payload(runs: Sequence[Run]) -> Finding:
    """Rule: at d = b / 32 a token takes 32 x 32 / n times fewer bits than its fp32 embedding; the headline is n = 1."""
    found, text = [], []
    for run, board in generation(runs):
        size = quantizer(board)
        if not size or size["dim"] != size["width"] // SAVING:
            continue
        row = next(entry.row for entry in arrange.tested(board) if entry.is_reference)
        promised = SAVING * SAVING / size["bits"]
        ratio = row.communication.ratio_fp32
        what = f"times smaller than an fp32 embedding, d = {size['dim']:g} of b = {size['width']:g}"
        names = f"sent at n = {size['bits']:g}", "claimed: 32 × 32 / n"
        found.append(
            Comparison(
                (run,), what, (names[0], exact(ratio)), (names[1], exact(promised)), exact(ratio - promised),
                promised / 100,
            )
        )  # fmt: skip
        text += _smaller_text(board, row)
    finding = weigh(found, f"No loaded run holds DEL at a code width of b / 32. {loaded(runs)}", *text[:1])
    if finding.verdict == "agrees" and not any(one.first[0].endswith("n = 1") for one in found):
        reason = f"{finding.reason} The headline's n = 1 was not run."
        return Finding("partly", reason, finding.comparisons)
    return finding


def _smaller_text(board: Leaderboard, row: LeaderboardRow) -> list[str]:
    """What an embedding is a generous yardstick for: the text itself as token ids."""
    clean = [entry.row.communication.bits_per_token for entry in arrange.controls(board) if entry.row.method == "clean"]
    if not clean or not 0 < clean[0] < row.communication.bits_per_token:
        return []
    sizes = words.count(clean[0]), words.count(row.communication.bits_per_token)
    return [f"The text itself, as token ids, takes {sizes[0]} bits a token and so less than DEL's {sizes[1]}."]


# --- nothing to compare yet -------------------------------------------------------------------------------------------


def transfers(runs: Iterable[Run]) -> Iterator[tuple[Run, TransferCell, TransferCell, TransferCell]]:
    """(run, a use away from home, the matched soft prompt's use, the use without one) of every transferred use."""
    for run in runs:
        if not isinstance(run.board, TransferBoard):
            continue
        for cell in run.board.cells:
            home = [one for one in run.board.cells if one.used_at == cell.used_at]
            none = next((one for one in home if one.trained_on is None), None)
            matched = next((one for one in home if one.over_matched is None), None)
            if none is not None and matched is not None and cell not in (none, matched):
                yield run, cell, matched, none


def data_transfer(runs: Sequence[Run]) -> Finding:
    """Rule: a soft prompt trained on other data has a lower perplexity than none, at the same mu."""
    away = [found for found in transfers(runs) if found[1].trained_on != found[2].trained_on]
    helps = [one for run, cell, _, none in away for one in _helps(run, cell, none)]
    costs = [one for run, cell, matched, _ in away for one in _costs(run, cell, matched)]
    remark = f"The matched soft prompt is better still: {tally(costs)}" if costs else ""
    return weigh(helps, "No loaded run uses a soft prompt on other data than it was trained on.", remark)


def mu_transfer(runs: Sequence[Run]) -> Finding:
    """Rule: a soft prompt trained at another mu has a lower perplexity than none and a higher one than the matched."""
    away = [found for found in transfers(runs) if found[1].trained_on == found[2].trained_on]
    helps = [one for run, cell, _, none in away for one in _helps(run, cell, none)]
    costs = [one for run, cell, matched, _ in away for one in _costs(run, cell, matched)]
    parts = (f"Better than none: {tally(helps)}", f"Worse than the matched one: {tally(costs)}") if away else ()
    return weigh([*helps, *costs], "No loaded run uses a soft prompt at another mu than it was trained at.", *parts)


def _helps(run: Run, cell: TransferCell, none: TransferCell) -> Iterator[Comparison]:
    if cell.over_none is not None and cell.over_none.nll is not None:
        yield _use(run, cell, none, (cell, none), negative(cell.over_none.nll))


def _costs(run: Run, cell: TransferCell, matched: TransferCell) -> Iterator[Comparison]:
    if cell.over_matched is not None and cell.over_matched.nll is not None:
        yield _use(run, cell, matched, (matched, cell), cell.over_matched.nll)


def _use(
    run: Run, cell: TransferCell, base: TransferCell, order: tuple[TransferCell, TransferCell], difference: Estimate
) -> Comparison:
    first, second = ((_origin(one), one.perplexity) for one in order)
    against = "no soft prompt" if base.trained_on is None else "the matched soft prompt"
    what = f"PPL at mu {words.number(cell.used_at)} against {against}; difference in nats a token, paired"
    return Comparison((run,), what, first, second, difference)


def _origin(cell: TransferCell) -> str:
    if cell.trained_on is None or cell.trained_at is None:
        return "no soft prompt"
    return f"trained on {cell.trained_on} at mu {words.number(cell.trained_at)}"
