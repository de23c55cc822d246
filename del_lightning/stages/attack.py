"""Stage ``attack``: read the private tokens of the test prompts back from what each front-end releases."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from del_lightning.artifacts import Artifact, Outcome, write_json
from del_lightning.attacks import BayesOptimal
from del_lightning.attacks.language_model import MARGINALS, BigramPrior
from del_lightning.methods import Method, Release
from del_lightning.metrics import certified_alone, check_certified, paired_difference, worst_case
from del_lightning.metrics import recovery as recovery_of
from del_lightning.report.schema import AttackCurve, AttackDifference, AttackedSetting, CurvePoint, Estimate
from del_lightning.seeding import stream
from del_lightning.stages.attackers import Attacker, attackers
from del_lightning.stages.setting import Setting, build_method, method_key
from del_lightning.stages.settings import levels, settings
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say

GUESSES = "guesses.json"
GUESSES_KEPT = 10
"""Guesses a token that are measured: top-1, top-5 and top-10."""


def ensure(ws: Workspace, setting: Setting) -> list[Artifact]:
    """Return the attacks on a setting's releases, one artefact an attacker, running those that were not."""
    return [_ensure_one(ws, setting, attacker) for attacker in attackers(ws, setting)]


def _ensure_one(ws: Workspace, setting: Setting, attacker: Attacker) -> Artifact:
    determined_by = {
        "model": ws.model_key,
        "method": method_key(ws, setting),
        "attack": attacker.determined_by(setting),
        "prompts": attacker.prompts,
        "data": ws.data.fingerprint,
        **ws.prompts_key,
        # The releases that evaluation sees under its first seed; one a token keeps the n tokens distinct.
        "seed": ws.config.evaluate.seeds[0],
    }
    build = partial(_build, ws, setting, attacker)
    return ws.store.get("attack", determined_by, build, together=attacker.trains)


def rates(ws: Workspace, setting: Setting) -> dict[str, Estimate]:
    """Attack -> top-1 token recovery, over all attackers of the suite, and the ``worst`` of them."""
    found: dict[str, Estimate] = {}
    for artifact in ensure(ws, setting):
        found |= {name: measures["top-1"] for name, measures in recovery(artifact).items()}
    return found | {"worst": worst_case(found)[1]}


def recovery(artifact: Artifact) -> dict[str, dict[str, Estimate]]:
    """Attack -> measure -> estimate, of one attacker's artefact."""
    found: dict[str, dict[str, Estimate]] = {}
    for name, estimate in artifact.result.metrics.items():
        attack, _, measure = name.rpartition("/")
        found.setdefault(attack, {})[measure] = estimate
    return found


def read_guesses(artifact: Artifact) -> dict[str, Any]:
    """What one attacker guessed: ``lengths`` of the prompts, ``truth``, and ``guesses``: attack -> first guesses."""
    content: dict[str, Any] = json.loads((artifact.folder / GUESSES).read_text(encoding="utf-8"))
    return content


def run(ws: Workspace) -> None:
    """Attack every front-end and print the success rates."""
    for setting in [*settings(ws), *levels(ws)]:
        for name, rate in rates(ws, setting).items():
            interval = f"[{rate.low:.1%}, {rate.high:.1%}]"
            say(f"{setting.label}{_value(ws, setting)}: {name} reads {rate.value:.1%} {interval} of {rate.n} tokens")


def _value(ws: Workspace, setting: Setting) -> str:
    """The parameter of a level, which its label does not hold."""
    return "" if setting.value is None or setting.matching else f" ({ws.parameter(setting.method)} {setting.value:g})"


def curves(ws: Workspace) -> list[AttackCurve]:
    """Success of the suite at every level, one curve a method."""
    found: dict[str, AttackCurve] = {}
    for setting in levels(ws):
        assert setting.value is not None
        curve = found.setdefault(
            setting.method,
            AttackCurve(method=setting.method, label=setting.title, parameter="mu", points=[], certified=[]),
        )
        curve.points.append(CurvePoint(value=setting.value, asr=rates(ws, setting)))
        curve.certified.append(certified(ws, build_method(ws, setting)))
    return list(found.values())


def certified(ws: Workspace, method: Method) -> float | None:
    """Bound on the share that attackers of single positions read of the test prompts, whatever they know besides."""
    prompts = [prompt.private_ids for prompt in ws.data.prompts()]
    tokens = torch.tensor([token for ids in prompts for token in ids])
    return certified_alone(method, tokens, torch.tensor([len(ids) for ids in prompts]))


def attacked(ws: Workspace, setting: Setting) -> AttackedSetting:
    """A setting under every attack, and the attacks against each other on the same tokens."""
    method = build_method(ws, setting)
    return AttackedSetting(
        method=setting.method,
        label=setting.label if setting.matching or setting.value is None else setting.title,
        value=setting.value,
        privacy=method.statement(ws.mean_prompt_tokens, ws.config.evaluate.delta).columns(),
        certified=certified(ws, method),
        asr=rates(ws, setting),
        differences=_differences(ws, setting),
    )


def _differences(ws: Workspace, setting: Setting) -> list[AttackDifference]:
    """Optimal against nearest, and contextual against optimal: each knows all that the other one does."""
    content = [read_guesses(artifact) for artifact in ensure(ws, setting)]
    found = {name: read for read in content for name in read["guesses"]}
    names = (f"nearest neighbour ({ws.config.attack.metric})", BayesOptimal.name, BigramPrior.name, MARGINALS)
    return [
        AttackDifference(stronger=strong, weaker=weak, difference=_difference(found, strong, weak))
        for weak, strong in pairwise(name for name in names if name in found)
    ]


def _difference(found: Mapping[str, dict[str, Any]], strong: str, weak: str) -> Estimate:
    """Over the prompts that both attacks read, from the first."""
    fewer = min(found[strong], found[weak], key=lambda read: len(read["lengths"]))
    truth, lengths = torch.tensor(fewer["truth"]), torch.tensor(fewer["lengths"])
    first, second = (torch.tensor(found[name]["guesses"][name][: len(truth)]) == truth for name in (strong, weak))
    return paired_difference(first, second, lengths)


def release_prompts(ws: Workspace, method: Method, prompts: int | None) -> tuple[Release, Tensor, Tensor]:
    """What the device sends for the first test prompts under the first seed, as evaluation sees it.

    Returns:
        The release (1, N, ...), the lengths (S,) of its sequences and the true tokens (N,).
    """
    seed, rows = ws.config.evaluate.seeds[0], ws.data.prompts()[:prompts]
    tokens = [torch.tensor([prompt.private_ids], device=ws.device) for prompt in rows]
    releases = [method.release(ids, stream("noise", seed, i, device=ws.device)) for i, ids in enumerate(tokens)]
    lengths = torch.tensor([ids.shape[1] for ids in tokens])
    return Release.concatenate(releases), lengths, torch.cat(tokens, dim=1)[0]


@torch.no_grad()
def _build(ws: Workspace, setting: Setting, attacker: Attacker, folder: Path) -> Outcome:
    say(f"{attacker.name}: attacking {setting.label}")
    method = build_method(ws, setting)
    release, lengths, truth = release_prompts(ws, method, attacker.prompts)
    with attacker.around():
        attack = attacker.make(setting, folder)
        guesses: Mapping[str, Tensor] = attack(method, release, lengths, GUESSES_KEPT)
    metrics: dict[str, Estimate] = {}
    for name, guess in guesses.items():
        measured = recovery_of(guess.cpu(), truth.cpu(), lengths, ws.llm.tokenizer, ws.content_tokens)
        metrics |= {f"{name}/{measure}": estimate for measure, estimate in measured.items()}
    first = {name: guess[:, 0].tolist() for name, guess in guesses.items()}
    write_json(folder / GUESSES, {"lengths": lengths.tolist(), "truth": truth.tolist(), "guesses": first})
    bound = certified_alone(method, truth, lengths) if attacker.single else None
    for name in guesses:
        check_certified(f"{name} on {setting.label}", metrics[f"{name}/top-1"], bound)
    return Outcome(metrics=metrics, details={"setting": asdict(setting)})
