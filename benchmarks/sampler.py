"""How fast is the simulation sampler beside m Bernoulli draws and torch.binomial, and what does a training step pay?

Codes of random inputs at the paper's calibration (mu 10, d 18), one thread. Turns alternate and are equally long, so
that whatever else the machine does hits all samplers alike; processor time is counted, and medians are compared. The
share of a training step is that of a batch's draws in a step measured on the packaged model.

    python benchmarks/sampler.py        about a minute on one core

Writes ``results/sampler.json``.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _common import RESULTS, show, spread, write_result
from torch import Tensor

from del_lightning.config import ModelConfig
from del_lightning.loading import load_llm
from del_lightning.privacy import SecureSampler, StochasticQuantizer

MU, DIM, BOUND = 10.0, 18, 0.05
COORDINATES = 147_456
"""A training batch: 8 blocks of 1,024 tokens."""
TURNS, TURN_SECONDS = 9, 0.25
LEAST_SPEEDUP = {4: 5.0, 8: 50.0}
MOST_SHARE = 0.01
BATCH, TOKENS, VIRTUAL = 8, 96, 20
"""The training step that draws are compared with, all of its tokens private; short, which is hard on the sampler."""


def naive(quantizer: StochasticQuantizer, v: Tensor, generator: torch.Generator) -> Tensor:
    """K as the sum of m comparisons, one trial at a time."""
    chance = 0.5 + v.clamp(-BOUND, BOUND) / (2 * quantizer.amplitude)
    codes = torch.zeros(v.shape, dtype=torch.uint8)
    draw = torch.empty_like(chance)
    for _ in range(quantizer.levels):
        codes += torch.rand(v.shape, generator=generator, out=draw) < chance
    return codes


def torch_binomial(quantizer: StochasticQuantizer, v: Tensor, generator: torch.Generator) -> Tensor:
    """K from torch's own sampler."""
    chance = 0.5 + v.clamp(-BOUND, BOUND) / (2 * quantizer.amplitude)
    return torch.binomial(torch.full_like(chance, quantizer.levels), chance, generator=generator).to(torch.uint8)


def seconds(work: Callable[[], object], calls: int = 1) -> float:
    """Processor time of one call, the mean over ``calls``."""
    start = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - start) / calls


def compare(bits: int) -> dict[str, Any]:
    """Nanoseconds a coordinate of every sampler at one number of bits."""
    quantizer = StochasticQuantizer.from_mu(MU, DIM, bits, BOUND)
    secure = SecureSampler(bits, BOUND, MU, DIM)
    generator = torch.Generator().manual_seed(0)
    v = BOUND * (2 * torch.rand(COORDINATES // DIM, DIM, generator=generator) - 1)
    work: dict[str, Callable[[], object]] = {
        "ours": lambda: quantizer.encode(v, generator),
        "naive": lambda: naive(quantizer, v, generator),
        "torch.binomial": lambda: torch_binomial(quantizer, v, generator),
        "secure (client)": lambda: secure.encode(v.numpy()),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():  # builds tables
        call()
    calls = {name: 1 + int(TURN_SECONDS / max(seconds(call), 1e-6)) for name, call in work.items()}
    for _ in range(TURNS):
        for name, call in work.items():
            times[name].append(1e9 * seconds(call, calls[name]) / v.numel())
    speedup = [slow / fast for slow, fast in zip(times["naive"], times["ours"], strict=True)]
    least = LEAST_SPEEDUP.get(bits)
    return {
        "case": {"bits": bits, "mu": MU, "dim": DIM, "coordinates": COORDINATES},
        "nanoseconds": {name: spread(values) for name, values in times.items()},
        "ratio": spread(speedup),
        "fast_enough": None if least is None else median(speedup) >= least,
    }


def training_step() -> float:
    """Seconds of one forward and backward pass to a soft prompt, median of three after a warm-up."""
    llm = load_llm(ModelConfig())
    prompt = torch.zeros(VIRTUAL, llm.hidden_size, requires_grad=True)
    ids = torch.randint(0, llm.vocab_size, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    embedded = torch.cat([torch.zeros(BATCH, VIRTUAL, llm.hidden_size), llm.embed(ids)], dim=1)
    mask = torch.ones(embedded.shape[:2], dtype=torch.bool)

    def step() -> None:
        inputs = torch.cat([prompt.expand(BATCH, -1, -1), embedded[:, VIRTUAL:]], dim=1)
        llm.logits(inputs, mask, mask).logsumexp(-1).mean().backward()

    return median([seconds(step) for _ in range(4)][1:])


def main(path: Path = RESULTS / "sampler.json") -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    cases = [compare(bits) for bits in (1, 2, 4, 8)]
    for case in cases:
        figures = ", ".join(f"{name} {show(value, '.1f')}" for name, value in case["nanoseconds"].items())
        bits, ratio = case["case"]["bits"], show(case["ratio"], ".1f")
        print(f"{bits} bits, ns a coordinate: {figures}; {ratio} times the naive speed")
        if case["fast_enough"] is False:
            print(f"  below the {LEAST_SPEEDUP[bits]:g} times that are asked for")
    step = training_step()
    slowest = max(case["nanoseconds"]["ours"]["median"] for case in cases)
    share = slowest * 1e-9 * BATCH * TOKENS * DIM / step
    print(f"at most {share:.3%} of a training step of {step:.2f} s")
    demand = ", ".join(f"{least:g} times the naive loop at {bits} bits" for bits, least in LEAST_SPEEDUP.items())
    result = {
        "demand": f"{demand}; below {MOST_SHARE:.0%} of a training step",
        "results": cases,
        "training_step": {"seconds": step, "tokens": BATCH * TOKENS, "share": share, "fast_enough": share < MOST_SHARE},
    }
    write_result(path, result)


if __name__ == "__main__":
    main()
