import math

import pytest
from mpmath import mp, mpf

from del_lightning.errors import ConfigError
from del_lightning.privacy import BinomialAccountant, GaussianAccountant


def exact_delta(mu: float, epsilon: float) -> mpf:
    with mp.workprec(200):
        return mp.ncdf(mpf(mu) / 2 - mpf(epsilon) / mu) - mp.exp(epsilon) * mp.ncdf(-mpf(mu) / 2 - mpf(epsilon) / mu)


@pytest.mark.parametrize("mu", [0.01, 0.5, 2.0, 10.0, 60.0])
@pytest.mark.parametrize("delta", [0.001, 1e-5, 1e-100])
def test_analytic_epsilon(mu: float, delta: float) -> None:
    accountant = GaussianAccountant(mu)
    epsilon = accountant.epsilon(delta)
    assert float(exact_delta(mu, epsilon)) == pytest.approx(delta, rel=1e-8)
    assert accountant.delta(epsilon) == pytest.approx(delta, rel=1e-8)


@pytest.mark.parametrize(("mu", "epsilon"), [(2, 9.997), (10, 91.8), (40, 969.6)])
def test_reference_values(mu: float, epsilon: float) -> None:
    assert GaussianAccountant(mu).epsilon(1e-5) == pytest.approx(epsilon, abs=0.05)


def test_composition_noise_and_extremes() -> None:
    accountant = GaussianAccountant.from_noise(sigma=0.2, dim=16, bound=0.05)
    assert accountant.mu == pytest.approx(2.0)
    assert accountant.compose(9).mu == pytest.approx(6.0)
    assert accountant.epsilon(0.0) == math.inf
    assert accountant.epsilon(0.9) == 0.0
    assert accountant.delta(0.0) == pytest.approx(accountant.total_variation, rel=1e-12)
    assert accountant.tradeoff(0.0) == 1.0
    assert accountant.tradeoff(1.0) == 0.0
    assert accountant.tradeoff(accountant.tradeoff(0.3)) == pytest.approx(0.3)
    assert accountant.attack_bound(0.2) == pytest.approx(1 - accountant.tradeoff(0.2))
    assert accountant.attack_bound(1.0) == 1.0


def test_the_quantizer_tends_to_it() -> None:
    many = BinomialAccountant.from_mu(1.0, 256, 8)
    limit = GaussianAccountant(1.0)
    assert many.epsilon(1e-5) == pytest.approx(limit.epsilon(1e-5), rel=1e-3)
    assert many.attack_bound(0.1) <= limit.attack_bound(0.1) * (1 + 1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianAccountant(0.0), "`mu` must be a positive finite number, got 0.0"),
        (lambda: GaussianAccountant(1.0).epsilon(1.0), "`delta` must be in [0, 1), got 1.0"),
        (lambda: GaussianAccountant(1.0).delta(-1.0), "`epsilon` must be at least 0, got -1.0"),
        (lambda: GaussianAccountant(1.0).attack_bound(0.0), "`prior` must be in (0, 1], got 0.0"),
        (lambda: GaussianAccountant(1.0).tradeoff(2.0), "`alpha` must be in [0, 1], got 2.0"),
    ],
)
def test_bad_arguments_name_themselves(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value) == message
