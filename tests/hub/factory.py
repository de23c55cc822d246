"""A small front-end worth publishing, and made-up results of it."""

from collections.abc import Callable
from typing import Any

import torch

from del_lightning.codec import pca_codec
from del_lightning.data import Batch, Example, collate
from del_lightning.llm import FrozenLLM
from del_lightning.methods import DEL
from del_lightning.prompt import SoftPrompt
from del_lightning.report.schema import Leaderboard, LeaderboardRow
from del_lightning.split import SplitModel
from tests.report.factory import make_board, row

BITS, DIM, MU, VIRTUAL, PREFIX, TOKENS = 3, 4, 30.0, 5, 'Go on, "quietly" ✎:\n\n', 61


def make_split(
    tiny_llm: Callable[..., FrozenLLM], name: str = "tiny-llama", l2_clip: float | None = None
) -> SplitModel:
    """DEL with a soft prompt in front of a random Llama."""
    llm = tiny_llm(hidden=32)
    llm = FrozenLLM(llm.model, llm.tokenizer, name)
    table, weights = llm.embedding_table(), torch.ones(llm.vocab_size)
    codec = pca_codec(table, weights, DIM)
    codec.calibrate_bound(table, weights, 0.95)
    noise = torch.randn(VIRTUAL, 32, generator=torch.Generator().manual_seed(5))
    front = DEL(table, codec, bits=BITS, mu=MU, l2_clip=l2_clip)
    return SplitModel(llm, front, SoftPrompt(noise * table.std()), PREFIX).eval()


def own_row(split: SplitModel, soft_prompt: bool = True, **changes: Any) -> LeaderboardRow:
    """The front-end's row of a leaderboard."""
    assert split.method is not None
    values = {
        "value": MU,
        "privacy": split.method.statement(TOKENS).columns(),
        "virtual_tokens": VIRTUAL if soft_prompt else None,
    }
    return row(0.1, soft_prompt, **{**values, **changes})


def board_of(split: SplitModel, **changes: Any) -> Leaderboard:
    """A leaderboard with three controls, this front-end and another one."""
    controls = [row(name, soft) for name in ("clean", "mean", "projection") for soft in (False, True)]
    ours = [own_row(split, soft) for soft in (False, True)]
    return make_board(**{"model": split.llm.name, "rows": [*controls, *ours, row(0.02, True)], **changes})


def batch_of() -> Batch:
    """Two prompts of different lengths."""
    examples = [
        Example(range(10, 13), range(30, 34), range(50, 55), 4),
        Example(range(60, 63), range(80, 91), range(110, 113), 7),
    ]
    return collate(examples, pad_id=0)
