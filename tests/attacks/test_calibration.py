import pytest
import torch
from torch import Tensor

from del_lightning.attacks import SuccessCurve, calibrate
from del_lightning.errors import ConfigError

THRESHOLD = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 200
"""A token is read as soon as mu exceeds its own threshold: a rate of about mu/200."""


class Counted:
    def __init__(self, threshold: Tensor = THRESHOLD) -> None:
        self.threshold, self.tried = threshold, list[float]()

    def __call__(self, mu: float) -> Tensor:
        self.tried.append(mu)
        return self.threshold < mu


@pytest.mark.parametrize("target", [0.02, 0.1, 0.15, 0.6])
def test_returns_the_largest_mu_that_complies(target: float) -> None:
    found = calibrate(Counted(), target, tolerance=0.05)
    assert found.reached
    assert found.asr.value <= target
    assert found.asr.high is not None
    assert found.asr.high <= target + 0.05
    assert found.asr.value == pytest.approx(float((found.mu > THRESHOLD).double().mean()))
    # One resolution step further the target is violated.
    step = 1e4 ** (1 / 2**16)
    assert float((found.mu * step > THRESHOLD).double().mean()) > target


def test_the_upper_limit_decides_when_the_tolerance_is_tight() -> None:
    loose, tight = (calibrate(Counted(), 0.1, tolerance=t) for t in (0.05, 0.005))
    assert tight.mu < loose.mu
    assert tight.asr.high is not None
    assert tight.asr.high <= 0.105
    assert tight.asr.value < 0.1


def test_resolution_is_the_number_of_halvings() -> None:
    for iterations in (1, 4, 16):
        curve = Counted()
        found = calibrate(curve, 0.1, iterations=iterations, tolerance=0.05)
        assert len(curve.tried) == iterations + 2
        assert found.mu <= 20.5


def test_evidence_lists_every_mu_with_its_interval() -> None:
    curve = Counted()
    found = calibrate(curve, 0.1)
    assert sorted(curve.tried) == [row["mu"] for row in found.evidence]
    for row in found.evidence:
        assert row["hits"] == int((row["mu"] > THRESHOLD).sum())
        assert row["n"] == 2000
        assert row["low"] <= row["hits"] / 2000 <= row["high"]


def test_targets_share_evaluations() -> None:
    shared = Counted()
    curve = SuccessCurve(shared)
    together = [calibrate(curve, target) for target in (0.02, 0.1, 0.15)]
    alone = [Counted() for _ in together]
    apart = [calibrate(counted, target) for counted, target in zip(alone, (0.02, 0.1, 0.15), strict=True)]
    assert [found.mu for found in together] == pytest.approx([found.mu for found in apart], rel=1e-3)
    assert len(shared.tried) == len(set(shared.tried))
    assert len(shared.tried) < sum(len(counted.tried) for counted in alone) - 6
    assert together[0].mu < together[1].mu < together[2].mu


def test_a_target_below_the_floor_is_admitted() -> None:
    always = Counted(torch.where(torch.arange(500) < 250, 0.0, 1e9))
    found = calibrate(always, 0.1)
    assert not found.reached
    assert found.mu == 0.1
    assert "out of reach" in found.note
    assert "violates" in found.note
    assert always.tried[0] == 0.1


def test_too_few_tokens_are_no_evidence() -> None:
    found = calibrate(Counted(THRESHOLD[:20]), 0.02)
    assert not found.reached
    assert "over 20 tokens" in found.note


def test_a_target_above_the_ceiling_is_admitted() -> None:
    found = calibrate(Counted(torch.full((2000,), 1e9)), 0.1)
    assert not found.reached
    assert found.mu == 1000.0
    assert found.asr.value == 0
    assert "not reached" in found.note


def test_a_bump_in_the_curve_never_lets_a_violation_through() -> None:
    # A non-monotone curve: high success between 5 and 6, low elsewhere below 50.
    def success(mu: float) -> Tensor:
        rate = 0.5 if 5 < mu < 6 or mu > 50 else 0.05
        return torch.arange(2000) < 2000 * rate

    curve = SuccessCurve(success)
    curve(5.5)
    found = calibrate(curve, 0.1)
    assert found.reached
    assert found.mu <= 5
    assert found.asr.value == 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0.0}, "`target` must be strictly between 0 and 1, got 0.0"),
        ({"target": 0.1, "tolerance": 1.0}, "`tolerance` must be strictly between 0 and 1, got 1.0"),
        ({"target": 0.1, "mu_range": (2.0, 1.0)}, "`mu_range` must be two increasing positive numbers"),
        ({"target": 0.1, "iterations": 0}, "`iterations` must be at least 1, got 0"),
    ],
)
def test_bad_arguments_name_themselves(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        calibrate(Counted(), **arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
