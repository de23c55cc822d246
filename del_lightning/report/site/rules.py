"""The rules behind the replication page: pure functions from the loaded runs to a verdict.

Those about DEL's own settings (width, bits, payload) are in :mod:`~del_lightning.report.site.own_settings`, those about
soft prompts away from home in :mod:`~del_lightning.report.site.away`.

The paper's numbers and ours are of different models, schedules and sentence encoders, so a rule never compares a
value of theirs with one of ours. It asks whether the direction that the paper reports is there in our rows, beyond
the noise. Methods are compared where the paper compares them: at equal success of the nearest neighbour.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

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
)
from del_lightning.report.site.claims import (
    Comparison,
    Finding,
    average,
    both,
    listed,
    minus,
    negative,
    over_trainings,
    pooled,
    tally,
    weigh,
)
from del_lightning.report.site.perplexities import Side, compared, mean_embedding, trainings
from del_lightning.report.site.runs import Run, classification, generation

TEN_PERCENT = math.log(1.1)
"""Nats a token by which a perplexity 10% higher is worse: what "nearly as good" may cost."""
POINTS = 0.02
"""Success by which one attack may stay behind the strongest and still stand for it."""

PAPER_TASKS = ("mrpc", "qqp")
METRIC = ("metric-dp", "metric-dp-snd")
FURTHER = (
    *("santext", "santext-plus", "custext", "custext-plus"),
    *METRIC,
    *("dp-forward", "dp-forward-released"),
)
"""Baselines besides RANTEXT and InferDPT."""
INPUT_INFERENCE = "input inference"


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
        worst = _coherences(runs, methods, "worst")
        remark = f"Matched by the strongest attack instead: {tally(worst)}" if worst else ""
        compared = _coherences(runs, methods, "nearest")
        return weigh(compared, missing, remark, _local_alone(runs, methods), _length_alone(compared))

    return rule


def _coherences(runs: Sequence[Run], methods: Sequence[str], matching: Matching) -> list[Comparison]:
    return _most_trained(
        (places, [_coherence(matching, target, places)])
        for group in trainings(runs)
        for target, places in _against(group, matching, methods)
        if all(ours.prompted is not None for _, _, ours, _ in places)
    )


def _coherence(matching: Matching, target: float, places: Sequence["_Place"]) -> Comparison:
    """DEL against another method in all trainings; the mean embedding, which sends the length alone, in its place."""
    gains = [_coherence_gain(ours.best, theirs.best) for *_, ours, theirs in places]
    lengths = [(mean_embedding(board, prompted=True), theirs.best) for _, board, _, theirs in places]
    nothing = [minus(mean.coherence, row.coherence) for mean, row in lengths if mean is not None]
    return Comparison(
        runs=tuple(run for run, *_ in places),
        what=over_trainings(f"COH at {words.MATCHED[matching]} {target:g}", len(places)),
        first=_read_row([ours.best for _, _, ours, _ in places]),
        second=_read_row([theirs.best for *_, theirs in places]),
        difference=pooled(gains),
        control_fails=len(nothing) == len(places) and (pooled(nothing).high or 0.0) < 0,
    )


def _read_row(rows: Sequence[LeaderboardRow]) -> tuple[str, Estimate]:
    """A row's name with what the nearest neighbour really read, and its coherence, over trainings."""
    read = [found.value for row in rows if (found := words.attack_result(row, words.is_nearest)) is not None]
    measured = f", measured {words.percent(math.fsum(read) / len(read))}" if read else ""
    return f"{words.row_name(rows[0])}{measured}", average([row.coherence for row in rows])


_Place = tuple[Run, Leaderboard, Entry, Entry]
"""A training: its run, leaderboard, DEL, and another method."""


def _against(
    group: Sequence[tuple[Run, Leaderboard]], matching: Matching, methods: Sequence[str]
) -> Iterator[tuple[float, list[_Place]]]:
    """(target, DEL beside one of the methods) wherever every training has both."""
    found: dict[tuple[str, float], list[_Place]] = {}
    for run, board in group:
        for ours, theirs in _beside(board, matching):
            if theirs.row.method in methods and theirs.row.target is not None:
                found.setdefault((theirs.row.method, theirs.row.target), []).append((run, board, ours, theirs))
    yield from ((target, places) for (_, target), places in found.items() if len(places) == len(group))


def _most_trained(found: Iterable[tuple[Sequence[_Place], list[Comparison]]]) -> list[Comparison]:
    """The comparisons, one training's left out where the same was run over several: it would count twice."""
    kept: dict[tuple[object, ...], list[tuple[int, list[Comparison]]]] = {}
    for places, comparisons in found:
        board, theirs = places[0][1], places[0][3].row
        same = board.model, board.dataset, board.schedule, theirs.method, theirs.matching, theirs.target
        kept.setdefault(same, []).append((len(places), comparisons))
    return [
        one
        for sized in kept.values()
        for size, comparisons in sized
        if size > 1 or all(other == 1 for other, _ in sized)
        for one in comparisons
    ]


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
        (run.data, entry.row.coherence)
        for run, board in generation(runs)
        for entry in arrange.controls(board)
        if entry.row.method == "local-only"
    ]
    return f"InferDPT's local model alone reaches COH {_by_data(found)}." if found else ""


def _by_data(found: Sequence[tuple[str, Estimate]]) -> str:
    """(data set, figure of a run) in few words: where there are several runs, the smallest to the largest."""
    parts = []
    for data in dict.fromkeys(data for data, _ in found):
        estimates = [estimate for name, estimate in found if name == data]
        low, high = (words.number(pick(one.value for one in estimates)) for pick in (min, max))
        several = f"{low} to {high} ({data}, {len(estimates)} runs)"
        parts.append(several if len(estimates) > 1 else f"{words.with_interval(estimates[0])} ({data})")
    return listed(parts)


def _length_alone(compared: Sequence[Comparison]) -> str:
    """What a soft prompt writes of nothing but the length, in the runs that were compared: DEL has to be above that."""
    runs = list({run.slug: run for one in compared for run in one.runs}.values())
    found = [
        (run.data, entry.prompted.coherence)
        for run, board in generation(runs)
        for entry in arrange.controls(board)
        if entry.row.method == "mean" and entry.prompted is not None
    ]
    if not found:
        return ""
    return (
        "A soft prompt behind the mean embedding, which tells the server the length alone, reaches COH "
        f"{_by_data(found)}: as far as DEL is not above that, its lead is the soft prompt's, which methods that send "
        "words do without."
    )


def gaussian(runs: Sequence[Run]) -> Finding:
    """Rule: the quantizer is at most a tenth of perplexity worse than Gaussian noise on the same code."""
    found = [
        (places, list(_near_gaussian(matching, target, places)))
        for group in trainings(runs)
        for matching in _PAPERS_WAYS
        for target, places in _against(group, matching, ["gaussian-code"])
    ]
    saved = [_payloads(ours.row, theirs.row) for places, _ in found for *_, ours, theirs in places]
    missing = f"No loaded run holds Gaussian noise on the code matched to DEL. {loaded(runs)}"
    return weigh(_most_trained(found), missing, f"DEL sends {listed(saved)}.")


_PAPERS_WAYS: tuple[Matching, ...] = ("nearest", "guarantee")
"""How Fig. 3 and Remark 4.3 match the quantizer to Gaussian noise."""


def _near_gaussian(matching: Matching, target: float, places: Sequence[_Place]) -> Iterator[Comparison]:
    """Perplexity of DEL and of Gaussian noise on the code, with a soft prompt where both have one."""
    rows = [(ours.prompted if theirs.best.soft_prompt else ours.plain, theirs.best) for *_, ours, theirs in places]
    ours = [(run, board, row) for (run, board, *_), (row, _) in zip(places, rows, strict=True) if row is not None]
    if len(ours) == len(places):
        theirs = _side([(run, board, row) for (run, board, *_), (_, row) in zip(places, rows, strict=True)])
        what = f"PPL at {words.MATCHED[matching]} {target:g}"
        yield from compared(_side(ours), theirs, what, TEN_PERCENT, _stored(theirs))


def _side(places: list[tuple[Run, Leaderboard, LeaderboardRow]]) -> Side:
    return Side(words.row_name(places[0][2]), places)


def _stored(theirs: Side) -> Estimate | None:
    """Gaussian minus DEL, paired over prompts when the leaderboard was written."""
    difference = theirs.places[0][2].difference
    return difference.nll if difference is not None and len(theirs.places) == 1 else None


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
        name = words.attack_name(names[0])
        what = f"ASR of {name} on {curve.label}, loosest against strictest of {len(points)} settings"
        gap = minus(loose, strict)
        yield Comparison((run,), what, ("loosest", loose), ("strictest", strict), gap, is_share=True)


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
        sides = ("nearest neighbour", nearest), (words.attack_name(name), others[name])
        yield Comparison((run,), what, *sides, gap, POINTS, is_share=True)


# --- classification ---------------------------------------------------------------------------------------------------


def understanding(runs: Sequence[Run]) -> Finding:
    """Rule: in the SnD framework the quantizer beats metric DP, and a soft prompt helps it; by AUC, on MRPC and QQP."""
    boards = [(run, board) for run, board in classification(runs) if board.task in PAPER_TASKS]
    mechanism = [one for run, board in boards for one in _against_metric(run, board)]
    prompt = [one for run, board in boards for one in _with_prompt(run, board)]
    tasks = listed([run.data for run, _ in classification(runs)])
    unmoved = _unmoved(board for _, board in boards)
    missing = (
        "No loaded run classifies MRPC or QQP in the SnD framework behind DEL and what it is compared with. "
        f"Tasks loaded: {tasks or 'none'}. {unmoved}"
    ).rstrip()
    parts = (
        f"Quantizer against metric DP: {tally(mechanism)}" if mechanism else "",
        f"With against without soft prompt: {tally(prompt)}" if prompt else "",
        unmoved,
        _above_length(board for _, board in boards),
    )
    return weigh([*mechanism, *prompt], missing, *parts)


def _against_metric(run: Run, board: NluLeaderboard) -> Iterator[Comparison]:
    for ours in (row for row in _snd(board) if not nlu.misses_target(board, row)):
        for theirs in board.rows:
            same = (theirs.variant, theirs.matching, theirs.target) == (ours.variant, ours.matching, ours.target)
            if theirs.method in METRIC and same and not nlu.misses_target(board, theirs):
                yield _auc(run, board, ours, theirs)


def _with_prompt(run: Run, board: NluLeaderboard) -> Iterator[Comparison]:
    if board.denoised_prompt_rate is None:
        return
    for ours in _snd(board):
        without = nlu.row_of(board, "snd", ours.label)
        if ours.variant == "snd-prompt" and without is not None:
            yield _auc(run, board, ours, without)


def _unmoved(boards: Iterable[NluLeaderboard]) -> str:
    """Which boards say nothing about a soft prompt behind a denoiser, although they have one."""
    found = [board for board in boards if any(row.variant == "snd-prompt" for row in board.rows)]
    names = [board.title for board in found if board.denoised_prompt_rate is None]
    return f"Soft prompts learned at the denoiser's rate and are not judged in {listed(names)}." if names else ""


def _snd(board: NluLeaderboard) -> list[NluRow]:
    """DEL's rows behind the denoiser at the server, as in the paper, at its own way to match."""
    return [
        row
        for row in nlu.private(board)
        if row.method == arrange.REFERENCE and row.variant in ("snd", "snd-prompt") and row.matching == "nearest"
    ]


def _auc(run: Run, board: NluLeaderboard, first: NluRow, second: NluRow) -> Comparison:
    """Counts only where other seeds and other examples would both leave it."""
    seeds = minus(first.over_seeds["auc"], second.over_seeds["auc"])
    examples = paired.auc_difference(board, first, second)
    examples = examples or minus(first.over_examples["auc"], second.over_examples["auc"])
    named = [(f"{row.label}: {nlu.VARIANTS[row.variant]}", row.over_seeds["auc"]) for row in (first, second)]
    return Comparison((run,), f"AUC on {run.data}", named[0], named[1], both(seeds, examples))


def _above_length(boards: Iterable[NluLeaderboard]) -> str:
    ours = [(board, row) for board in boards for row in nlu.private(board) if row.method == arrange.REFERENCE]
    ours = [(board, row) for board, row in ours if row.variant in ("snd", "snd-prompt")]
    above = sum(nlu.beats_length(board, row) for board, row in ours)
    return (
        f"Of DEL's {len(ours)} rows in this framework {above} beat what the length of the text alone gives."
        if ours
        else ""
    )
