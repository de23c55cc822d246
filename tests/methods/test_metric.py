import pytest
import torch
from torch import Tensor

from del_lightning.errors import ConfigError
from del_lightning.methods import MetricDP, MetricDPReleased, Release
from tests.methods.common import HIDDEN, IDS, VOCABULARY, check_another_level, random_table, seeded

KINDS = [MetricDP, MetricDPReleased]


@pytest.fixture
def table() -> Tensor:
    return random_table()


@pytest.mark.parametrize("kind", KINDS)
def test_another_level_is_a_fresh_build(table: Tensor, kind: type[MetricDP]) -> None:
    check_another_level(kind(table, eta=3.0, l2_clip=2.0), kind(table, eta=11.0, l2_clip=2.0))


@pytest.mark.parametrize("kind", KINDS)
def test_clip_is_the_largest_clean_norm(table: Tensor, kind: type[MetricDP]) -> None:
    largest = torch.linalg.vector_norm(table, dim=-1).max()
    method = kind(table, eta=0.5, clip_to_largest=True)
    release = method.release(IDS, seeded())
    norms = torch.linalg.vector_norm(method.restore(release), dim=-1)
    assert torch.linalg.vector_norm(release.payload, dim=-1).max() > largest
    torch.testing.assert_close(norms.max(), largest)
    clean = Release(table[None])
    torch.testing.assert_close(method.restore(clean), table[None])  # no clean embedding is touched


@pytest.mark.parametrize(("kind", "points"), [(MetricDP, 61), (MetricDPReleased, 31)])
def test_density_integrates_to_one_for_every_token(kind: type[MetricDP], points: int) -> None:
    small = random_table(5, 3)
    method = kind(small, eta=4.0)
    axis = torch.linspace(-6, 6, points)
    grid = torch.cartesian_prod(axis, axis, axis)[None]
    mass = method.log_likelihood(Release(grid))[0].double().exp().sum(0) * float(axis[1] - axis[0]) ** 3
    torch.testing.assert_close(mass, torch.ones(5, dtype=torch.float64), atol=6e-2, rtol=0)


def test_likelihood_ratio_keeps_the_metric_promise(table: Tensor) -> None:
    method = MetricDP(table, eta=2.0)
    likelihood = method.log_likelihood(method.release(IDS, seeded())).flatten(0, 1).double()
    loss = (likelihood[:, :, None] - likelihood[:, None]).abs()
    assert (loss <= 2.0 * torch.cdist(table, table).double() + 1e-3).all()


def test_released_likelihood_breaks_the_l2_promise_and_keeps_the_l1_one(table: Tensor) -> None:
    method = MetricDPReleased(table, eta=6.0)
    release = method.release(torch.arange(VOCABULARY)[None].repeat(1, 20), seeded())
    likelihood = method.log_likelihood(release)[0].double()
    loss = (likelihood[:, :, None] - likelihood[:, None]).abs().amax(0)
    assert (loss <= 6.0 * torch.cdist(table, table, p=1).double() + HIDDEN * 0.1).all()
    assert (loss > 6.0 * torch.cdist(table, table).double() + 0.5).any()


@pytest.mark.parametrize("eta", [0.5, 6.0, 80.0])
def test_released_likelihood_is_the_product_of_the_coordinates(table: Tensor, eta: float) -> None:
    method = MetricDPReleased(table, eta=eta)
    release = method.release(IDS, seeded(1))
    expected = method.noise.log_density(release.payload[..., None, :] - table).sum(-1)
    assert (method.log_likelihood(release) - expected).abs().max() < HIDDEN * 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_limits(table: Tensor, kind: type[MetricDP]) -> None:
    truth = torch.randint(VOCABULARY, (1, 800), generator=seeded(2))
    sharp, blunt = kind(table, eta=1e5), kind(table, eta=1e-3)
    release = sharp.release(truth, seeded(3))
    torch.testing.assert_close(sharp.restore(release), table[truth], atol=0.02, rtol=0)
    guess = blunt.log_likelihood(blunt.release(truth, seeded(3))).argmax(-1)
    assert float((guess == truth).float().mean()) < 4 / VOCABULARY


def test_the_server_clips_the_norm_it_receives(table: Tensor) -> None:
    plain, clipping = MetricDP(table, eta=2.0), MetricDP(table, eta=2.0, l2_clip=5.0)
    release = plain.release(IDS, seeded())
    norm = release.payload.norm(dim=-1, keepdim=True)
    assert (norm > 5).any()
    assert (norm < 5).any()
    expected = torch.where(norm > 5, release.payload * 5 / norm, release.payload)
    torch.testing.assert_close(clipping.restore(release), expected)
    assert torch.equal(plain.restore(release), release.payload)


@pytest.mark.parametrize(("kind", "distance"), [(MetricDP, "L2"), (MetricDPReleased, "L1")])
def test_statement_names_the_distance_and_no_epsilon(table: Tensor, kind: type[MetricDP], distance: str) -> None:
    statement = kind(table, eta=2.0).statement(5)
    assert statement.epsilon_token is None
    assert dict(statement.parameters) == {"eta": 2.0}
    assert f"{distance} distance" in statement.caveat


def test_costs(table: Tensor) -> None:
    method = MetricDP(table, eta=2.0)
    assert method.payload_bits(method.release(IDS, seeded())) == 10 * HIDDEN * 32
    assert method.footprint().parameters == VOCABULARY * HIDDEN


@pytest.mark.parametrize(("setting", "key"), [({"eta": 0.0}, "eta"), ({"l2_clip": -1.0}, "l2_clip")])
def test_impossible_settings_are_refused(table: Tensor, setting: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` must be"):
        MetricDP(table, **({"eta": 1.0} | setting))
