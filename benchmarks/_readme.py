"""The README's results, written from the committed leaderboards, so that no number there is typed by hand.

python benchmarks/_readme.py     prints the section; tests/test_readme.py checks that the README holds it
"""

from pathlib import Path

from del_lightning.report.schema import Estimate, Leaderboard

RESULTS = Path(__file__).parent / "results"
NAMES = {"wikitext2": "WikiText-2", "ptb": "PTB"}


def section() -> str:
    """One table a committed leaderboard, in the order of their names."""
    boards = [Leaderboard.model_validate_json(path.read_text()) for path in sorted(RESULTS.glob("*/leaderboard.json"))]
    return "\n\n".join(_table(board) for board in boards)


def _table(board: Leaderboard) -> str:
    name = NAMES.get(board.dataset, board.dataset)
    attacks = list(board.rows[0].asr)
    heading = ["front-end", "soft prompt", "PPL", f"COH ({board.encoder})", "R", *(f"ASR, {a}" for a in attacks)]
    privacy = next(row.privacy for row in board.rows if row.method == "del")
    heading += [f"exact ε, {privacy.sequence_tokens} tokens, δ = {privacy.delta:g}", "bits a token"]
    lines = [
        f"**{name}**, {board.model}, {board.prompts} prompts, noise seeds {len(board.seeds)}, one training seed; "
        f"{board.schedule}. Brackets are 95% intervals.",
        "",
        "| " + " | ".join(heading) + " |",
        "| --- | --- |" + " ---: |" * (len(heading) - 2),
    ]
    for row in board.rows:
        epsilon = row.privacy.epsilon_sequence
        cells = [
            row.label,
            "yes" if row.soft_prompt else "no",
            _show(row.perplexity, ",.1f"),
            _show(row.coherence, ".3f"),
        ]
        cells += [_show(row.retained, ".3f"), *(_show(row.asr[attack], ".1%") for attack in attacks)]
        cells += ["none" if epsilon is None else f"{epsilon:,.0f}", f"{row.communication.bits_per_token:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _show(estimate: Estimate | None, style: str) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return format(estimate.value, style)
    return f"{estimate.value:{style}} [{estimate.low:{style}}, {estimate.high:{style}}]"


if __name__ == "__main__":
    print(section())
