from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from del_lightning.attacks import BayesOptimal, log_prior
from del_lightning.attacks.inverter import Inverter, TrainedInverter, distance_bias, principal_directions
from del_lightning.bigrams import Bigrams
from del_lightning.config import InverterConfig
from del_lightning.data.tokens import tokenize
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.lattices import build_lattice
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Clean, Method
from tests.modules.factory import sentences, split_for

Factory = Callable[..., FrozenLLM]
CONFIG = InverterConfig(width=16, layers=2, heads=4)
LENGTHS = torch.tensor([7, 1, 12, 5])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def method(tiny_llm: Factory) -> Method:
    front = split_for(tiny_llm(), mu=12.0).method
    assert front is not None
    return front


@pytest.fixture
def truth(method: Method) -> Tensor:
    return torch.randint(method.vocabulary_size, (int(LENGTHS.sum()),), generator=seeded(1))


def prior_of(method: Method) -> Tensor:
    return log_prior(torch.randint(50, (method.vocabulary_size,), generator=seeded(2)))


def shaken(inverter: Inverter) -> Inverter:
    """As if trained: every weight off its start."""
    with torch.no_grad():
        for weights in inverter.parameters():
            weights += 0.3 * torch.randn(weights.shape, generator=seeded(3))
    return inverter


def test_untrained_inverter_is_the_bayes_optimal_attack(method: Method, truth: Tensor) -> None:
    prior = prior_of(method)
    release = method.release(truth[None], seeded(4))
    untrained = TrainedInverter(Inverter(method.embedding_table, prior, CONFIG), batch=3)
    found = untrained(method, release, LENGTHS, top_k=10)
    assert torch.equal(found["trained inverter"], BayesOptimal(prior)(method, release, LENGTHS, 10)["Bayes-optimal"])


def test_with_bigrams_it_starts_at_their_exact_posterior(method: Method, tiny_llm: Factory) -> None:
    ragged = tokenize(sentences(0, 30), tiny_llm().tokenizer)
    prior = log_prior(torch.bincount(torch.from_numpy(ragged.flat).long(), minlength=method.vocabulary_size))
    bigrams = Bigrams(ragged, prior)
    truth = torch.from_numpy(ragged[0]).long()[:20]
    release, lengths = method.release(truth[None], seeded(5)), torch.tensor([20])
    inverter = Inverter(method.embedding_table, prior, CONFIG, bigrams)
    lattice = build_lattice(method, release, lengths, prior, bigrams)
    expected = lattice.ids.gather(2, lattice.log_posterior.topk(3).indices)[0]
    assert torch.equal(TrainedInverter(inverter)(method, release, lengths, 3)["trained inverter"], expected)
    alone = BayesOptimal(prior)(method, release, lengths, 3)["Bayes-optimal"]
    assert not torch.equal(expected, alone)


def test_sequences_do_not_see_each_other_or_padding(method: Method, truth: Tensor) -> None:
    inverter = shaken(Inverter(method.embedding_table, prior_of(method), CONFIG))
    release = method.release(truth[None], seeded(4))
    together = TrainedInverter(inverter)(method, release, LENGTHS, 4)["trained inverter"]
    starts = [0, *LENGTHS.cumsum(0).tolist()]
    for number, length in enumerate(LENGTHS):
        part = release[slice(starts[number], starts[number + 1])]
        alone = TrainedInverter(inverter)(method, part, length[None], 4)["trained inverter"]
        assert torch.equal(alone, together[starts[number] : starts[number + 1]])


def test_context_reaches_both_ways(method: Method, truth: Tensor) -> None:
    inverter = shaken(Inverter(method.embedding_table, prior_of(method), CONFIG)).eval()
    one = method.release(truth[None], seeded(4))
    other_ids = truth.clone()
    other_ids[6] = (truth[6] + 7) % method.vocabulary_size
    with torch.no_grad():
        contexts = [
            inverter.context(inverter.evidence(method, method.release(ids[None], seeded(4)), torch.tensor([12])))[0]
            for ids in (truth[:12], other_ids[:12])
        ]
    moved = (contexts[0] - contexts[1]).abs().amax(-1)
    assert one.tokens == len(truth)
    assert (moved > 1e-6).all()  # every position, in front of it and behind it


def test_training_and_inference_agree(method: Method, truth: Tensor) -> None:
    """The encoder layer of torch 2.13 does not, with a bias a head."""
    inverter = shaken(Inverter(method.embedding_table, prior_of(method), CONFIG))
    evidence = inverter.evidence(method, method.release(truth[None], seeded(4)), LENGTHS)
    with torch.no_grad():
        torch.testing.assert_close(inverter.train()(evidence), inverter.eval()(evidence), rtol=0, atol=0)


def test_bias_looks_back_and_ahead_and_falls_with_distance() -> None:
    padding = torch.tensor([[False, False, False, True]])
    bias = distance_bias(4, padding)[0]
    assert bias[0].tolist()[2] == [-2.0, -1.0, 0.0, -torch.inf]
    assert bias[1].tolist()[2] == [-1.0, -0.5, 0.0, -torch.inf]
    assert bias[2].tolist()[0] == [0.0, -1.0, -2.0, -torch.inf]
    assert bias[3].tolist()[1] == [-torch.inf, 0.0, -0.5, -torch.inf]
    assert torch.isfinite(bias[:, 3, 3]).all()


def test_principal_directions_decorrelate_with_equal_variance() -> None:
    table, weights = torch.randn(500, 12, generator=seeded()), torch.rand(500, generator=seeded(1))
    table[:, 0] *= 9
    words = (table @ principal_directions(table, weights, 5)).double()
    share = (weights / weights.sum()).double()
    centred = words - share @ words
    torch.testing.assert_close(centred.T @ (share[:, None] * centred), torch.eye(5).double() / 5, atol=1e-5, rtol=0)


def test_saved_weights_come_back(method: Method, truth: Tensor, tmp_path: Path) -> None:
    prior = prior_of(method)
    inverter = shaken(Inverter(method.embedding_table, prior, CONFIG))
    inverter.save(tmp_path / "inverter.safetensors")
    again = Inverter(method.embedding_table, prior, CONFIG)
    again.restore_from(tmp_path / "inverter.safetensors")
    evidence = inverter.evidence(method, method.release(truth[None], seeded(4)), LENGTHS)
    with torch.no_grad():
        assert torch.equal(inverter(evidence), again(evidence))
        inverter.reset()
        assert torch.equal(inverter(evidence), evidence.log_posterior)
    other = Inverter(method.embedding_table, prior, replace(CONFIG, layers=1))
    with pytest.raises(ArtifactError, match=r"inverter\.safetensors must be an inverter's safetensors file"):
        other.restore_from(tmp_path / "inverter.safetensors")
    with pytest.raises(ArtifactError, match=r"nowhere must be an inverter's safetensors file"):
        other.restore_from(tmp_path / "nowhere")


def test_lists_are_no_longer_than_the_candidates(method: Method, truth: Tensor) -> None:
    attack = TrainedInverter(Inverter(method.embedding_table, prior_of(method), CONFIG))
    release = method.release(truth[None], seeded(4))
    with pytest.raises(ConfigError, match="`top_k` must be between 1 and 256, got 257"):
        attack(method, release, LENGTHS, 257)


def test_a_release_without_noise_stays_read(method: Method, truth: Tensor) -> None:
    clean = Clean(method.embedding_table)
    attack = TrainedInverter(shaken(Inverter(method.embedding_table, prior_of(method), CONFIG)))
    found = attack(clean, clean.release(truth[None]), LENGTHS, 1)["trained inverter"]
    assert torch.equal(found[:, 0], truth)
