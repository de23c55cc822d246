"""Which process this one is, without importing what its launcher's framework needs."""

import pytest
from lightning.fabric.utilities.rank_zero import _get_rank

from del_lightning import ranks
from del_lightning.errors import ArtifactError


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


@pytest.mark.parametrize("parent", [1, 4321])
def test_waiting_ends_when_the_process_that_started_this_one_is_gone(
    parent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0)
    monkeypatch.setattr(ranks, "_STARTER", parent)
    monkeypatch.setattr(ranks.os, "getppid", lambda: parent)
    ranks.wait()  # also where rank 0 is process 1 of a container
    monkeypatch.setattr(ranks.os, "getppid", lambda: 99)
    with pytest.raises(ArtifactError, match="rank 0 has ended"):
        ranks.wait()
