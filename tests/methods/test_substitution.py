"""SANTEXT, CUSTEXT, RANTEXT and random tokens: their laws on a vocabulary small enough to work everything out."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from del_lightning.attacks import BayesOptimal, log_prior
from del_lightning.errors import ConfigError
from del_lightning.methods import Custext, RandomTokens, Rantext, Release, Santext, Substitution, Vocabulary
from del_lightning.methods.custext import find_sets
from del_lightning.methods.rantext import EDGES, divisor
from tests.methods.common import IDS, VOCABULARY, check_another_level, random_table, seeded

SPECIAL = [5, 39]
STOP, NUMBERS = [1, 2, 9], [20, 21, 22]


def mask(ids: list[int]) -> Tensor:
    chosen = torch.zeros(VOCABULARY, dtype=torch.bool)
    chosen[ids] = True
    return chosen


def vocabulary() -> Vocabulary:
    frequencies = torch.arange(VOCABULARY).flip(0) ** 2
    return Vocabulary(random_table(), frequencies, known=~mask(SPECIAL), stop_words=mask(STOP), numbers=mask(NUMBERS))


def exact_distances() -> Tensor:
    return torch.cdist(random_table().double(), random_table().double())


def build(name: str, epsilon: float = 2.5) -> Substitution:
    table, tokens = random_table(), vocabulary()
    match name:
        case "santext":
            return Santext(table, tokens, epsilon=epsilon)
        case "santext-plus":
            return Santext(table, tokens, epsilon=epsilon, fraction=0.5, p=0.2)
        case "custext":
            return Custext(table, tokens, epsilon=epsilon, top_k=7)
        case "custext-plus":
            return Custext(table, tokens, epsilon=epsilon, top_k=7, keep_stop_words=True)
        case "rantext":
            return Rantext(table, tokens, epsilon=epsilon)
        case _:
            return RandomTokens(table, tokens)


WITH_EPSILON = ["santext", "santext-plus", "custext", "custext-plus", "rantext"]
ALL = [*WITH_EPSILON, "random"]


def law(method: Substitution) -> Tensor:
    """Pr(w' | w): (V private, V sent), by asking for the likelihood of every token that can be sent."""
    everything = Release(torch.arange(VOCABULARY)[None])
    return method.log_likelihood(everything)[0].T.double().exp()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("epsilon", [0.3, 2.5, 30.0])
def test_every_tokens_law_sums_to_one(name: str, epsilon: float) -> None:
    method = build(name, epsilon)
    torch.testing.assert_close(law(method).sum(1), torch.ones(VOCABULARY).double(), atol=2e-2, rtol=0)
    assert (law(method)[:, SPECIAL] == 0).all()
    assert method.name == name


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("epsilon", [0.3, 2.5, 8.0])
def test_the_law_is_how_often_tokens_are_sent(name: str, epsilon: float) -> None:
    method, n = build(name, epsilon), 6000
    expected = law(method)
    for token in (0, 1, 5, 17, 21, 38):  # frequent, stop word, special, plain, number, rare
        sent = method.release(torch.full((2, n // 2), token), seeded(token)).payload.flatten()
        share = torch.bincount(sent, minlength=VOCABULARY).double() / n
        chance = expected[token]
        # RANTEXT's likelihood averages over sixteen radii instead of all.
        slack = 0.01 if name == "rantext" else 2e-3
        assert ((share - chance).abs() < 4.5 * (chance * (1 - chance) / n).sqrt() + slack).all()


@pytest.mark.parametrize("name", ["santext", "santext-plus", "rantext"])
def test_a_large_epsilon_keeps_the_sensitive_token(name: str) -> None:
    method = build(name, 1000.0)
    sensitive = method.sensitive if isinstance(method, Santext) else method.vocabulary.known
    ids = (sensitive & ~method.vocabulary.numbers).nonzero().squeeze(1)[None]
    if name == "rantext":  # numbers never stay
        ids = ids[~method.vocabulary.numbers[ids]][None]
    assert torch.equal(method.release(ids, seeded()).payload, ids)


@pytest.mark.parametrize("name", ["custext", "custext-plus"])
def test_a_large_epsilon_keeps_every_known_token(name: str) -> None:
    method = build(name, 1000.0)
    ids = method.vocabulary.known.nonzero().squeeze(1)[None]
    assert torch.equal(method.release(ids, seeded()).payload, ids)


def test_a_small_epsilon_is_uniform_on_the_candidates() -> None:
    known = VOCABULARY - len(SPECIAL)
    santext, plus, custext, rantext = (
        law(build(name, 1e-4)) for name in ("santext", "santext-plus", "custext", "rantext")
    )
    expected = torch.where(~mask(SPECIAL), 1 / known, 0.0).double()
    assert (santext - expected).abs().max() < 1e-3
    sensitive = build("santext-plus").sensitive
    assert (plus[sensitive] - sensitive.double() / int(sensitive.sum())).abs().max() < 1e-3
    sets = build("custext").sets
    for row in sets:
        members = row[row >= 0]
        assert (custext[members][:, members] - 1 / len(members)).abs().max() < 1e-2
    others = ~mask(NUMBERS)
    assert (rantext[others] - expected).abs().max() < 1e-3


@pytest.mark.parametrize("name", WITH_EPSILON)
def test_another_level_is_a_fresh_build(name: str) -> None:
    check_another_level(build(name, 2.5), build(name, 6.0), torch.arange(VOCABULARY).view(2, -1))


@pytest.mark.parametrize("name", ALL)
def test_ids_are_sent_and_embedded(name: str) -> None:
    method = build(name)
    release = method.release(IDS, seeded())
    assert release.payload.shape == IDS.shape
    assert release.payload.dtype == IDS.dtype
    assert torch.equal(method.restore(release), random_table()[release.payload])
    assert method.payload_bits(release) == 10 * 6
    assert method.release(IDS[:, :0], seeded()).payload.shape == (2, 0)
    assert method.score_values(release) is None


@pytest.mark.parametrize("name", ALL)
def test_noise_is_the_generators_and_fresh_for_every_token(name: str) -> None:
    method, ids = build(name), torch.full((1, 60), 17)
    generator = seeded(1)
    first, second = method.release(ids, generator).payload, method.release(ids, generator).payload
    assert not torch.equal(first, second)
    assert torch.equal(method.release(ids, seeded(1)).payload, first)
    assert first.unique().numel() > 1


@pytest.mark.parametrize("name", ALL)
def test_pieces_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, ids = build(name), torch.randint(VOCABULARY, (2, 30), generator=seeded(8))
    whole = method.release(ids, seeded(9)) if name != "rantext" else None
    likelihood = method.log_likelihood(Release(ids))
    for module in ("substitution", "santext", "rantext"):
        monkeypatch.setattr(f"del_lightning.methods.{module}.ENTRIES", 3 * VOCABULARY)
    if whole is not None:  # RANTEXT draws radii piece by piece
        assert torch.equal(method.release(ids, seeded(9)).payload, whole.payload)
    torch.testing.assert_close(method.log_likelihood(Release(ids)), likelihood)


@pytest.mark.parametrize("name", ALL)
def test_no_attack_beats_the_exact_posterior(name: str) -> None:
    """Bayes with the law reads at least as many tokens as taking each for what it seems to be."""
    method = build(name)
    truth = torch.randint(VOCABULARY, (1, 1500), generator=seeded(2))
    release = method.release(truth, seeded(3))
    attack = BayesOptimal(log_prior(torch.ones(VOCABULARY)))
    guess = attack(method, release, torch.tensor([1500]))["Bayes-optimal"][:, 0]
    right, naive = (guess == truth[0]).float().mean(), (release.payload == truth).float().mean()
    assert right >= naive - 0.01


def test_santext_law_is_the_published_one() -> None:
    distance = exact_distances()
    weights = torch.exp(-1.25 * distance) * ~mask(SPECIAL)
    expected = weights / weights.sum(1, keepdim=True)
    rows = ~mask(SPECIAL)
    torch.testing.assert_close(law(build("santext"))[rows], expected[rows], rtol=5e-3, atol=1e-6)


def test_santext_keeps_the_metric_promise() -> None:
    """Between any two tokens, for any token sent, the loss is at most epsilon times their distance."""
    method, table = build("santext", 2.5), random_table().double()
    rows = ~mask(SPECIAL)
    log_law = law(method)[rows][:, rows].log()
    loss = (log_law[:, None] - log_law[None]).abs().amax(2)
    assert (loss <= 2.5 * torch.cdist(table[rows], table[rows]) + 2e-2).all()
    assert method.statement(5).parameters == {"epsilon": 2.5}
    assert "metric privacy at eta 2.5" in method.statement(5).caveat


def test_santext_plus_spares_the_frequent_half() -> None:
    method = build("santext-plus")
    assert isinstance(method, Santext)
    found = law(method)
    frequent = method.spared.nonzero().squeeze(1)
    assert len(frequent) == int(method.sensitive.sum()) == (VOCABULARY - len(SPECIAL)) // 2
    assert set(frequent.tolist()) == set(range(20)) - {5}
    torch.testing.assert_close(found[frequent, frequent], torch.full((len(frequent),), 0.8).double())
    assert found[frequent][:, method.sensitive].sum(1) == pytest.approx(0.2 * torch.ones(len(frequent)), abs=1e-3)
    assert (found[:, frequent].sum(1) == 0)[method.sensitive].all()
    assert "sent as it is with probability 0.8" in method.statement(5).caveat


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_santext_plus_at_the_ends_of_p(p: float) -> None:
    method = Santext(random_table(), vocabulary(), epsilon=2.5, fraction=0.5, p=p)
    torch.testing.assert_close(law(method).sum(1), torch.ones(VOCABULARY).double(), atol=1e-2, rtol=0)
    frequent = method.spared.nonzero().squeeze(1)[None]
    stayed = method.release(frequent, seeded()).payload == frequent
    assert stayed.all() if p == 0 else not stayed.any()


def test_custext_sets_split_the_known_tokens() -> None:
    tokens, distance = vocabulary(), exact_distances()
    sets = find_sets(tokens, 7)
    assert sorted(sets[sets >= 0].tolist()) == tokens.known.nonzero().squeeze(1).tolist()
    assert sets.shape == (6, 7)
    assert (sets[:-1] >= 0).all()
    assert int((sets[-1] < 0).sum()) == 42 - 38
    # The founder is the most frequent token left, and its set the nearest of those left.
    free = tokens.known.clone()
    for row in sets:
        members = row[row >= 0]
        founder = int(tokens.by_frequency[free[tokens.by_frequency]][0])
        nearest = distance[founder].masked_fill(~free, math.inf).topk(len(members), largest=False).indices
        assert int(members[0]) == founder
        assert set(members.tolist()) == set(nearest.tolist())
        free[members] = False


def test_custext_founders_of_one_batch_do_not_share_members(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_sets(vocabulary(), 3)
    monkeypatch.setattr("del_lightning.methods.custext._FOUNDERS", 2)
    assert torch.equal(find_sets(vocabulary(), 3), whole)


def test_custext_law_is_the_published_one() -> None:
    method, distance = build("custext"), exact_distances().double()
    assert isinstance(method, Custext)
    found = law(method)
    for row in method.sets:
        members = row[row >= 0]
        within = distance[members][:, members]
        u = 1 - (within - within.amin(1, keepdim=True)) / (within.amax(1) - within.amin(1))[:, None]
        weights = torch.exp(1.25 * u)
        torch.testing.assert_close(
            found[members][:, members], weights / weights.sum(1, keepdim=True), rtol=1e-3, atol=0
        )
    assert method.footprint().parameters == method.sets.numel() + VOCABULARY * 8


def test_custext_plus_sends_stop_words_as_they_are() -> None:
    method = build("custext-plus")
    stop = torch.tensor([STOP])
    assert torch.equal(method.release(stop, seeded()).payload, stop)
    found = law(method)
    assert (found[STOP, STOP] == 1).all()
    others = ~mask(STOP)
    assert found[others][:, STOP].sum() > 0  # other tokens may still become stop words
    assert "stop words are sent as they are" in method.statement(5).caveat
    assert method.statement(5).epsilon_token is None


def test_custext_of_single_tokens_is_the_identity() -> None:
    method = Custext(random_table(), vocabulary(), epsilon=1.0, top_k=1)
    known = method.vocabulary.known.nonzero().squeeze(1)[None]
    assert torch.equal(method.release(known, seeded()).payload, known)
    assert (law(method)[known[0], known[0]] == 1).all()


def test_rantext_radius_is_the_norm_of_laplace_noise() -> None:
    method = build("rantext", 1.5)
    assert isinstance(method, Rantext)
    known = random_table()[~mask(SPECIAL)]
    spread = known.amax(0) - known.amin(0)
    torch.testing.assert_close(method.spread, spread)
    # E r^2 = sum_j 2 beta_j^2.
    squared = method.radii(40_000, seeded()).square()
    expected = 2 * float((spread / 1.5).square().sum())
    assert float(squared.mean()) == pytest.approx(expected, abs=4.5 * float(squared.std()) / 200)
    share = (method.radii(40_000, seeded(1))[:, None] < method.quantiles).double().mean(0)
    middles = [(low + high) / 2 for low, high in pairwise(EDGES)]
    torch.testing.assert_close(share, torch.tensor([*middles, 1.0]).double(), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("epsilon", "expected"), [(0.5, 0.5), (2.0, 2.0), (3.0, 0.01658 * math.log(19.0647) + 9.3111), (1000.0, 9.474)]
)
def test_rantext_divisor(epsilon: float, expected: float) -> None:
    assert divisor(epsilon) == pytest.approx(expected, abs=1e-3)
    assert divisor(epsilon * 1.01) >= divisor(epsilon)


def test_rantext_takes_candidates_within_the_radius_only() -> None:
    method = build("rantext", 4.0)
    assert isinstance(method, Rantext)
    distance = exact_distances()
    weights = method._log_weights(torch.tensor([17, 17]), torch.tensor([4.0, 1e-3]))
    inside = (distance[17] < 4.0) & ~mask(SPECIAL)
    assert 1 < int(inside.sum()) < VOCABULARY - 3
    assert torch.equal(weights[0] > -math.inf, inside)
    torch.testing.assert_close(weights[0, inside], 2 - distance[17, inside].float() / 2, atol=1e-4, rtol=1e-4)
    assert (weights[1] > -math.inf).nonzero().flatten().tolist() == [17]


@pytest.mark.parametrize("epsilon", [3.0, 10.0])
def test_rantext_holds_no_real_release_for_impossible(epsilon: float) -> None:
    method = build("rantext", epsilon)
    ids = torch.arange(3, 19).repeat(1250)[None]  # 20,000 releases
    ids = ids[:, method.vocabulary.known[ids[0]]]
    release = method.release(ids, seeded(3))
    own = torch.cat(
        [
            method.log_likelihood(Release(part))[0].gather(1, true[0, :, None])[:, 0]
            for part, true in zip(release.payload.split(1000, 1), ids.split(1000, 1), strict=True)
        ]
    )
    assert float((own == -math.inf).float().mean()) < 5e-4


def test_rantext_replaces_numbers_by_random_numbers() -> None:
    method = build("rantext", 1000.0)
    sent = method.release(torch.tensor([NUMBERS * 60]), seeded()).payload
    assert set(sent.unique().tolist()) == set(NUMBERS)
    assert (law(method)[NUMBERS][:, NUMBERS] - 1 / 3).abs().max() < 1e-6
    assert "no local differential privacy" in method.statement(5).caveat
    assert method.statement(5).epsilon_token is None


def test_random_tokens_tell_nothing() -> None:
    method = build("random")
    found = law(method)
    assert (found == found[0]).all()
    statement = method.statement(7)
    assert (statement.epsilon_token, statement.epsilon_sequence) == (0.0, 0.0)
    assert method.footprint().bytes == 0
    assert build("santext").footprint().parameters == random_table().numel()
    with pytest.raises(ConfigError, match="must have a privacy parameter"):
        method.at(1.0)


@pytest.mark.parametrize(
    ("kind", "setting", "key"),
    [
        (Santext, {"epsilon": 0.0}, "epsilon"),
        (Santext, {"fraction": 0.0}, "fraction"),
        (Santext, {"p": 1.5}, "p"),
        (Custext, {"top_k": 0}, "top_k"),
        (Custext, {"epsilon": -1.0}, "epsilon"),
        (Rantext, {"epsilon": math.nan}, "epsilon"),
    ],
)
def test_impossible_settings_are_refused(kind: type[Substitution], setting: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` must be"):
        kind(random_table(), vocabulary(), **({"epsilon": 1.0} | setting))
