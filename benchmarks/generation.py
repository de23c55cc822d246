"""Is batched generation worth it? SplitModel in batches against one prompt at a time.

Both run the same path: left padding, soft prompt in front, KV cache, greedy. Every prompt gets the same number of new
tokens (the end token is forbidden), so a batch never waits for its longest member and tokens/s are comparable. The
tokens themselves are compared as well: in float32 they should be the same, but the sums inside a batch run in another
order, and a near tie may then fall the other way; from that token on, two continuations differ.

    python benchmarks/generation.py        about three minutes on two cores

Writes ``results/generation.json``.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import RESULTS, show, spread, worth_running, write_result

if TYPE_CHECKING:
    from rich.table import Table

    from del_lightning.data import Batch
    from del_lightning.split import SplitModel

LEAST_RATIO = 4.0
INIT_TEXT = "The inputs are abrupted by the noise and you should try to recover them and generate the next token."

Tokens = dict[int, list[int]]
"""Number of the prompt -> its continuation."""


@dataclass(frozen=True)
class Case:
    """One setting.

    Attributes:
        dtype: float32 or bfloat16.
        batch_sizes: The first one is what the others are compared with.
        stated: Batch size at which the demand is checked.
        prompts: Prompts, of different lengths.
        turns: Turns that the prompts are dealt out over; a batch too large for that runs whole in every turn.
    """

    dtype: str
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    stated: int = 32
    model: str = "smollm2-135m-instruct"
    prompts: int = 32
    new_tokens: int = 32
    virtual_tokens: int = 20
    turns: int = 4


CASES = (Case("float32"), Case("bfloat16"))


def generate(split: "SplitModel", batches: "Sequence[Batch]", new_tokens: int) -> Tokens:
    """Greedy continuations of exactly ``new_tokens`` tokens; what ``SplitModel.generate`` does, at a fixed length."""
    tokens: Tokens = {}
    for batch in batches:
        batch = batch.to(split.llm.device)
        embeddings, mask = split.prepend_prompt(split.embed(batch, None), batch.attention_mask)
        rows = split.llm.generate(embeddings, mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        tokens |= dict(zip(batch.index.tolist(), rows, strict=True))
    return tokens


def load(case: Case) -> "tuple[SplitModel, dict[int, list[Batch]]]":
    """The model behind a soft prompt, and the prompts of the Lee corpus in batches of every size."""
    import torch

    from del_lightning.config import DataConfig, ModelConfig
    from del_lightning.data import GenerationDataModule, load_corpus
    from del_lightning.loading import load_llm
    from del_lightning.prompt import SoftPrompt
    from del_lightning.split import SplitModel

    llm = load_llm(ModelConfig(name=case.model, dtype=case.dtype)).to("cuda" if torch.cuda.is_available() else "cpu")
    config = DataConfig(name="lee", min_words=48, prompt_words=24, max_prompts=case.prompts)
    data = GenerationDataModule(load_corpus("lee"), llm.tokenizer, config, batch_size=1, seed=0)
    split = SplitModel(llm, prompt=SoftPrompt.from_text(INIT_TEXT, case.virtual_tokens, llm)).eval()
    return split, {size: data.generation_batches(size) for size in case.batch_sizes}


def measure(
    split: "SplitModel", batches: "dict[int, list[Batch]]", case: Case
) -> tuple[dict[int, Any], dict[int, Tokens]]:
    """Tokens/s of every turn and all tokens, by batch size. The order turns round each time."""
    speeds: dict[int, list[float]] = {size: [] for size in batches}
    tokens: dict[int, Tokens] = {size: {} for size in batches}
    for size in batches:  # warm-up
        generate(split, batches[size][:1], 2)
    for turn in range(case.turns):
        for size in list(batches)[:: 1 if turn % 2 == 0 else -1]:
            mine = batches[size][turn :: case.turns] or batches[size]
            start = time.perf_counter()
            made = generate(split, mine, case.new_tokens)
            speeds[size].append(sum(map(len, made.values())) / (time.perf_counter() - start))
            tokens[size] |= made
    return {size: spread(values) for size, values in speeds.items()}, tokens


def agreement(tokens: Tokens, reference: Tokens) -> dict[str, float]:
    """How far continuations agree: share of prompts with equal tokens, share of tokens before the first difference."""
    assert tokens.keys() == reference.keys()
    equal = [_equal_start(tokens[index], reference[index]) for index in reference]
    length = [len(row) for row in reference.values()]
    whole = sum(a == b for a, b in zip(equal, length, strict=True))
    return {"prompts": whole / len(reference), "tokens": sum(equal) / sum(length)}


def _equal_start(row: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(row, other, strict=True))
    return next((place for place, (a, b) in pairs if a != b), len(row))


def run_case(case: Case) -> dict[str, Any]:
    """All batch sizes of a case."""
    split, batches = load(case)
    speeds, tokens = measure(split, batches, case)
    alone = case.batch_sizes[0]
    rows = {
        size: {
            "tokens_per_second": speeds[size],
            "ratio": spread(a / b for a, b in zip(speeds[size]["repeats"], speeds[alone]["repeats"], strict=True)),
            "agreement": agreement(tokens[size], tokens[alone]),
        }
        for size in case.batch_sizes
    }
    return {
        "case": asdict(case),
        "batch_sizes": rows,
        "fast_enough": rows[case.stated]["ratio"]["median"] >= LEAST_RATIO,
    }


def main(cases: Sequence[Case] = CASES, path: Path = RESULTS / "generation.json") -> None:
    """Run the cases, print each, write them all."""
    from rich import print as rprint

    results = []
    for case in worth_running(cases):
        results.append(run_case(case))
        rprint(_table(results[-1]))
    demand = f"at least {LEAST_RATIO:g} times the tokens/s of one prompt at a time at the stated batch size"
    write_result(path, {"demand": demand, "results": results})


def _table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(title=f"Greedy generation: {result['case']['dtype']}", caption="median (range of turns)")
    for column in ("batch", "tokens/s", "speed of batch 1", "equal prompts", "equal tokens"):
        table.add_column(column, justify="right")
    for size, row in result["batch_sizes"].items():
        shares = (f"{row['agreement'][part]:.0%}" for part in ("prompts", "tokens"))
        table.add_row(str(size), show(row["tokens_per_second"], ".0f"), show(row["ratio"], ".1f"), *shares)
    return table


if __name__ == "__main__":
    main()
