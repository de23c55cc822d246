"""Which process this one is, without importing what its launcher's framework needs."""

import pytest
from lightning.fabric.utilities.rank_zero import _get_rank

from del_lightning import ranks


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "3"}, {"LOCAL_RANK": "2", "SLURM_PROCID": "7"}, {"SLURM_PROCID": "7"}, {"JSM_NAMESPACE_RANK": "1"}],
)
def test_rank_is_the_one_that_lightning_finds(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.rank() == (_get_rank() or 0)
    assert ranks.is_first() == (not environment)
