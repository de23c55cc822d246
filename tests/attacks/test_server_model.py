from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from del_lightning.attacks import log_prior
from del_lightning.attacks.language_model import BigramPrior
from del_lightning.attacks.server_model import NAME, SHARES, ServerModel, tune
from del_lightning.bigrams import Bigrams
from del_lightning.data.tokens import tokenize
from del_lightning.errors import ConfigError
from del_lightning.lattices import build_lattice
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Method, Release
from del_lightning.prompt import SoftPrompt
from tests.modules.factory import sentences, split_for

Factory = Callable[..., FrozenLLM]
PREFIX = [5, 17, 40]
LENGTHS = torch.tensor([7, 1, 12])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Case:
    """Three sequences behind a noisy front-end of the tiny model."""

    def __init__(self, llm: FrozenLLM) -> None:
        method = split_for(llm, mu=12.0).method
        assert method is not None
        self.llm, self.method = llm, method
        ragged = tokenize(sentences(0, 30), llm.tokenizer)
        self.prior = log_prior(torch.bincount(torch.from_numpy(ragged.flat).long(), minlength=llm.vocab_size))
        self.bigrams = Bigrams(ragged, self.prior)
        self.truth = torch.from_numpy(ragged.flat).long()[: int(LENGTHS.sum())]
        self.release: Release = method.release(self.truth[None], seeded(4))
        self.prompt = SoftPrompt.from_text("the cat", 3, llm)

    def attack(
        self, share: float = 0.5, prefix: list[int] | None = None, prompt: SoftPrompt | None = None
    ) -> ServerModel:
        ids = PREFIX if prefix is None else prefix
        return ServerModel(self.llm, self.prior, self.bigrams, prefix_ids=ids, soft_prompt=prompt, share=share, batch=2)


@pytest.fixture
def case(tiny_llm: Factory) -> Case:
    return Case(tiny_llm())


def test_without_the_model_it_is_the_exact_attack(case: Case) -> None:
    found = case.attack(share=0.0)(case.method, case.release, LENGTHS, 5)[NAME]
    exact = BigramPrior(case.prior, case.bigrams)(case.method, case.release, LENGTHS, 5)["bigram prior"]
    assert torch.equal(found, exact)


def test_every_place_is_ranked_by_what_the_model_expects_behind_the_decoded_ones(case: Case) -> None:
    found = case.attack(0.5, prompt=case.prompt)(case.method, case.release, LENGTHS, 3)[NAME]
    start = 0
    for length in LENGTHS.tolist():
        part, only = case.release[slice(start, start + length)], torch.tensor([length])
        restored = case.method.restore_sequences(part, only)
        beginning = [case.prompt(1, restored.dtype), case.llm.embed(torch.tensor([PREFIX]))]
        embeddings = torch.cat([*beginning, restored], 1)
        keep = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
        keep[:, -length - 1 : -1] = True
        logits = case.llm.logits(embeddings, torch.ones_like(keep), keep).float()
        lattice = build_lattice(case.method, part, only, case.prior, case.bigrams)
        ids = lattice.ids[0]
        score = lattice.log_posterior[0] + 0.5 * (logits.log_softmax(-1) - case.prior).gather(1, ids)
        assert torch.equal(found[start : start + length], ids.gather(1, score.topk(3).indices))
        start += length


def test_the_share_that_reads_most_is_taken(case: Case) -> None:
    attack = case.attack()
    sequences: list[list[int]] = [part.tolist() for part in torch.split(case.truth, LENGTHS.tolist())]
    trials = tune(attack, case.method, [*sequences, []], seed=3)
    assert [trial["share"] for trial in trials] == list(SHARES)
    assert {trial["n"] for trial in trials} == {len(case.truth)}
    assert attack.share == max(trials, key=lambda trial: trial["hits"])["share"]
    assert tune(case.attack(), case.method, sequences, seed=3) == trials


def test_a_model_that_knows_the_text_reads_more(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, taken = case.truth.split(LENGTHS.tolist()), iter(range(0, len(LENGTHS), 2))

    def knowing(embeddings: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        first = next(taken)
        expected = torch.cat(list(truth[first : first + len(embeddings)]))
        return 50.0 * torch.nn.functional.one_hot(expected, case.llm.vocab_size).float()

    monkeypatch.setattr(case.llm, "logits", knowing)
    found = case.attack(1.0)(case.method, case.release, LENGTHS)[NAME][:, 0]
    assert float((found == case.truth).float().mean()) > 0.9


def test_impossible_arguments_are_named(case: Case) -> None:
    with pytest.raises(ConfigError, match="`share` must be at least 0, got -1"):
        case.attack(share=-1)
    with pytest.raises(ConfigError, match="`prefix_ids` must hold a token"):
        case.attack(prefix=[])
    method: Method = case.method
    with pytest.raises(ConfigError, match="`lengths` must be positive"):
        case.attack()(method, case.release, torch.tensor([3]))
