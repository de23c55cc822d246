"""The Pareto front: what nobody beats in one respect without losing in another."""

from collections.abc import Sequence

import numpy as np


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is on the front, smaller being better in every coordinate.

    A point is off the front if another one is nowhere larger and somewhere smaller; equal points share its fate.

    Args:
        points: (N, k), no NaN; infinities are the largest and smallest of all.
    """
    if not points:
        return []
    first, second = np.array(points, dtype=float)[:, None], np.array(points, dtype=float)[None]
    beats = np.asarray((first <= second).all(axis=2) & (first < second).any(axis=2))
    return [not beaten for beaten in np.asarray(beats.any(axis=0)).tolist()]
