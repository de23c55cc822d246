"""Stage ``calibrate``: find the loosest value of each method's parameter that meets each target success rate.

Calibration attacks tokens of the validation split, so that the test prompts stay unseen until they are reported.
The nearest neighbour and the attackers of ``attack.worst_of`` read the same releases, and every value is tried under
the same random numbers; one outlined curve a method serves all targets.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from del_lightning.artifacts import Artifact, Outcome
from del_lightning.attacks import Attack, BayesOptimal, NearestNeighbour, SuccessCurve, calibrate, outline
from del_lightning.attacks.language_model import BigramPrior
from del_lightning.config import AttackConfig
from del_lightning.data.generation import evenly
from del_lightning.errors import DataError
from del_lightning.methods import Method
from del_lightning.report.schema import MethodCalibration
from del_lightning.seeding import stream
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import bar, say

OUTLINE_SHARE = 4
"""The outline attacks one token in this many."""

CONSECUTIVE = "bigrams"
"""The calibrating attacker that reads text, not single tokens."""


def calibrated(ws: Workspace) -> list[str]:
    """The methods of this configuration whose parameter is searched."""
    return [name for name in ws.config.methods if ws.parameter(name) is not None and ws.given_value(name) is None]


def ensure(ws: Workspace, name: str) -> Artifact:
    """Return a method's calibration, searching if it does not exist."""
    config = ws.config.attack
    # A default is no part of the key: what was calibrated before there was a choice stays valid.
    chosen = {} if config.worst_of == AttackConfig().worst_of else {"worst_of": config.worst_of}
    names = ("metric", "tokens", "tolerance", "resolution", "outline")
    determined_by = {
        "model": ws.model_key,
        "method": ws.method_key(name),
        "attack": {key: getattr(config, key) for key in names} | chosen,
        "targets": ws.config.targets,
        "data": ws.data.fingerprint,
        "seed": ws.config.seed,
    }
    if CONSECUTIVE in config.worst_of:
        determined_by["text"] = "consecutive"
    return ws.store.get("calibrate", determined_by, lambda folder: _build(ws, name, folder))


def calibration(ws: Workspace, name: str) -> MethodCalibration:
    """What calibration measured and found for one method."""
    return MethodCalibration.model_validate(ensure(ws, name).result.details["calibration"])


def run(ws: Workspace) -> None:
    """Calibrate and print what came out: the guarantee in full, since a bare parameter would look like one."""
    length = ws.mean_prompt_tokens
    for name in calibrated(ws):
        found = calibration(ws, name)
        for matching in (m for m in ws.config.matching if m != "guarantee"):
            for result in found.found[matching]:
                rate = result.asr
                say(
                    f"{found.label}, {matching} ASR target {result.target:g}: {rate.value:.3f} "
                    f"[{rate.low:.3f}, {rate.high:.3f}] of {rate.n} tokens read"
                )
                statement = ws.method(name).at(result.value).statement(length, ws.config.evaluate.delta)
                say("  " + statement.summary())
                if not result.reached:
                    say("  " + result.note)


def attackers(ws: Workspace) -> list[Attack]:
    """The nearest neighbour, which matching ``nearest`` means, and the attackers of ``attack.worst_of``."""
    config = ws.config.attack
    made: dict[str, Callable[[], Attack]] = {
        "nearest": lambda: NearestNeighbour(config.metric, config.chunk),
        "nearest-l2": lambda: NearestNeighbour("l2", config.chunk),
        "bayes": lambda: BayesOptimal(ws.prior, config.chunk),
        "bigrams": lambda: BigramPrior(ws.prior, ws.bigrams),
    }
    return [made[name]() for name in dict.fromkeys(("nearest", *config.worst_of))]


def worst_of(config: AttackConfig) -> list[str]:
    """Names of the attacks that matching ``worst`` means."""
    names = {
        "nearest": NearestNeighbour(config.metric).name,
        "nearest-l2": NearestNeighbour("l2").name,
        "bayes": BayesOptimal.name,
        "bigrams": BigramPrior.name,
    }
    return list(dict.fromkeys(names[name] for name in config.worst_of))


def _build(ws: Workspace, name: str, folder: Path) -> Outcome:
    config, method = ws.config.attack, ws.method(name)
    tokens = _rows(ws)
    attacks = attackers(ws)  # once: the nearest neighbour keeps what it worked out of the vocabulary
    matchings = {"nearest": [NearestNeighbour(config.metric).name], "worst": worst_of(config)}
    with bar() as progress:
        task = progress.add_task(f"calibrating {ws.title(name)}", total=None)

        def curve(rows: Tensor) -> SuccessCurve:
            def measure(value: float) -> Mapping[str, Tensor]:
                progress.advance(task)
                return hits(ws, attacks, method.at(value), rows)

            return SuccessCurve(measure)

        guide, full = curve(tokens[: max(1, len(tokens) // OUTLINE_SHARE)]), curve(tokens)
        outline(guide, method.parameter_range, config.outline)
        found = {
            matching: [
                calibrate(
                    full,
                    target,
                    attacks=attacks,
                    value_range=method.parameter_range,
                    tolerance=config.tolerance,
                    resolution=config.resolution,
                    guide=guide,
                )
                for target in ws.config.targets
            ]
            for matching, attacks in matchings.items()
        }
    assert method.parameter is not None
    record = MethodCalibration(
        method=name,
        label=ws.title(name),
        parameter=method.parameter,
        found=found,
        outline=guide.points(),
        points=full.points(),
    )
    return Outcome(details={"calibration": record.model_dump(mode="json")})


def _rows(ws: Workspace) -> Tensor:
    """Private tokens of the validation split in rows (B, L) about as long as a prompt; what fills no row is left out.

    Some methods treat a sequence as one secret, so tokens are attacked in sequences. They are random tokens, of as many
    texts as possible; an attacker who reads neighbours gets consecutive ones.
    """
    config = ws.config.attack
    length = min(ws.mean_prompt_tokens, config.tokens)
    count = -(-config.tokens // length)
    if CONSECUTIVE in config.worst_of:
        return _consecutive(ws, length, count).to(ws.device)
    return ws.data.private_tokens("validation", count * length, ws.config.seed).to(ws.device).reshape(-1, length)


def _consecutive(ws: Workspace, length: int, count: int) -> Tensor:
    """At most ``count`` pieces of ``length`` tokens (B, L), evenly over the texts of the validation split.

    Raises:
        DataError: No text is that long.
    """
    texts = ws.data.tokens("validation").rows()
    pieces = [text[: len(text) // length * length].reshape(-1, length) for text in texts if len(text) >= length]
    if not pieces:
        raise DataError(f"validation texts must hold one of {length} tokens for `attack.worst_of` to read, got none")
    whole = np.concatenate(pieces)
    return torch.from_numpy(whole[evenly(len(whole), count)]).long()


@torch.inference_mode()
def hits(ws: Workspace, attacks: Sequence[Attack], method: Method, tokens: Tensor) -> dict[str, Tensor]:
    """Which of ``tokens`` (B, L) each attacker reads: bool (B * L,), common random numbers at every call."""
    release = method.release(tokens, stream("calibrate", ws.config.seed, device=ws.device))
    lengths = torch.full((len(tokens),), tokens.shape[1])
    found: dict[str, Tensor] = {}
    for attack in attacks:
        guesses = attack(method, release.rows(), lengths)
        found |= {name: guess[:, 0] == tokens.flatten() for name, guess in guesses.items()}
    return found
