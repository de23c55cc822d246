import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from del_lightning.errors import ConfigError
from del_lightning.privacy import StochasticQuantizer

ALL_BITS = range(1, 9)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_codes_follow_the_binomial_law(bits: int) -> None:
    quantizer = StochasticQuantizer(bits, bound=1.0, amplitude=1.4)
    for value in (-1.0, 0.3, 1.0):
        codes = quantizer.encode(torch.full((20_000,), value), seeded(bits))
        law = binom.pmf(np.arange(quantizer.levels + 1), quantizer.levels, (1.4 + value) / 2.8)
        observed = np.bincount(codes.numpy(), minlength=quantizer.levels + 1)
        # Cells that expect fewer than 5 draws are pooled, as the chi-square test demands.
        rare = law * 20_000 < 5
        pools = [(np.append(x[~rare], x[rare].sum())) for x in (observed, law * 20_000)]
        pools = [x[pools[1] > 0] for x in pools]
        assert chisquare(*pools).pvalue > 1e-4


@pytest.mark.parametrize("bits", ALL_BITS)
def test_moments_match_theorem_4_2(bits: int) -> None:
    n = 40_000
    v = torch.tensor([-0.05, -0.02, 0.0, 0.031, 0.05])
    quantizer = StochasticQuantizer.from_mu(10.0, dim=len(v), bits=bits, bound=0.05)
    decoded = quantizer.decode(quantizer.encode(v.expand(n, -1), seeded(bits))).double()
    variance = (quantizer.amplitude**2 - v.double() ** 2) / quantizer.levels
    torch.testing.assert_close(quantizer.variance(v).double(), variance, rtol=1e-6, atol=0)
    z_mean = (decoded.mean(0) - v) / (variance / n).sqrt()
    assert z_mean.abs().max() < 4.5
    # Variance of the sample variance from the binomial's fourth central moment.
    p = (quantizer.amplitude + v.double().numpy()) / (2 * quantizer.amplitude)
    kurtosis = binom.stats(quantizer.levels, p, moments="k")
    spread = variance * torch.from_numpy(np.sqrt((2 + kurtosis) / n + 2 / n**2))
    assert ((decoded.var(0) - variance) / spread).abs().max() < 4.5
    total = (len(v) * quantizer.amplitude**2 - float(v.double().square().sum())) / quantizer.levels
    assert float(quantizer.variance(v).sum()) == pytest.approx(total, rel=1e-5)


def test_amplitude_is_the_papers_calibration() -> None:
    quantizer = StochasticQuantizer.from_mu(20.0, dim=18, bits=4, bound=0.05)
    assert quantizer.amplitude == pytest.approx(0.05 * math.sqrt(4 * 18 * 15 / 400 + 1), rel=1e-14)
    assert quantizer.ratio == pytest.approx(0.05 / quantizer.amplitude)
    assert quantizer.levels == 15
    assert list(quantizer.parameters()) == []


def test_input_is_clipped_to_the_bound() -> None:
    quantizer = StochasticQuantizer(3, 1.0, 1.5)
    far, edge = torch.tensor([7.0, -7.0]).expand(500, 2), torch.tensor([1.0, -1.0]).expand(500, 2)
    assert torch.equal(quantizer.encode(far, seeded()), quantizer.encode(edge, seeded()))


def test_draws_do_not_depend_on_input_amplitude_or_dtype() -> None:
    v = torch.linspace(-1, 1, 60).reshape(3, 20)
    states = []
    for quantizer, x in [
        (StochasticQuantizer(4, 1.0, 1.1), v),
        (StochasticQuantizer(4, 1.0, 50.0), -v),
        (StochasticQuantizer(4, 1.0, 2.0), v.to(torch.bfloat16)),
    ]:
        generator = seeded(3)
        quantizer.encode(x, generator)
        states.append(torch.rand(4, generator=generator))
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_half_precision_input_does_not_change_the_draws() -> None:
    v = torch.tensor([[0.5, -0.25, 1.0]]).expand(100, 3)
    quantizer = StochasticQuantizer(8, 1.0, 1.2)
    assert torch.equal(quantizer.encode(v, seeded()), quantizer.encode(v.to(torch.bfloat16), seeded()))
    assert quantizer(v.to(torch.bfloat16), seeded()).dtype == torch.float32


def test_common_random_numbers_order_the_codes() -> None:
    quantizer = StochasticQuantizer(4, 1.0, 2.0)
    low, high = (quantizer.encode(torch.full((1000,), x), seeded(1)) for x in (-0.2, 0.4))
    assert torch.all(low <= high)
    assert (low < high).any()


def test_decode_spans_the_amplitude() -> None:
    quantizer = StochasticQuantizer(2, 1.0, 3.0)
    torch.testing.assert_close(
        quantizer.decode(torch.arange(4, dtype=torch.uint8)), torch.tensor([-3.0, -1.0, 1.0, 3.0])
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_input_is_refused(bad: float) -> None:
    quantizer = StochasticQuantizer(4, 1.0, 2.0)
    with pytest.raises(ConfigError, match=r"`v` must be finite, got '1 of 3 elements NaN or infinite'"):
        quantizer.encode(torch.tensor([0.0, bad, 1.0]))


def test_gradient_passes_straight_through_inside_the_bound_only() -> None:
    v = torch.tensor([-2.0, -0.9, 0.0, 0.9, 2.0], requires_grad=True)
    quantizer = StochasticQuantizer(4, 1.0, 2.0)
    output = quantizer(v, seeded())
    (output * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert v.grad is not None
    assert v.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]
    assert torch.equal(output.detach(), quantizer.decode(quantizer.encode(v.detach(), seeded())))


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("mu", [1.0, 20.0, 500.0])
def test_log_likelihood_is_the_binomial_law(bits: int, mu: float) -> None:
    quantizer = StochasticQuantizer.from_mu(mu, dim=6, bits=bits, bound=0.05)
    table = 0.06 * (2 * torch.rand(11, 6, generator=seeded(1)) - 1)  # some entries beyond the bound
    codes = torch.randint(0, quantizer.levels + 1, (2, 3, 6), generator=seeded(2)).to(torch.uint8)
    chance = (quantizer.amplitude + table.double().clamp(-0.05, 0.05).numpy()) / (2 * quantizer.amplitude)
    expected = binom.logpmf(codes.numpy()[..., None, :], quantizer.levels, chance).sum(-1)
    found = quantizer.log_likelihood(codes, table)
    assert found.shape == (2, 3, 11)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=2e-4)


def test_log_likelihood_stays_finite_where_float32_loses_the_ratio() -> None:
    quantizer = StochasticQuantizer.from_mu(1e5, dim=2, bits=1, bound=1.0)
    found = quantizer.log_likelihood(torch.tensor([[0, 1]]), torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
    assert torch.isfinite(found).all()
    assert found[0, 1] > found[0, 0]


def test_likelihoods_of_all_codes_add_up_to_one() -> None:
    quantizer = StochasticQuantizer(2, 1.0, 1.3)
    codes = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    total = quantizer.log_likelihood(codes, torch.tensor([[0.2, -0.7], [1.0, 1.0]])).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StochasticQuantizer(0, 1.0, 2.0), "`bits` must be an integer between 1 and 8, got 0"),
        (lambda: StochasticQuantizer(9, 1.0, 2.0), "`bits` must be an integer between 1 and 8, got 9"),
        (lambda: StochasticQuantizer(4, 0.0, 2.0), "`bound` must be a positive finite number, got 0.0"),
        (lambda: StochasticQuantizer(4, 1.0, 1.0), "`amplitude` must be above the bound 1.0, got 1.0"),
        (lambda: StochasticQuantizer(4, 1.0, math.inf), "`amplitude` must be above the bound 1.0, got inf"),
        (lambda: StochasticQuantizer.from_mu(0.0, 18, 4, 1.0), "`mu` must be a positive finite number, got 0.0"),
        (lambda: StochasticQuantizer.from_mu(1.0, 0, 4, 1.0), "`dim` must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_name_themselves(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value) == message
