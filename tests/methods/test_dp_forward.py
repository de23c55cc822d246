import math

import pytest
import torch
from torch import Tensor

from del_lightning.errors import ConfigError
from del_lightning.methods import DPForward, Release
from del_lightning.privacy import GaussianAccountant
from del_lightning.privacy.analytic_gaussian import analytic_sigma
from tests.methods.common import HIDDEN, IDS, VOCABULARY, check_another_level, random_table, seeded


@pytest.fixture
def table() -> Tensor:
    # Token norms that differ, so that the clipping factor depends on the tokens.
    return random_table() * torch.linspace(0.4, 2.0, VOCABULARY)[:, None]


def build(table: Tensor, epsilon: float = 20.0, clip: float | None = 4.0, released: bool = False) -> DPForward:
    return DPForward(table, torch.ones(len(table)), epsilon=epsilon, clip=clip, released=released)


@pytest.mark.parametrize("released", [False, True])
def test_another_level_is_a_fresh_build(table: Tensor, released: bool) -> None:
    check_another_level(build(table, 20.0, released=released), build(table, 90.0, released=released))


def test_noise_is_calibrated_for_the_sensitivity(table: Tensor) -> None:
    assert build(table).sigma == pytest.approx(analytic_sigma(20.0, 1e-5, 8.0))
    assert build(table, released=True).sigma == pytest.approx(analytic_sigma(20.0, 1e-5, 4.0))


def test_a_sequence_is_clipped_as_a_whole_and_then_noised(table: Tensor) -> None:
    method, n = build(table), 4000
    long, short = torch.tensor([[3, 39, 17, 8]]), torch.tensor([[3]])
    for ids in (long, short):
        clean = table[ids]
        norm = float(clean.norm())
        expected = clean * min(1.0, 4.0 / norm)
        released = method.release(ids.expand(n, -1), seeded()).payload
        error = released - expected
        assert error.mean(0).abs().max() < 5 * method.sigma / math.sqrt(n)
        assert float(error.std()) == pytest.approx(method.sigma, rel=0.02)
    assert float(table[long].norm()) > 4 > float(table[short].norm())


def test_rows_are_sequences_of_their_own(table: Tensor) -> None:
    method = build(table, 1e6)
    both = method.restore(method.release(IDS, seeded()))
    alone = torch.cat([method.restore(method.release(row[None], seeded(i))) for i, row in enumerate(IDS)])
    torch.testing.assert_close(both, alone, atol=12 * method.sigma, rtol=0)
    joined = method.restore(method.release(IDS.view(1, -1), seeded()))
    assert (joined.view(2, 5, -1) - both).abs().max() > 50 * method.sigma


def test_releases_remember_how_long_their_sequence_is(table: Tensor) -> None:
    method = build(table)
    releases = [method.release(ids[None], seeded()) for ids in (torch.arange(3), torch.arange(5))]
    joined = Release.concatenate(releases)
    assert joined.sequence_tokens is not None
    assert joined.sequence_tokens.tolist() == [[3] * 3 + [5] * 5]
    whole = method.log_likelihood(joined)
    torch.testing.assert_close(whole[:, 2:6], method.log_likelihood(joined[2:6]))
    order = torch.tensor([6, 1, 1, 3])
    torch.testing.assert_close(whole[:, order], method.log_likelihood(joined.take(order)))
    assert torch.equal(whole, method.log_likelihood(joined.rows()))
    parts = torch.cat([method.log_likelihood(release) for release in releases], 1)
    torch.testing.assert_close(whole, parts)


def test_density_of_a_single_token_integrates_to_one() -> None:
    small = torch.tensor([[0.2, 0.1], [1.0, -2.0], [3.0, 3.0]])
    method = build(small, 30.0, clip=1.5)
    axis = torch.linspace(-4, 4, 241)
    grid = torch.cartesian_prod(axis, axis)[:, None]
    mass = method.log_likelihood(Release(grid))[:, 0].double().exp().sum(0) * float(axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass, torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)


def test_likelihood_averages_over_the_tokens_beside() -> None:
    """Against the exact mixture over all neighbours of a sequence of nine tokens, by simulation."""
    small = random_table(6, 2) * torch.tensor([0.3, 0.6, 1.0, 1.5, 2.0, 2.5])[:, None]
    method = build(small, 300.0, clip=3.0)
    rng, width = seeded(1), small.square().sum(1)
    others = width[torch.randint(6, (40_000, 8), generator=rng)].sum(1)
    axis = torch.linspace(-2, 2, 9)
    grid = torch.cartesian_prod(axis, axis)
    for token in range(6):
        factor = (3.0 / (width[token] + others).sqrt()).clamp(max=1.0)
        squared = torch.cdist(grid, factor[:, None] * small[token]).square()
        density = (-squared / (2 * method.sigma**2)).exp().mean(1) / (2 * math.pi * method.sigma**2)
        release = Release(grid[None], torch.full((1, 81), 9))
        found = method.log_likelihood(release)[0, :, token].exp()
        assert (found - density).abs().max() < 0.03 * float(density.max())


def test_knowing_the_factor_would_hardly_help(table: Tensor) -> None:
    """The attack with the factor integrated out reads nearly what one that is told the factor reads."""
    method = build(table, 150.0, clip=5.0)
    truth = torch.randint(VOCABULARY, (60, 30), generator=seeded(4))
    release = method.release(truth, seeded(5))
    guess = method.log_likelihood(release).argmax(-1)
    factor = (5.0 / table[truth].flatten(1).norm(dim=1)).clamp(max=1.0)
    told = torch.stack([torch.cdist(y, f * table).argmin(1) for y, f in zip(release.payload, factor, strict=True)])
    right, oracle = ((g == truth).float().mean() for g in (guess, told))
    assert 0.1 < float(oracle) < 0.9
    assert float(right) > float(oracle) - 0.02


def test_limits(table: Tensor) -> None:
    sharp, blunt = build(table, 1e6, clip=30.0), build(table, 0.1, clip=30.0)
    torch.testing.assert_close(sharp.restore(sharp.release(IDS, seeded())), table[IDS], atol=0.25, rtol=0)
    truth = torch.randint(VOCABULARY, (40, 20), generator=seeded(6))
    guess = blunt.log_likelihood(blunt.release(truth, seeded(7))).argmax(-1)
    assert float((guess == truth).float().mean()) < 3 / VOCABULARY


def test_default_clip_is_that_of_64_typical_tokens(table: Tensor) -> None:
    frequencies = torch.zeros(VOCABULARY)
    frequencies[[2, 7]] = torch.tensor([3.0, 1.0])
    method = DPForward(table, frequencies, epsilon=1.0)
    expected = 8 * math.sqrt(float(0.75 * table[2].square().sum() + 0.25 * table[7].square().sum()))
    assert method.clip == pytest.approx(expected, rel=1e-5)


def test_statement_is_for_the_sequence(table: Tensor) -> None:
    statement = build(table, 20.0).statement(50, delta=1e-5)
    assert statement.unit == "sequence"
    assert statement.epsilon_sequence == statement.epsilon_token == pytest.approx(20.0, rel=1e-6)
    assert statement.sequence_tokens == statement.at("sequence").tokens == 50
    assert "the unit is the sequence" in statement.caveat


def test_released_variant_says_what_it_really_guarantees(table: Tensor) -> None:
    method = build(table, 20.0, released=True)
    statement = method.statement(50, delta=1e-5)
    actual = GaussianAccountant(8.0 / method.sigma).epsilon(1e-5)
    assert statement.epsilon_sequence == pytest.approx(actual)
    assert actual > 2 * 20
    assert f"the epsilon claimed, 20, is {actual:.4g}" in statement.caveat
    assert (build(table).name, method.name) == ("dp-forward", "dp-forward-released")


def test_costs(table: Tensor) -> None:
    method = build(table)
    assert method.per_sequence
    assert method.payload_bits(method.release(IDS, seeded())) == 10 * HIDDEN * 32
    assert method.footprint().parameters == VOCABULARY * HIDDEN


@pytest.mark.parametrize(
    ("setting", "key"), [({"epsilon": 0.0}, "epsilon"), ({"clip": 0.0}, "clip"), ({"delta": 1.0}, "delta")]
)
def test_impossible_settings_are_refused(table: Tensor, setting: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` must be"):
        DPForward(table, torch.ones(VOCABULARY), **({"epsilon": 1.0} | setting))
