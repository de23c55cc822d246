import pytest
import torch

from del_lightning.attacks import BayesOptimal, log_prior
from del_lightning.codec import pca_codec
from del_lightning.errors import CertificateError, ConfigError
from del_lightning.methods import DEL, Clean, MeanEmbedding, Method
from del_lightning.metrics import (
    certified_alone,
    certified_recovery,
    check_certified,
    clopper_pearson,
    largest_share,
)
from del_lightning.metrics.attack import recovered


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corners(mu: float) -> DEL:
    """Two tokens at opposite corners of the cube: the worst case of the accountant, which makes its bound tight."""
    table = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    codec = pca_codec(table + 1e-3 * torch.randn(2, 2, generator=seeded()), torch.ones(2), 2)
    codec.encoder.weight.data, codec.decoder.weight.data = torch.eye(2), torch.eye(2)
    codec.bound.fill_(1.0)
    return DEL(table, codec, bits=2, mu=mu)


def test_largest_share_is_of_the_commonest_tokens() -> None:
    tokens = torch.tensor([3, 1, 3, 2, 3, 1])
    assert [largest_share(tokens, guesses) for guesses in (1, 2, 9)] == [3 / 6, 5 / 6, 1.0]


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_best_attack_on_the_worst_pair_reaches_the_bound_and_does_not_pass_it(mu: float) -> None:
    method = corners(mu)
    truth = torch.arange(40_000) % 2  # evenly, where the bound is tight: (1 + total variation) / 2
    attack = BayesOptimal(log_prior(truth.bincount(minlength=2)))
    guess = attack(method, method.release(truth[None], seeded(2)), torch.tensor([len(truth)]))[attack.name]
    rate = clopper_pearson(int(recovered(guess, truth).sum()), len(truth))
    bound = certified_recovery(method, largest_share(truth))
    assert bound is not None
    check_certified("Bayes-optimal", rate, bound)
    assert rate.low <= bound <= rate.high
    # What anything beyond the bound would look like.
    with pytest.raises(CertificateError, match="Bayes-optimal must read at most the certified share"):
        check_certified("Bayes-optimal", clopper_pearson(int((bound + 0.02) * 40_000), 40_000), bound)


def test_nothing_sent_is_no_more_than_the_commonest_token() -> None:
    truth = torch.tensor([0, 0, 1, 2, 2, 2])
    method = MeanEmbedding(torch.eye(4))
    attack = BayesOptimal(log_prior(truth.bincount(minlength=4)))
    guess = attack(method, method.release(truth[None]), torch.tensor([6]))[attack.name]
    bound = certified_recovery(method, largest_share(truth))
    assert bound == 0.5 == float(recovered(guess, truth).double().mean())
    check_certified("Bayes-optimal", clopper_pearson(3, 6), bound)


def test_no_guarantee_is_no_bound() -> None:
    method: Method = Clean(torch.eye(4))
    assert certified_recovery(method, 0.1) is None
    assert certified_recovery(method, torch.tensor([0.1, 0.2])) is None
    check_certified("Bayes-optimal", clopper_pearson(6, 6), None)


def test_bounds_of_many_contexts_are_averaged_and_rounded_up() -> None:
    method = corners(0.5)
    kappa = torch.tensor([0.1, 0.1, 0.5, 0.9], dtype=torch.float64)
    exact = sum(method.attack_bound(float(k)) for k in kappa) / 4
    averaged = certified_recovery(method, kappa)
    assert averaged == pytest.approx(exact, abs=1e-6)
    shifted = certified_recovery(method, kappa - 0.0049)
    assert shifted == pytest.approx(averaged)
    assert certified_recovery(method, kappa - 0.0051) < averaged


def test_places_that_are_released_otherwise_have_a_kappa_of_their_own() -> None:
    tokens, lengths = torch.tensor([3, 1, 3, 2, 7, 7]), torch.tensor([4, 1, 1])
    method = MeanEmbedding(torch.eye(8))  # names the commonest token: its bound is kappa itself
    assert certified_alone(method, tokens, lengths) == largest_share(tokens) == 2 / 6
    method.last = 1  # of 3 1 3 | 2 7 7 the attacker knows the half: 2 of 3 each
    assert certified_alone(method, tokens, lengths) == pytest.approx(2 / 3, abs=1 / 200)
    method.last = 9
    assert certified_alone(method, tokens, lengths) == pytest.approx(2 / 6, abs=1 / 200)


@pytest.mark.parametrize("kappa", [0.0, 1.1, torch.tensor([0.5, 0.0]), torch.empty(0), float("nan")])
def test_kappa_is_a_probability(kappa: float | torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="`kappa` must be a probability"):
        certified_recovery(corners(1.0), kappa)
