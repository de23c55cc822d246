"""Made-up results in the shape of real ones. No number or sentence here was measured or taken from a data set."""

import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from del_lightning.config import Config
from del_lightning.report.schema import (
    AttackCurve,
    AttackDifference,
    AttackedSetting,
    Calibration,
    CommunicationColumns,
    CurvePoint,
    DeviceColumns,
    Environment,
    Estimate,
    GalleryLevel,
    GalleryPrompt,
    Leaderboard,
    LeaderboardRow,
    MethodCalibration,
    PairedDifference,
    PrivacyColumns,
    Reading,
    Sample,
    TrainingCurve,
)

NEAREST, OPTIMAL = "nearest neighbour (cosine)", "Bayes-optimal"
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


def success(nearest: float, optimal: float, n: int = 4812) -> dict[str, Estimate]:
    return {NEAREST: rate(nearest, n), OPTIMAL: rate(optimal, n)}


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
        "device": DeviceColumns(parameters=0, bytes=0, note="nothing but the tokenizer" if name == "clean" else ""),
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
        "parameter": "mu",
        "value": mu,
        "target": target,
        "matching": "nearest",
        "asr": success(nearest, optimal),
        "certified": 0.9991,
        "privacy": privacy,
        "communication": sent(BITS * CODE),
        "device": device(49152 * CODE, 0.4),
        "clipped_share": 0.104,
    }


def device(parameters: int, milliseconds: float, note: str = "") -> DeviceColumns:
    time = estimate(milliseconds, n=20)
    return DeviceColumns(parameters=parameters, bytes=4 * parameters, milliseconds=time, note=note)


def calibration(
    method: str = "del", label: str = "DEL", parameter: str = "mu", scale: float = 1.0
) -> MethodCalibration:
    """Found under both matchings; larger ``scale``: the same success at larger values of the parameter."""

    def rates(value: float, n: int) -> dict[str, Estimate]:
        nearest = 0.021 * (value / scale / 9.8) ** 1.972
        return success(min(0.45, nearest), min(0.99, 0.048 + 2.2 * nearest), n)

    def found(target: float, factor: float, attacks: list[str]) -> Calibration:
        value = SETTINGS[target][0] * scale * factor
        asr = max((rates(value, 2000)[name] for name in attacks), key=lambda rate: rate.value)
        note = "the loosest setting tried that meets the target"
        return Calibration(target=target, attacks=attacks, value=value, reached=True, note=note, asr=asr)

    tried = [mu * factor * scale for mu, *_ in SETTINGS.values() for factor in (0.6, 0.93, 1.0, 1.08)]
    return MethodCalibration(
        method=method,
        label=label,
        parameter=parameter,
        found={
            "nearest": [found(target, 1.0, [NEAREST]) for target in SETTINGS],
            "worst": [found(target, 0.6, [NEAREST, OPTIMAL]) for target in SETTINGS],
        },
        outline=[CurvePoint(value=v, asr=rates(v, 500)) for v in (0.1 * scale * 10 ** (i / 3) for i in range(13))],
        points=[CurvePoint(value=value, asr=rates(value, 2000)) for value in sorted(tried)],
    )


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
        "calibrations": [calibration()],
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


METRIC = "metric privacy at eta {:.4g} for a unit of L2 distance; far-apart tokens are barely protected"
AUTHORS = "epsilon {:.4g} holds within a made-up set of candidates only"
OTHERS = {
    # method: (name, parameter, bits, caveat, R at ASR 0.1, soft prompt)
    "gaussian-code": ("Gaussian on the code", "mu", 576, "", 0.098, True),
    "gaussian-code-4bit": ("Gaussian on the code, 4 bits", "mu", 72, "", 0.094, True),
    "gaussian": ("Gaussian on the embedding", "mu", 18432, "", 0.131, True),
    "gaussian-4bit": ("Gaussian on the embedding, 4 bits", "mu", 2304, "", 0.127, True),
    "metric": ("Metric-DP", "eta", 18432, METRIC, 0.142, True),
    "metric-snd": ("Metric-DP as released by SnD", "eta", 18432, METRIC, 0.065, True),
    "dp-forward": ("DP-Forward", "epsilon", 18432, "of a whole sequence: epsilon {:.4g}, made up", 0.118, True),
    "dp-forward-released": ("DP-Forward as released", "epsilon", 18432, "a made-up sensitivity", 0.12, True),
    "santext": ("SANTEXT", "epsilon", 16, "made-up metric privacy at {:.4g}", 0.17, False),
    "santext-plus": ("SANTEXT+", "epsilon", 16, "words outside a made-up list stay as they are", 0.21, False),
    "custext": ("CUSTEXT", "epsilon", 16, AUTHORS, 0.15, False),
    "custext-plus": ("CUSTEXT+", "epsilon", 16, AUTHORS, 0.19, False),
    "rantext": ("RANTEXT", "epsilon", 16, "the candidates depend on the token, made up", 0.11, False),
    "inferdpt": ("InferDPT", "epsilon", 16, "the candidates depend on the token, made up", None, False),
}
WHERE = {"nearest": "ASR", "worst": "worst ASR", "guarantee": "DEL's guarantee at ASR"}
SCALE = {"mu": 1.3, "eta": 9.0, "epsilon": 0.8}


def other_row(method: str, matching: str, target: float, soft_prompt: bool, **changes: Any) -> LeaderboardRow:
    """A method besides DEL, at a made-up setting."""
    name, parameter, bits, caveat, at_tenth, _ = OTHERS[method]
    strictness = {"nearest": 1.0, "worst": 0.55, "guarantee": 1.2}[matching]
    nearest = target * strictness * 0.97
    value = SCALE[parameter] * (SETTINGS[0.1][0] if matching == "guarantee" else 70 * nearest**0.51)
    retained = None if at_tenth is None else at_tenth * (nearest / 0.1) ** 0.4
    # R is defined by the log of PPL; without a soft prompt all are far worse.
    ppl = None if retained is None else 59.3 * math.exp(-retained * math.log(59.3 / 22.5)) * (1 if soft_prompt else 3.1)
    gap = None if retained is None else 0.97 * (0.112 * (target * strictness / 0.1) ** 0.4 - retained)
    suite = {
        **success(nearest, min(1.0, 0.05 + 2.1 * nearest)),
        "LM prior, sequence": rate(min(1.0, 0.05 + 2.5 * nearest), 1220),
        "LM prior, marginals": rate(min(1.0, 0.05 + 2.6 * nearest), 1220),
        "trained inverter": rate(min(1.0, 0.04 + 1.9 * nearest), 1220),
    }
    values = {
        "method": method,
        "label": f"{name}, {WHERE[matching]} {target:g}",
        "is_control": False,
        "parameter": parameter,
        "value": value,
        "target": target,
        "matching": matching,
        "soft_prompt": soft_prompt,
        "virtual_tokens": 20 if soft_prompt else None,
        "prompt_steps": 150 if soft_prompt else None,
        "perplexity": None if ppl is None else estimate(ppl),
        "coherence": estimate(0.42 if ppl is None else 0.75 - 0.09 * math.log(ppl)),
        "agreement": None if ppl is None else rate(min(1.0, 22 / ppl), n=9216),
        "retained": estimate(retained, spread=0.4) if soft_prompt and retained is not None else None,
        "difference": None if gap is None else PairedDifference(nll=noisy(gap), coherence=noisy(-0.2 * gap)),
        "asr": suite,
        "certified": 0.6 + 0.3 * nearest if parameter == "mu" else None,
        "privacy": other_privacy(parameter, value, caveat.format(value)),
        "communication": sent(bits),
        "device": device(
            49152 * WIDTH if bits > 600 else 49152 * CODE, 1.7, "the embedding table" if bits > 600 else ""
        ),
    }
    return LeaderboardRow(**{**values, **changes})


def noisy(value: float) -> Estimate:
    return Estimate(value=value, n=96, low=value - 0.02, high=value + 0.021, interval="bootstrap")


def other_privacy(parameter: str, value: float, caveat: str) -> PrivacyColumns:
    known = parameter != "eta"
    return PrivacyColumns(
        mechanism=f"made-up mechanism of {parameter}",
        parameters={parameter: value},
        mu_token=value if parameter == "mu" else None,
        mu_effective=value if parameter == "mu" else None,
        epsilon_token=(9 * value if parameter == "mu" else value) if known else None,
        epsilon_sequence=(540 * value if parameter == "mu" else 61 * value) if known else None,
        delta=1e-5 if parameter == "mu" else (0.0 if known else None),
        sequence_tokens=61 if known else None,
        caveat=caveat,
    )


def reference_row(matching: str, target: float, soft_prompt: bool) -> LeaderboardRow:
    """DEL at a target that the small board need not have."""
    near = min(SETTINGS, key=lambda known: abs(known - target))
    small = row(near, soft_prompt)
    strictness = 1.0 if matching == "nearest" else 0.55
    nearest = target * strictness * 0.98
    retained = 0.112 * (nearest / 0.1) ** 0.4
    ppl = 59.3 * math.exp(-retained * math.log(59.3 / 22.5)) * (1 if soft_prompt else 2.6)
    suite = other_row("gaussian-code", matching, target, soft_prompt).asr
    value = 70 * nearest**0.51
    privacy = small.privacy.model_copy(
        update={
            "mu_token": value,
            "mu_effective": 0.93 * value,
            "epsilon_token": 10 * value,
            "epsilon_sequence": 540 * value,
        }
    )
    changes = {
        "label": f"DEL, {WHERE[matching]} {target:g}",
        "value": value,
        "target": target,
        "matching": matching,
        "perplexity": estimate(ppl),
        "retained": estimate(retained, spread=0.4) if soft_prompt else None,
        "asr": suite,
        "privacy": privacy,
    }
    return small.model_copy(update=changes)


def make_large_board(**changes: Any) -> Leaderboard:
    """Controls, DEL and 14 other methods at three targets under every matching."""
    targets = (0.02, 0.1, 0.15)
    rows = [row(name, soft) for name in LABELS for soft in (False, True)]
    for matching in ("nearest", "worst", "guarantee"):
        for target in targets:
            for soft in (False, True):
                if matching != "guarantee":
                    rows.append(reference_row(matching, target, soft))
                for method, (_, parameter, *_, prompted) in OTHERS.items():
                    if soft <= prompted and (matching != "guarantee" or parameter == "mu"):
                        rows.append(other_row(method, matching, target, soft))
    calibrations = [calibration()]
    for method, (name, parameter, *_) in OTHERS.items():
        calibrations.append(calibration(method, name, parameter, SCALE[parameter]))
    calibrations[-1].found["worst"][0].reached = False
    calibrations[-1].found["worst"][0].note = "made-up target out of reach"
    labels = [item.label for item in rows if item.soft_prompt]
    curves = [curve("codec", 180, 61, 400), *(curve(f"soft prompt, {label}", 140, 53.2) for label in labels)]
    board = make_board(rows=rows, calibrations=calibrations, curves=curves, title="Test data: many made-up methods")
    board.config["matching"] = ["nearest", "worst", "guarantee"]
    return board.model_copy(update=changes)


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


STRENGTH = {
    # Attack: mu at which it reads half of the tokens.
    NEAREST: 90.0,
    "nearest neighbour (l2)": 85.0,
    "nearest neighbour (code)": 60.0,
    OPTIMAL: 42.0,
    "LM prior, sequence": 27.0,
    "LM prior, marginals": 25.0,
    "input inference": 110.0,
    "trained inverter": 35.0,
}


def attack_curve(method: str = "del", label: str = "DEL") -> AttackCurve:
    """Success of eight attacks at nine values of mu, and a bound that soon says nothing."""
    values = [0.3 * 2.2**i for i in range(9)]
    points = [
        CurvePoint(
            value=mu, asr={name: rate(0.05 + 0.93 / (1 + (half / mu) ** 1.5)) for name, half in STRENGTH.items()}
        )
        for mu in values
    ]
    certified = [min(1.0, 0.06 + 0.25 * mu) for mu in values]
    return AttackCurve(method=method, label=label, parameter="mu", points=points, certified=[*certified])


def attacked(label: str, nearest: float, optimal: float, contextual: float | None) -> AttackedSetting:
    """DEL under two attacks or three, with the differences between them."""
    names = ["nearest neighbour (cosine)", "Bayes-optimal", "LM prior, marginals"]
    rates = {
        name: rate(value)
        for name, value in zip(names, (nearest, optimal, contextual), strict=True)
        if value is not None
    }
    differences = [
        AttackDifference(
            stronger=strong,
            weaker=weak,
            difference=Estimate(value=gain, n=64, low=gain - 0.01, high=gain + 0.01, interval="bootstrap"),
        )
        for weak, strong in pairwise(rates)
        for gain in [rates[strong].value - rates[weak].value]
    ]
    privacy = row(0.1, False).privacy
    return AttackedSetting(
        method="del", label=label, value=19.5, privacy=privacy, certified=0.41, asr=rates, differences=differences
    )


def make_gallery() -> list[GalleryPrompt]:
    """Two made-up prompts at three levels; the second is hostile."""
    texts = (
        "The harbour master of Invented Bay wrote that 1,312 boats had left before the storm , and none had come back "
        "when the lamp went out in the evening of 17 May 1903 . None in the town believed an unpronounceable story .",
        "<script>alert('read')</script> <b>bold</b> \u202ereversed &amp; \n\n end",
    )
    attacks = (NEAREST, OPTIMAL, "LM prior, marginals", "trained inverter")
    prompts = []
    for text in texts:
        tokens = [(" " if i else "") + part for i, part in enumerate(text.split(" "))]
        levels = []
        for place, target in enumerate((0.02, 0.1, 0.5)):
            readings = []
            for order, attack in enumerate(attacks):
                hits = [(7 * i + 3 * order) % 10 < 2 + 2 * place + order for i in range(len(tokens))]
                guesses = [token if hits[i] else f" guess{i % 13}" for i, token in enumerate(tokens)]
                readings.append(Reading(attack=attack, tokens=guesses, hits=hits))
            privacy = _del(min(target, 0.1))["privacy"]
            levels.append(GalleryLevel(label=f"DEL, ASR {target:g}", privacy=privacy, readings=readings))
        prompts.append(GalleryPrompt(tokens=tokens, levels=levels))
    return prompts
