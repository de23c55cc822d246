"""Is our soft-prompt training faster than PEFT's PromptTuning under the Hugging Face Trainer?

Same frozen model, same batches, same start of the soft prompt, same optimizer and schedule, same precision, and the
loss on the same continuation tokens; neither validates, logs or saves. A third line trains against DEL's noise, which
PEFT has nothing to compare with, to show what the noise costs.

    python benchmarks/prompt_training.py        about five minutes on two cores

Writes ``results/prompt_training.json``. Both losses stand in it: had the contenders not done the same work, they
would differ.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import RESULTS, Contender, Turns, peak_memory, show, spread, worth_running, write_result

if TYPE_CHECKING:
    from rich.table import Table

    # a contender imports nothing that only the other one needs: it would count as memory
    from del_lightning.data import Batch
    from del_lightning.llm import FrozenLLM

OURS, NOISY, PEFT = "ours", "ours + noise", "PEFT"
LEAST_RATIO = 1.3
LEARNING_RATE = 2e-2
GRADIENT_CLIP = 1.0
INIT_TEXT = "The inputs are abrupted by the noise and you should try to recover them and generate the next token."


@dataclass(frozen=True)
class Case:
    """One setting in which contenders meet.

    Attributes:
        name: What tables print.
        dtype: float32 or bfloat16: frozen weights and activations; the soft prompt is float32 for all.
        block_tokens: Length of a training block; the public instruction stands in front of it.
        split_ratio: Range of a block's private share; the loss is on the rest.
        contenders: Who takes part.
        steps: Training steps a turn.
    """

    name: str
    dtype: str
    block_tokens: int
    split_ratio: tuple[float, float]
    contenders: tuple[str, ...] = (OURS, PEFT)
    steps: int = 1
    model: str = "smollm2-135m-instruct"
    batch_size: int = 8
    virtual_tokens: int = 20
    warmup: int = 2
    turns: int = 5

    @property
    def total_steps(self) -> int:
        """Training steps of each contender."""
        return self.warmup + self.steps * self.turns


_QUICKSTART = {"block_tokens": 56, "split_ratio": (0.4, 0.7), "contenders": (OURS, NOISY, PEFT), "turns": 6}
_LONGER = {"block_tokens": 128, "split_ratio": (0.05, 0.5), "turns": 3}
CASES = (
    Case("quickstart, fp32", "float32", **_QUICKSTART),
    Case("quickstart, bf16", "bfloat16", **_QUICKSTART),
    Case("paper's split, blocks of 128, fp32", "float32", **_LONGER),
    Case("paper's split, blocks of 128, bf16", "bfloat16", **_LONGER),
)
"""``make quickstart``'s training shape, and a longer one cut as in the paper."""


# --- the contenders ----------------------------------------------------------------------------------------------


def train_ours(
    llm: "FrozenLLM",
    batches: "Sequence[Batch]",
    case: Case,
    step_done: Callable[[], None],
    *,
    noise: bool = False,
    devices: int = 1,
) -> float:
    """Train with our LightningModule, as ``stages/training.py`` does; returns the mean loss over this rank's steps.

    ``batches`` are those of this rank, one of ``devices``.
    """
    import lightning as L
    from torch.utils.data import DataLoader

    from del_lightning.config import PromptConfig, TrainerConfig
    from del_lightning.modules import PromptTuning
    from del_lightning.prompt import SoftPrompt
    from del_lightning.split import SplitModel
    from del_lightning.strategies import strategy

    losses: list[float] = []

    class Steps(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            losses.append(float(outputs["loss"]))
            step_done()

    prompt = SoftPrompt.from_text(INIT_TEXT, case.virtual_tokens, llm)
    config = PromptConfig(virtual_tokens=case.virtual_tokens, steps=len(batches), learning_rate=LEARNING_RATE)
    trainer = L.Trainer(
        accelerator="auto",
        devices=devices,
        strategy=strategy(TrainerConfig(devices=devices)),
        max_steps=len(batches),
        gradient_clip_val=GRADIENT_CLIP,
        logger=False,
        callbacks=[Steps()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    split = SplitModel(llm, _noisy_method(llm) if noise else None, prompt)
    trainer.fit(PromptTuning(split, config), DataLoader(batches, batch_size=None))
    return sum(losses) / len(losses)


def _noisy_method(llm: "FrozenLLM") -> Any:
    """DEL at 4 bits. An untrained codec costs as much as a trained one, and so does any mu."""
    from del_lightning.codec import LinearCodec, default_dim
    from del_lightning.methods import DEL

    codec = LinearCodec(llm.hidden_size, default_dim(llm.hidden_size), bound=1.0)
    return DEL(llm.embedding_table(), codec, bits=4, mu=50.0)


def train_peft(llm: "FrozenLLM", batches: "Sequence[Batch]", case: Case, step_done: Callable[[], None]) -> float:
    """Train with PEFT and the Hugging Face Trainer; returns the mean loss over all steps."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class Steps(TrainerCallback):
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            step_done()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches),
            per_device_train_batch_size=len(batches[0].input_ids),
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="linear",
            optim="adamw_torch",
            weight_decay=0.0,
            max_grad_norm=GRADIENT_CLIP,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(peft_model(llm, case), arguments, train_dataset=peft_examples(batches), callbacks=[Steps()])
        return float(trainer.train().training_loss)


def peft_model(llm: "FrozenLLM", case: Case) -> Any:
    """PEFT's prompt tuning around the frozen model, starting where ours does."""
    import torch
    from peft import PromptTuningConfig, get_peft_model

    from del_lightning.prompt import SoftPrompt

    start = SoftPrompt.from_text(INIT_TEXT, case.virtual_tokens, llm).embeddings
    model = get_peft_model(llm.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=case.virtual_tokens))
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(start)
    return model


def peft_examples(batches: "Sequence[Batch]") -> list[dict[str, Any]]:
    """The sequences of ``batches`` in order, with -100 wherever the loss is not."""
    return [
        {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~target, -100)}
        for batch in batches
        for ids, mask, target in zip(batch.input_ids, batch.attention_mask, batch.target_mask, strict=True)
    ]


# --- measuring ---------------------------------------------------------------------------------------------------


def make_batches(case: Case) -> "list[Batch]":
    """Training batches of the Lee news corpus, one a step."""
    from del_lightning.config import DataConfig, ModelConfig
    from del_lightning.data import GenerationDataModule, load_corpus
    from del_lightning.loading import load_llm

    config = DataConfig(name="lee", train_tokens=case.block_tokens, split_ratio=list(case.split_ratio))
    tokenizer = load_llm(ModelConfig(name=case.model, dtype=case.dtype)).tokenizer
    data = GenerationDataModule(load_corpus("lee"), tokenizer, config, batch_size=case.batch_size, seed=0)
    return list(islice(iter(data.train_dataloader()), case.total_steps))


def run_contender(name: str, case: Case, batches: str) -> None:
    """One contender from start to end, in a process of its own."""
    turns = Turns(warmup=case.warmup, steps=case.steps, turns=case.turns)
    from types import SimpleNamespace

    import torch

    from del_lightning.config import ModelConfig
    from del_lightning.loading import load_llm

    llm = load_llm(ModelConfig(name=case.model, dtype=case.dtype))
    stored = torch.load(batches, weights_only=True)
    if name == PEFT:
        loss = train_peft(llm, [SimpleNamespace(**batch) for batch in stored], case, turns.step_done)
    else:
        from del_lightning.data import Batch

        ours = [Batch(**batch) for batch in stored]
        loss = train_ours(llm, ours, case, turns.step_done, noise=name == NOISY)
    device = {"device_mib": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}
    turns.say(mean_loss=loss, host_mib=peak_memory(), **device)


def run_case(case: Case) -> dict[str, Any]:
    """All contenders of a case, turn by turn."""
    import torch

    batches = make_batches(case)
    tokens = int(batches[0].attention_mask.sum()) * case.steps
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "batches.pt")
        torch.save([vars(batch) for batch in batches], path)
        seconds, words = _take_turns(case, str(path))
    result: dict[str, Any] = {
        "case": asdict(case),
        "tokens_a_step": tokens // case.steps,
        "target_share": sum(float(b.target_mask.sum() / b.attention_mask.sum()) for b in batches) / len(batches),
        "contenders": {
            name: {"tokens_per_second": spread(tokens / s for s in seconds[name]), **words[name]}
            for name in case.contenders
        },
    }
    memory = {name: words[name].get("device_mib", words[name]["host_mib"]) for name in case.contenders}
    result["ratio"] = spread(peft / ours for peft, ours in zip(seconds[PEFT], seconds[OURS], strict=True))
    result["fast_enough"] = result["ratio"]["median"] >= LEAST_RATIO
    result["no_more_memory"] = memory[OURS] <= memory[PEFT]
    return result


def _take_turns(case: Case, batches: str) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Seconds of every turn and last words, by contender. The order turns round each time: nobody is always first."""
    from contextlib import ExitStack

    seconds: dict[str, list[float]] = {name: [] for name in case.contenders}
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(Contender(__file__, {"name": name, "case": asdict(case), "batches": batches}))
            for name in case.contenders
        }
        for turn in range(case.turns):
            for name in case.contenders[:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(running[name].turn())
        return seconds, {name: contender.last_words() for name, contender in running.items()}


def main(cases: Sequence[Case] = CASES, path: Path = RESULTS / "prompt_training.json") -> None:
    """Run the cases, print each, write them all."""
    from rich import print as rprint

    results = []
    for case in worth_running(cases):
        results.append(run_case(case))
        rprint(_table(results[-1]))
    demand = f"at least {LEAST_RATIO} times PEFT's tokens/s and no more memory"
    write_result(path, {"demand": demand, "results": results}, packages=("peft", "accelerate"))


def _table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(
        "contender", title=f"Soft-prompt training: {result['case']['name']}", caption="median (range of turns)"
    )
    for column in ("tokens/s", "speed of PEFT", "peak MiB", "loss"):
        table.add_column(column, justify="right")
    for name, row in result["contenders"].items():
        ratio = show(result["ratio"]) if name == OURS else ""
        memory = f"{row.get('device_mib', row['host_mib']):.0f}"
        table.add_row(name, show(row["tokens_per_second"], ".0f"), ratio, memory, f"{row['mean_loss']:.4f}")
    return table


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        run_contender(job["name"], Case(**job["case"]), job["batches"])
    else:
        main()
