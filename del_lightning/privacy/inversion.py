"""Binomial draws by inverting the distribution function, for simulations: one uniform number a coordinate.

K = #{k < m : F_p(k) <= u} for a uniform u of 53 bits. Since F_p(k) falls in p, codes grow with p under the same u:
common random numbers across inputs and privacy levels. Most draws are one look-up in a guide table over rectangles
of (p, u) in which K is constant; a draw in any other rectangle is settled by bisection on F_p(k) itself.

F_p(k) is interpolated between exact values by cubic Hermite polynomials in theta = arcsin sqrt p, in which the law has
the same width 1/(2 sqrt m) everywhere; the error stays below 1e-8, a sixth of a float32 uniform's step.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

CELLS = 1024
"""Cells of u."""
MAX_ROWS = 1024
ROW_SHIFT = 0.02
"""Rows of p are about so narrow that the mean of K changes by this much within one."""
KNOT_WIDTH = 0.04
"""Distance of interpolation knots in standard deviations of theta."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """Everything that inversion looks up for one number of trials and range of p."""

    trials: int
    ratio: float
    rows: int
    lowest: Tensor
    """(rows * CELLS,) int16: K where it is constant, else -1 - (its smallest value)."""
    highest: Tensor
    """(rows * CELLS,) int16: largest value of K."""
    theta: float
    """First knot."""
    width: float
    """Distance of knots in theta."""
    cubics: Tensor
    """(intervals * m, 4) float64: coefficients of the cubic that F_p(k) is between two knots, constant first."""

    def draw(self, position: Tensor, u: Tensor) -> Tensor:
        """Invert.

        Args:
            position: (n,) float32 in [-1, 1], v/c: p = (1 + ratio * position)/2.
            u: (n,) float64 uniform in [0, 1).

        Returns:
            (n,) int16 counts.
        """
        row = ((position + 1) * (self.rows / 2)).to(torch.int32).clamp_(max=self.rows - 1)
        at = row.mul_(CELLS).add_((u * CELLS).to(torch.int32))
        counts = self.lowest.index_select(0, at)
        open_ = (counts < 0).nonzero().squeeze(1)
        if open_.numel():
            low = -1 - counts[open_].to(torch.int64)
            high = self.highest[at[open_]].to(torch.int64)
            counts[open_] = self._settle(position[open_], u[open_], low, high).to(torch.int16)
        return counts

    def _settle(self, position: Tensor, u: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Bisection for the smallest k in low..high with u < F_p(k)."""
        theta = ((1 + self.ratio * position.to(torch.float64)) / 2).sqrt().asin()
        place = (theta - self.theta) / self.width
        knot = place.to(torch.int64).clamp_(0, len(self.cubics) // self.trials - 1)
        share = place.sub_(knot)
        first = knot.mul_(self.trials)
        undecided = torch.arange(len(u), device=u.device)
        found = low.clone()
        while undecided.numel():
            middle = (low + high) // 2
            c0, c1, c2, c3 = self.cubics.index_select(0, first + middle).unbind(1)
            beyond = u >= torch.addcmul(c0, torch.addcmul(c1, torch.addcmul(c2, c3, share), share), share)
            low, high = torch.where(beyond, middle + 1, low), torch.where(beyond, high, middle)
            found[undecided] = low
            keep = (low < high).nonzero().squeeze(1)
            undecided, low, high, u, first, share = (
                x.index_select(0, keep) for x in (undecided, low, high, u, first, share)
            )
        return found


@lru_cache(maxsize=16)
def tables(trials: int, ratio: float, device: torch.device) -> Tables:
    """The tables of Bin(trials, p), p in [(1 - ratio)/2, (1 + ratio)/2]; built in some hundredths of a second."""
    rows = int(np.clip(np.ceil(trials * ratio / ROW_SHIFT), 16, MAX_ROWS))
    edges = (1 + ratio * np.linspace(-1, 1, rows + 1)) / 2
    # counts[i, j] = K at the i-th edge of p and the j-th edge of u; at u = 1 every k counts.
    grid = np.arange(CELLS + 1) / CELLS
    counts = np.stack([np.searchsorted(row, grid, side="right") for row in _distribution(trials, edges)])
    counts[:, -1] = trials
    low, high = counts[:-1, :-1].ravel(), counts[1:, 1:].ravel()
    first, last = (float(np.arcsin(np.sqrt((1 + sign * ratio) / 2))) for sign in (-1, 1))
    width = KNOT_WIDTH / (2 * np.sqrt(trials))
    theta = first + width * np.arange(int((last - first) / width) + 2)
    cubics = _hermite(_distribution(trials, np.sin(theta) ** 2), width * _slope(trials, theta))
    return Tables(
        trials=trials,
        ratio=ratio,
        rows=rows,
        lowest=torch.from_numpy(np.where(low == high, low, -1 - low).astype(np.int16)).to(device),
        highest=torch.from_numpy(high.astype(np.int16)).to(device),
        theta=first,
        width=float(width),
        cubics=torch.from_numpy(cubics.reshape(-1, 4)).to(device),
    )


def _hermite(value: Array, slope: Array) -> Array:
    """Coefficients (intervals, m, 4) of cubics on [0, 1] with these values and slopes (knots, m) at the ends."""
    rise, start, end = np.diff(value, axis=0), slope[:-1], slope[1:]
    return np.stack([value[:-1], start, 3 * rise - 2 * start - end, start + end - 2 * rise], axis=-1)


def _mass(trials: int, p: Array) -> Array:
    """Pr(Bin(trials, p) = k), (len(p), trials + 1), p in [0, 1]."""
    k = np.arange(trials + 1)
    choose = gammaln(trials + 1) - gammaln(k + 1) - gammaln(trials - k + 1)
    # At p = 0 and p = 1 all mass is at one end; away from there the bounds change nothing.
    log_p, log_q = np.log(np.maximum(p, 1e-300)), np.log(np.maximum(1 - p, 1e-300))
    mass: Array = np.exp(choose + k * log_p[:, None] + (trials - k) * log_q[:, None])
    return mass


def _distribution(trials: int, p: Array) -> Array:
    """F_p(k) for k = 0..trials-1, (len(p), trials)."""
    return np.minimum(np.cumsum(_mass(trials, p), axis=1)[:, :-1], 1.0)


def _slope(trials: int, theta: Array) -> Array:
    """dF/dtheta = -m Pr(Bin(m-1, p) = k) sin 2 theta, (len(theta), trials)."""
    return -trials * _mass(trials - 1, np.sin(theta) ** 2) * np.sin(2 * theta)[:, None]
