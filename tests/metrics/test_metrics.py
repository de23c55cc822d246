"""Token metrics against independent references, and merging as processes do it."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics.text import Perplexity

from del_lightning.errors import ConfigError
from del_lightning.metrics import AttackSuccessRate, ConditionalPerplexity, NextTokenAgreement, PayloadBits
from del_lightning.metrics.per_example import PerExampleMetric

N, VOCABULARY, EXAMPLES = 64, 17, 5


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(N, VOCABULARY, generator=generator)
    ids = torch.randint(0, VOCABULARY, (N,), generator=generator)
    return logits, ids, torch.randint(0, EXAMPLES, (N,), generator=generator)


def test_perplexity_equals_torchmetrics() -> None:
    logits, targets, example = rows()
    metric, reference = ConditionalPerplexity(EXAMPLES), Perplexity()
    for part in range(0, N, 20):
        chosen = slice(part, part + 20)
        metric.update(logits[chosen], targets[chosen], example[chosen])
    reference.update(logits[None], targets[None])
    assert metric.compute().item() == pytest.approx(reference.compute().item(), rel=1e-5)


def test_perplexity_per_example_and_over_seeds() -> None:
    metric = ConditionalPerplexity(EXAMPLES)
    for seed in (0, 1):
        metric.update(*rows(seed))
    nll, tokens = metric.per_example()
    for number in range(EXAMPLES):
        total = 0.0
        for seed in (0, 1):
            logits, targets, example = rows(seed)
            mine = example == number
            total -= float(logits[mine].double().log_softmax(-1).gather(1, targets[mine, None]).sum())
        assert float(nll[number]) == pytest.approx(total, rel=1e-5)
    assert int(tokens.sum()) == 2 * N
    estimate = metric.estimate()
    assert estimate.value == pytest.approx(float(metric.compute()))
    assert (estimate.n, estimate.interval) == (EXAMPLES, "bootstrap")


def test_low_precision_logits_are_scored_in_float32() -> None:
    logits, targets, example = rows()
    exact, half = ConditionalPerplexity(EXAMPLES), ConditionalPerplexity(EXAMPLES)
    exact.update(logits.bfloat16().float(), targets, example)
    half.update(logits.bfloat16(), targets, example)
    assert exact.compute() == half.compute()


def test_agreement_counts_equal_top1() -> None:
    logits, _, example = rows()
    reference = logits.argmax(-1)
    reference[:16] = (reference[:16] + 1) % VOCABULARY
    metric = NextTokenAgreement(EXAMPLES)
    metric.update(logits, reference, example)
    assert metric.compute().item() == 0.75
    agreed, tokens = metric.per_example()
    assert (agreed.sum(), tokens.sum()) == (48, 64)


def test_examples_never_seen_do_not_count_as_samples() -> None:
    metric = NextTokenAgreement(10)
    metric.update(torch.eye(4), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 7, 7]))
    assert metric.estimate().n == 2
    with pytest.raises(ConfigError, match="`examples` must be at least 1, got 0"):
        NextTokenAgreement(0)


def test_attack_success_rate_counts_any_of_the_guesses() -> None:
    metric = AttackSuccessRate()
    metric.update(torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([2, 9, 5]))
    metric.update(torch.tensor([[7, 8]]), torch.tensor([0]))
    assert metric.compute().item() == 0.5
    estimate = metric.estimate()
    assert (estimate.value, estimate.n, estimate.interval) == (0.5, 4, "clopper-pearson")


def test_payload_is_weighted_by_tokens() -> None:
    metric = PayloadBits()
    metric.update(bits=720, tokens=10)
    metric.update(bits=0, tokens=30)
    assert metric.compute().item() == 18.0


def test_nothing_measured_is_not_a_number() -> None:
    metrics = [ConditionalPerplexity(2), NextTokenAgreement(2), AttackSuccessRate(), PayloadBits()]
    for metric in metrics:
        metric._update_count = 1  # torchmetrics warns of a compute before any update
        assert math.isnan(metric.compute().item())


def test_reset_forgets() -> None:
    metric = NextTokenAgreement(EXAMPLES)
    logits, targets, example = rows()
    metric.update(logits, targets, example)
    metric.reset()
    metric.update(logits, logits.argmax(-1), example)
    assert metric.compute() == 1


@pytest.mark.parametrize("metric_class", [ConditionalPerplexity, NextTokenAgreement])
def test_halves_merge_to_the_whole(metric_class: type[PerExampleMetric]) -> None:
    logits, targets, example = rows()
    whole, first, second = (metric_class(EXAMPLES) for _ in range(3))
    whole.update(logits, targets, example)
    first.update(logits[:20], targets[:20], example[:20])
    second.update(logits[20:], targets[20:], example[20:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())
    torch.testing.assert_close(first.per_example(), whole.per_example())


def test_states_made_under_inference_mode_can_be_updated_outside_it() -> None:
    logits, targets, example = rows()
    metric = NextTokenAgreement(EXAMPLES)
    rate, bits = AttackSuccessRate(), PayloadBits()
    with torch.inference_mode():
        metric.update(logits, targets, example)
        rate.update(targets[:, None], targets)
        bits.update(10, 2)
    metric.update(logits, targets, example)
    rate.update(targets[:, None], targets)
    bits.update(10, 2)
    assert int(metric.per_example()[1].sum()) == 2 * N
    assert rate.estimate().n == 2 * N


def _process(rank: int, store: str, results: str) -> None:
    """One of two processes; the second one sees the rest of the rows, and no attack at all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    logits, targets, example = rows()
    mine = slice(0, 20) if rank == 0 else slice(20, N)
    perplexity, attack = ConditionalPerplexity(EXAMPLES), AttackSuccessRate()
    perplexity.update(logits[mine], targets[mine], example[mine])
    if rank == 0:
        attack.update(targets[:, None], targets)
    nll, tokens = perplexity.per_example()
    result = (perplexity.estimate().value, nll, tokens, attack.estimate().n, int(perplexity.count.sum()))
    torch.save(result, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_see_the_whole(tmp_path) -> None:  # type: ignore[no-untyped-def]
    mp.spawn(_process, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    whole = ConditionalPerplexity(EXAMPLES)
    whole.update(*rows())
    for rank, own in ((0, 20), (1, N - 20)):
        value, nll, tokens, attacked, left = torch.load(tmp_path / f"{rank}.pt")
        assert value == pytest.approx(float(whole.compute()))
        torch.testing.assert_close((nll, tokens), whole.per_example())
        assert attacked == N
        assert left == own  # the process's own state is untouched afterwards
