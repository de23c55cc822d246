"""Checkpoints come back as they were, and never as code."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from del_lightning.checkpoints import SafetensorsIO
from del_lightning.errors import ArtifactError


def trained(steps: int) -> dict[str, Any]:
    """What AdamW and a schedule hold after some steps."""
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(steps):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        schedule.step()
    return {
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "state_dict": {"weight": weight},
        "loops": {"fit_loop": {"ready": 3, "is_last_batch": False, "state_dict": {}}},
        "best": math.inf,
        "nothing": None,
        "text": 'a "quoted" key=ü',
        "rate": 0.1 + 0.2,
    }


def same(one: Any, other: Any) -> bool:
    """Equal in value, type, order and, for tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    io, checkpoint = SafetensorsIO(), trained(3)
    io.save_checkpoint(checkpoint, tmp_path / "run" / "last.ckpt.safetensors")
    checkpoint["state_dict"]["weight"] = checkpoint["state_dict"]["weight"].detach()
    found = io.load_checkpoint(tmp_path / "run" / "last.ckpt.safetensors")
    assert same(found, checkpoint)
    assert not same(found, trained(4))
    assert isinstance(found["optimizer_states"][0]["param_groups"][0]["betas"], tuple)
    assert list(found["optimizer_states"][0]["state"]) == [0]  # a number, not text


def test_tensors_that_share_memory_are_written_twice(tmp_path: Path) -> None:
    one = torch.arange(4.0)
    SafetensorsIO().save_checkpoint({"whole": one, "part": one[1::2]}, tmp_path / "x")
    found = SafetensorsIO().load_checkpoint(tmp_path / "x")
    assert found["whole"].tolist() == [0, 1, 2, 3]
    assert found["part"].tolist() == [1, 3]


def test_any_reader_of_safetensors_opens_it(tmp_path: Path) -> None:
    SafetensorsIO().save_checkpoint({"state_dict": {"w": torch.ones(2, 3)}}, tmp_path / "x")
    with safe_open(tmp_path / "x", "pt") as file:
        assert [file.get_tensor(name).shape for name in file.keys()] == [(2, 3)]  # noqa: SIM118


def test_a_failed_write_leaves_the_file_before_it(tmp_path: Path) -> None:
    io, path = SafetensorsIO(), tmp_path / "x"
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises(ArtifactError, match=r"tensors and plain data, got set"):
        io.save_checkpoint({"step": {2}}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    (tmp_path / "x").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ArtifactError, match=r"x must be a checkpoint of this package"):
        SafetensorsIO().load_checkpoint(tmp_path / "x")
    assert not (tmp_path / "harm").exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    SafetensorsIO().save_checkpoint(trained(1), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="must be a checkpoint"):
        SafetensorsIO().load_checkpoint(path)


def test_removal(tmp_path: Path) -> None:
    SafetensorsIO().save_checkpoint({}, tmp_path / "x")
    SafetensorsIO().remove_checkpoint(tmp_path / "x")
    SafetensorsIO().remove_checkpoint(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
