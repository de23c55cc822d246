import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from del_lightning.privacy import StochasticQuantizer
from del_lightning.privacy.inversion import CELLS, MAX_ROWS, tables

CPU = torch.device("cpu")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.999])
def test_inverse_equals_the_exact_quantile(bits: int, ratio: float) -> None:
    m = (1 << bits) - 1
    lookup = tables(m, ratio, CPU)
    position = torch.rand(3000, generator=torch.Generator().manual_seed(bits)) * 2 - 1
    position[:3] = torch.tensor([-1.0, 1.0, 0.0])
    u = torch.rand(3000, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    u[3:8] = torch.tensor([0.0, 1e-9, 1 - 1e-9, 1 - 2**-53, 0.5], dtype=torch.float64)
    chance = (1 + ratio * position.double().numpy()) / 2
    found = lookup.draw(position, u).numpy()
    # Each draw is the quantile of a u at most 1e-8 away.
    assert np.all(found >= binom.ppf(np.maximum(u.numpy() - 1e-8, 1e-320), m, chance))
    assert np.all(found <= binom.ppf(np.minimum(u.numpy() + 1e-8, 1.0), m, chance))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_million_codes_follow_the_law(bits: int) -> None:
    n = 1_000_000
    quantizer = StochasticQuantizer(bits, bound=1.0, amplitude=1.6)
    codes = quantizer.encode(torch.full((n,), 0.4321), torch.Generator().manual_seed(bits)).numpy()
    chance = 0.5 + 0.4321 / 3.2
    law = binom.pmf(np.arange(quantizer.levels + 1), quantizer.levels, chance) * n
    observed = np.bincount(codes, minlength=quantizer.levels + 1)
    rare = law < 5
    pools = [np.append(x[~rare], x[rare].sum()) for x in (observed, law)]
    pools = [x[pools[1] > 0] for x in pools]
    assert chisquare(*pools).pvalue > 1e-4
    deviation = np.sqrt(quantizer.levels * chance * (1 - chance))
    assert abs(codes.mean() - quantizer.levels * chance) < 4.5 * deviation / 1000
    kurtosis = float(binom.stats(quantizer.levels, chance, moments="k"))
    assert abs(codes.var() / deviation**2 - 1) < 4.5 * np.sqrt((kurtosis + 2) / n)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_codes_grow_with_the_input_and_with_its_weight(bits: int) -> None:
    v = torch.linspace(-1, 1, 200)[:, None].expand(-1, 50)

    def codes(amplitude: float) -> torch.Tensor:
        quantizer = StochasticQuantizer(bits, 1.0, amplitude)
        rows = [quantizer.encode(row, torch.Generator().manual_seed(5)).int() for row in v]
        return torch.stack(rows)

    loose, tight = codes(1.05), codes(5.0)
    assert (loose.diff(dim=0) >= 0).all()
    assert (loose[100:] >= tight[100:]).all()
    assert (loose[:100] <= tight[:100]).all()


def test_draws_do_not_depend_on_how_large_the_input_is() -> None:
    quantizer = StochasticQuantizer(4, 1.0, 2.0)
    v = torch.linspace(-1, 1, (1 << 17) + 1000)
    whole = quantizer.encode(v, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    parts = [quantizer.encode(part, generator) for part in v.split(1 << 17)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, quantizer.encode(v, torch.Generator().manual_seed(0)))
    assert quantizer.encode(torch.zeros(0, 3)).shape == (0, 3)


def test_tables_stay_small() -> None:
    lookup = tables(255, 0.9999, CPU)
    assert lookup.lowest.numel() <= MAX_ROWS * CELLS
    assert sum(x.numel() * x.element_size() for x in (lookup.lowest, lookup.highest, lookup.cubics)) < 20e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_inverts_like_the_cpu() -> None:
    position = torch.linspace(-1, 1, 10_000)
    u = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here = tables(255, 0.3, CPU).draw(position, u)
    there = tables(255, 0.3, torch.device("cuda")).draw(position.cuda(), u.cuda())
    assert torch.equal(here, there.cpu())
