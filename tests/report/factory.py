"""Made-up results in the shape of real ones. No number or sentence here was measured or taken from a data set."""

import math
from dataclasses import asdict
from typing import Any

from del_lightning.config import Config
from del_lightning.report.schema import (
    Calibration,
    CommunicationColumns,
    Environment,
    Estimate,
    Leaderboard,
    LeaderboardRow,
    PrivacyColumns,
    Sample,
    TrainingCurve,
)

WIDTH, CODE, BITS, VOCABULARY_BITS = 576, 18, 4, 16
SETTINGS = {
    # target: mu, mu_eff, eps a token, eps a prompt, nearest-neighbour ASR, Bayes-optimal ASR
    0.02: (9.8, 9.6, 82.9, 5210.0, 0.021, 0.071),
    0.1: (21.4, 19.1, 231.0, 16900.0, 0.098, 0.262),
}
LABELS = {"clean": "Clean prompt", "mean": "Mean embedding", "projection": "Projection, no noise"}
PPL = {  # without and with a soft prompt
    "clean": (25.4, 22.5),
    "mean": (636.0, 59.3),
    "projection": (88.1, 41.0),
    0.02: (402.0, 58.1),
    0.1: (133.0, 53.2),
}


def estimate(value: float, *, n: int = 96, spread: float = 0.06) -> Estimate:
    width = max(abs(value) * spread, 0.004)
    return Estimate(value=value, n=n, low=value - width, high=value + 1.15 * width, interval="bootstrap")


def rate(value: float, n: int = 4812) -> Estimate:
    margin = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / n)
    low, high = max(0.0, value - margin), min(1.0, value + margin)
    return Estimate(value=value, n=n, low=low, high=high, interval="clopper-pearson")


def success(nearest: float, optimal: float) -> dict[str, Estimate]:
    return {"nearest neighbour (cosine)": rate(nearest), "Bayes-optimal": rate(optimal)}


def sent(bits: float) -> CommunicationColumns:
    full = 32.0 * WIDTH
    ratio = full / bits if bits else math.inf
    return CommunicationColumns(bits_per_token=bits, ratio_fp32=ratio, ratio_fp16=ratio / 2)


def row(name: str | float, soft_prompt: bool, **changes: Any) -> LeaderboardRow:
    """A control by its name, or DEL by its target."""
    perplexity = PPL[name][soft_prompt]
    retained = math.log(59.3 / perplexity) / math.log(59.3 / 22.5)
    common = {
        "soft_prompt": soft_prompt,
        "virtual_tokens": 20 if soft_prompt else None,
        "prompt_steps": 150 if soft_prompt else None,
        "perplexity": estimate(perplexity),
        "coherence": estimate(0.75 - 0.09 * math.log(perplexity)),
        "agreement": rate(min(1.0, 22 / perplexity), n=9216),
        "retained": estimate(retained, spread=0.5) if soft_prompt else None,
    }
    specific = _control(name) if isinstance(name, str) else _del(name)
    return LeaderboardRow(**{**common, **specific, **changes})


def _control(name: str) -> dict[str, Any]:
    hits = {"clean": (1.0, 1.0), "mean": (0.0, 0.048), "projection": (0.981, 0.999)}[name]
    bits = {"clean": VOCABULARY_BITS, "mean": 0, "projection": 32 * CODE}[name]
    nothing_sent = name == "mean"
    privacy = PrivacyColumns(
        mechanism=name,
        parameters={},
        mu_token=0.0 if nothing_sent else None,
        mu_effective=0.0 if nothing_sent else None,
        epsilon_token=0.0 if nothing_sent else None,
        epsilon_sequence=0.0 if nothing_sent else None,
        delta=1e-5 if nothing_sent else None,
        sequence_tokens=61 if nothing_sent else None,
        caveat="the number of private tokens is visible" if nothing_sent else "the server reads the prompt",
    )
    return {
        "method": name,
        "label": LABELS[name],
        "is_control": True,
        "asr": success(*hits),
        "privacy": privacy,
        "communication": sent(bits),
    }


def _del(target: float) -> dict[str, Any]:
    mu, effective, token, sequence, nearest, optimal = SETTINGS[target]
    privacy = PrivacyColumns(
        mechanism=f"stochastic {BITS}-bit quantizer",
        parameters={"mu": mu, "bits": BITS, "dim": CODE},
        mu_token=mu,
        mu_effective=effective,
        epsilon_token=token,
        epsilon_sequence=sequence,
        delta=1e-5,
        sequence_tokens=61,
        paper_bound_vacuous=True,
        caveat="made-up caveat",
    )
    return {
        "method": "del",
        "label": f"DEL, ASR {target:g}",
        "is_control": False,
        "target": target,
        "asr": success(nearest, optimal),
        "privacy": privacy,
        "communication": sent(BITS * CODE),
        "clipped_share": 0.104,
    }


def calibration(target: float) -> Calibration:
    mu, *_, nearest, _ = SETTINGS[target]
    tried = [0.1 * (1000 / 0.1) ** (i / 9) for i in range(10)] + [mu * 0.93, mu * 1.08, mu]
    evidence = []
    for value in tried:
        found = rate(min(0.45, 0.021 * (value / 9.8) ** 1.972), 2000)
        evidence.append(
            {"mu": value, "hits": round(found.value * 2000), "n": 2000, "low": found.low, "high": found.high}
        )
    return Calibration(target=target, mu=mu, reached=True, note="", asr=rate(nearest, 2000), evidence=evidence)


def curve(name: str, start: float, end: float, steps: int = 150) -> TrainingCurve:
    history = []
    for i in range(11):
        history.append({"step": i * steps / 10, "val/perplexity": end + (start - end) * math.exp(-0.55 * i) + 0.1 * i})
        history.append({"step": i * steps / 10 + 1, "train/loss": math.log(start)})
    return TrainingCurve(name=name, history=history)


def make_board(**changes: Any) -> Leaderboard:
    """A full leaderboard: three controls and DEL at two targets, each without and with a soft prompt."""
    names: tuple[str | float, ...] = ("clean", "mean", "projection", *SETTINGS)
    config = asdict(Config())
    config["data"]["name"] = "wikitext2"
    config["targets"] = list(SETTINGS)
    config["prompt"]["init_text"] = 'Say "recover", it\'s noisy'
    values = {
        "title": "Test data: a made-up leaderboard",
        "schedule": "made-up schedule, 150 steps",
        "dataset": "made-up corpus",
        "model": "made-up-135m",
        "encoder": "all-minilm-l6-v2",
        "prompts": 96,
        "private_tokens": 5856,
        "seeds": [0, 1],
        "rows": [row(name, soft_prompt) for name in names for soft_prompt in (False, True)],
        "calibrations": [calibration(target) for target in SETTINGS],
        "curves": [
            curve("codec", 180, 61, 400),
            curve("soft prompt, Clean prompt", 26, 22.5),
            curve("soft prompt, Mean embedding", 610, 59.3),
            curve("soft prompt, Projection, no noise", 92, 41),
            curve("soft prompt, DEL, ASR 0.02", 390, 58.1),
            curve("soft prompt, DEL, ASR 0.1", 140, 53.2),
        ],
        "notes": ["These numbers are made up."],
        "config": config,
        "environment": Environment(
            revision="0123456789abcdef0123456789abcdef01234567",
            dirty=True,
            python="3.11.0",
            platform="Linux x86_64",
            processor="made-up processor",
            cores=2,
            memory_gib=15.6,
            accelerator=None,
            packages={"torch": "2.13.0", "lightning": "2.6.6"},
        ),
        "wall_seconds": 692.0,
        "generated": "2026-01-01T00:00:00+00:00",
    }
    return Leaderboard(**{**values, **changes})


def make_samples(board: Leaderboard) -> list[Sample]:
    """Two prompts with a hostile and a long continuation among them."""
    text = "The made-up harbour was quiet that week and the made-up boats stayed in, as nobody had called. "
    names = [item.label + (" + soft prompt" if item.soft_prompt else "") for item in board.rows]
    continuations = {name: f"({name}) " + text * (1 + i % 3) for i, name in enumerate(names)}
    hostile = {
        **continuations,
        names[0]: "<script>alert('read me')</script>\u202e & </p><img src=http://example.com/x>",
    }
    prompt = "Once upon a made-up time there was a prompt of a few words which stood in for private text"
    return [
        Sample(prompt=prompt, reference=text, continuations=continuations),
        Sample(prompt="<b>second</b> prompt", reference=text, continuations=hostile),
    ]
