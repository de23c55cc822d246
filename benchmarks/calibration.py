"""How much faster is calibration to three targets from one outlined curve than a bisection a target?

DEL on the packaged model (untrained codec, 4 bits), 2,000 tokens of the packaged corpus. The bisection is the usual
protocol: 15 halvings of ln mu for each target, each of them restoring all tokens and comparing them with the whole
vocabulary at the embeddings' width. Both attack with the nearest neighbour by cosine. Ours is timed a second time with
the Bayes-optimal attack and both matchings, which is what the calibrate stage does.

    python benchmarks/calibration.py        about three minutes on two cores

Writes ``results/calibration.json``.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from _common import RESULTS, show, spread, write_result
from torch import Tensor

from del_lightning.attacks import (
    Attack,
    BayesOptimal,
    NearestNeighbour,
    SuccessCurve,
    calibrate,
    log_prior,
    nearest_neighbour,
    outline,
)
from del_lightning.codec import default_dim, pca_codec
from del_lightning.config import DataConfig, ModelConfig
from del_lightning.data import GenerationDataModule, load_corpus
from del_lightning.loading import load_llm
from del_lightning.methods import DEL
from del_lightning.seeding import stream

TARGETS = (0.02, 0.1, 0.15)
TOKENS, BITS, HALVINGS, TURNS = 2000, 4, 15, 3
LEAST_SPEEDUP = 10.0

Success = Callable[[float], Tensor]


def bisection(success: Success, target: float, value_range: tuple[float, float]) -> float:
    """The usual search: halve ln mu, keep the side whose rate meets the target."""
    low, high = value_range
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if float(success(middle).double().mean()) <= target else (low, middle)
    return low


def separate(method: DEL, tokens: Tensor) -> list[float]:
    """One bisection a target, at the embeddings' width."""

    def success(mu: float) -> Tensor:
        front = method.at(mu)
        restored = front.restore(front.release(tokens[None], stream("calibrate")))[0]
        return nearest_neighbour(restored, front.embedding_table)[:, 0] == tokens

    return [bisection(success, target, method.parameter_range) for target in TARGETS]


def together(method: DEL, tokens: Tensor, attacks: Sequence[Attack], matchings: int) -> list[float]:
    """What the calibrate stage does: an outline on a quarter of the tokens, then a few measurements a target."""

    def curve(some: Tensor) -> SuccessCurve:
        def measure(mu: float) -> Mapping[str, Tensor]:
            front, found = method.at(mu), {}
            release = front.release(some[None], stream("calibrate"))
            for attack in attacks:
                guesses = attack(front, release, torch.tensor([len(some)]))
                found |= {name: guess[:, 0] == some for name, guess in guesses.items()}
            return found

        return SuccessCurve(measure)

    guide, full = curve(tokens[: len(tokens) // 4]), curve(tokens)
    outline(guide, method.parameter_range, 13)
    names = list(guide(guide.tried[0]))
    suites = [names[:1], names][:matchings]
    return [
        calibrate(full, target, attacks=suite, value_range=method.parameter_range, guide=guide).value
        for suite in suites
        for target in TARGETS
    ]


def main() -> None:
    """Measure, print, write."""
    llm = load_llm(ModelConfig())
    config = DataConfig(min_words=48, prompt_words=24)
    data = GenerationDataModule(load_corpus("lee", None), llm.tokenizer, config, batch_size=4, seed=0)
    counts = data.unigram_counts(llm.vocab_size)
    table = llm.embedding_table()
    codec = pca_codec(table, counts.float() + 1, default_dim(llm.hidden_size))
    codec.calibrate_bound(table, counts.float() + 1, 0.99)
    method = DEL(table, codec, bits=BITS, mu=10.0)
    tokens = data.private_tokens("validation", TOKENS, 0)
    nearest, bayes = NearestNeighbour(), BayesOptimal(log_prior(counts))
    work: dict[str, Callable[[], list[float]]] = {
        "a bisection a target": lambda: separate(method, tokens),
        "one curve": lambda: together(method, tokens, [nearest], 1),
        "one curve, both attacks and matchings": lambda: together(method, tokens, [nearest, bayes], 2),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    answers: dict[str, list[float]] = {}
    with torch.inference_mode():
        for turn in range(TURNS):
            for name, call in work.items() if turn % 2 == 0 else reversed(work.items()):
                start = time.perf_counter()
                answers[name] = call()
                times[name].append(time.perf_counter() - start)
                print(f"{name}: {times[name][-1]:.1f} s, mu {', '.join(f'{mu:.3g}' for mu in answers[name])}")
    slow, fast, _ = times.values()
    speedup = spread(s / f for s, f in zip(slow, fast, strict=True))
    print(f"one curve is {show(speedup, '.1f')} times as fast as a bisection a target")
    result: dict[str, Any] = {
        "setting": {"targets": TARGETS, "tokens": TOKENS, "bits": BITS, "halvings": HALVINGS, "turns": TURNS},
        "seconds": {name: spread(values) for name, values in times.items()},
        "mu": answers,
        "speedup": speedup,
        "least_speedup": LEAST_SPEEDUP,
        "fast_enough": speedup["median"] >= LEAST_SPEEDUP,
    }
    write_result(RESULTS / "calibration.json", result)


if __name__ == "__main__":
    main()
