"""DEL's codes decoded to posterior means: the server's arithmetic changes, and nothing that leaves the device."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from del_lightning.bigrams import Bigrams
from del_lightning.codec import LinearCodec
from del_lightning.data.tokens import Ragged
from del_lightning.methods import DEL
from del_lightning.methods.posterior import PosteriorDEL

PRIOR = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.15, 0.1, 0.05]).log()
TABLE = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
BIGRAMS = Bigrams(Ragged(np.random.default_rng(0).integers(0, 7, 300).astype(np.int32), np.array([0, 300])), PRIOR)


def codec(bound: float = 0.4) -> LinearCodec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LinearCodec(5, 3, bound)


def decoded(mu: float = 3.0, bound: float = 0.4, bigrams: Bigrams | None = None) -> PosteriorDEL:
    return PosteriorDEL(TABLE, codec(bound), PRIOR, bits=2, mu=mu, bigrams=bigrams)


def test_what_leaves_the_device_is_del_s() -> None:
    ids = torch.tensor([[0, 2, 4, 6]])
    ours, theirs = decoded(), DEL(TABLE, codec(), bits=2, mu=3.0)
    released = ours.release(ids, torch.Generator().manual_seed(5))
    assert torch.equal(released.payload, theirs.release(ids, torch.Generator().manual_seed(5)).payload)
    assert torch.equal(ours.log_likelihood(released), theirs.log_likelihood(released))
    assert ours.statement(4).columns() == theirs.statement(4).columns()
    assert ours.payload_bits(released) == theirs.payload_bits(released)
    assert ours.footprint() == theirs.footprint()


def test_a_position_alone_is_decoded_to_its_posterior_mean() -> None:
    method = decoded()
    release = method.release(torch.tensor([[0, 2, 4, 6]]), torch.Generator().manual_seed(0))
    posterior = (method.log_likelihood(release) + PRIOR).softmax(-1)
    torch.testing.assert_close(method.restore(release), posterior @ TABLE)
    assert torch.equal(method.restore_sequences(release, torch.tensor([4])), method.restore(release))
    assert method.score_values(release) is None


def test_neighbours_are_read_as_exactly_as_by_enumeration() -> None:
    method = decoded(bigrams=BIGRAMS)
    release = method.release(torch.tensor([[1, 3, 5, 6]]), torch.Generator().manual_seed(2))
    likelihood, total = method.log_likelihood(release)[0], torch.zeros(4, 7)
    for sequence in product(range(7), repeat=4):
        score: Tensor = PRIOR[sequence[0]] + sum(likelihood[t, word] for t, word in enumerate(sequence))
        for before, after in pairwise(sequence):
            score = score + BIGRAMS.log_prob(torch.tensor([before]), torch.tensor([[after]]))[0, 0]
        total[torch.arange(4), list(sequence)] += score.exp()
    expected = total / total.sum(1, keepdim=True) @ TABLE
    torch.testing.assert_close(method.restore_sequences(release, torch.tensor([4]))[0], expected, atol=1e-4, rtol=1e-4)


def test_sequences_decoded_together_are_decoded_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method, lengths = decoded(bigrams=BIGRAMS), torch.tensor([5, 1, 3])
    release = method.release(torch.tensor([[1, 3, 5, 6, 0, 2, 4, 4, 1]]), torch.Generator().manual_seed(2))
    together = method.restore_sequences(release, lengths)
    alone = [method.restore_sequences(release[part], part_length) for part, part_length in parts_of(lengths)]
    torch.testing.assert_close(together, torch.cat(alone, 1))
    monkeypatch.setattr("del_lightning.lattices.POSITIONS", 4)  # the means of two steps at a time
    torch.testing.assert_close(method.restore_sequences(release, lengths), together)


def parts_of(lengths: Tensor) -> list[tuple[slice, Tensor]]:
    ends = lengths.cumsum(0).tolist()
    return [(slice(end - int(n), end), n[None]) for end, n in zip(ends, lengths, strict=True)]


def test_limits_of_mu() -> None:
    ids = torch.arange(7)[None]
    blind = decoded(mu=1e-4)
    mean = PRIOR.exp() @ TABLE
    torch.testing.assert_close(blind.restore(blind.release(ids))[0], mean.expand(7, -1), atol=1e-3, rtol=0)
    # Codes in the corners are sent without noise; tokens of one corner cannot be told apart.
    clear = decoded(mu=1e4, bound=1e-3)
    same = (clear.code_table[:, None] == clear.code_table).all(-1).float() * PRIOR.exp()
    expected = same / same.sum(1, keepdim=True) @ TABLE
    torch.testing.assert_close(clear.restore(clear.release(ids))[0], expected, atol=1e-3, rtol=1e-3)
    assert 1 < len(clear.code_table.unique(dim=0)) < 7
