"""Noise is fresh: no two ranks, steps, purposes or seeds ever draw the same."""

from itertools import product
from unittest.mock import PropertyMock, patch

import torch

from del_lightning.config import PromptConfig
from del_lightning.llm import FrozenLLM
from del_lightning.modules import PromptTuning
from tests.modules.factory import split_for

RANKS, STEPS = range(8), range(100)


def test_no_two_streams_are_the_same(tiny_llm) -> None:  # type: ignore[no-untyped-def]
    llm: FrozenLLM = tiny_llm()
    modules = [PromptTuning(split_for(llm), PromptConfig(virtual_tokens=3, steps=1), seed=seed) for seed in (0, 1)]
    seen: dict[int, tuple[int, str, int, int]] = {}
    for module, rank in product(modules, RANKS):
        with patch.object(PromptTuning, "global_rank", PropertyMock(return_value=rank)):
            for purpose, step in product(("train", "validation"), STEPS):
                first = int(torch.randint(1 << 62, (1,), generator=module.noise(purpose, step)))
                place = (module.seed, purpose, step, rank)
                assert seen.setdefault(first, place) == place
    assert len(seen) == len(modules) * len(RANKS) * 2 * len(STEPS)


def test_a_stream_is_the_same_when_a_step_is_repeated(tiny_llm) -> None:  # type: ignore[no-untyped-def]
    module = PromptTuning(split_for(tiny_llm()), PromptConfig(virtual_tokens=3, steps=1), seed=0)
    one, other = (torch.rand(3, generator=module.noise("train", 7)) for _ in range(2))
    assert torch.equal(one, other)
