"""Resume points: whole or not there, refused with their name when damaged or foreign, independent of who wrote them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.train.resume import RECORD, Point, Points, check_settings


def tensors(seed: int = 0, width: int = 8) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {f"layer.{n}": torch.randn(width, 4, generator=draw) for n in range(5)} | {"count": torch.tensor(3)}


def read(point: Point, like: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    point.read(like, found.__setitem__)
    return found


@contextmanager
def no_space_beyond(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [1, 300, 10**9])
def test_what_was_written_is_read_whatever_the_files(limit: int, tmp_path: Path) -> None:
    points = Points(tmp_path, "step", shard_bytes=limit)
    points.write(7, iter(tensors().items()), {"a": 0.1, "b": [float("inf")]})
    point = points.newest()
    assert point is not None
    assert point.record == {"a": 0.1, "b": [float("inf")]}
    assert len(point.files) == {1: 6, 300: 3, 10**9: 1}[limit]
    found = read(point, tensors())
    assert all(torch.equal(found[name], value) for name, value in tensors().items())


def test_the_newest_stay(tmp_path: Path) -> None:
    points = Points(tmp_path, "step", keep=2)
    for step in (2, 9, 10):
        points.write(step, iter(tensors(step).items()), {})
    assert points.steps() == [9, 10]
    newest = points.newest()
    assert newest is not None
    assert torch.equal(read(newest, tensors())["layer.0"], tensors(10)["layer.0"])
    assert Points(tmp_path, "best").newest() is None


def test_a_half_written_point_is_never_seen(tmp_path: Path) -> None:
    points = Points(tmp_path, "step")
    points.write(1, iter(tensors().items()), {})
    (tmp_path / ".step-00000002.part").mkdir()
    (tmp_path / ".step-00000002.part" / "tensors-00001.safetensors").write_bytes(b"half")
    assert points.steps() == [1]
    points.write(2, iter(tensors().items()), {})
    assert points.steps() == [1, 2]


@pytest.mark.parametrize("limit", [300, 2000])
def test_no_space_left_keeps_the_point_before(limit: int, tmp_path: Path) -> None:
    """The disk fills up in the first file, or in a later one."""
    points = Points(tmp_path, "step", shard_bytes=1500)
    points.write(1, iter(tensors().items()), {"ok": True})
    big = {"small": torch.zeros(300)} | tensors(1, width=1000)
    with no_space_beyond(limit), pytest.raises(OSError, match="step-00000002: could not be saved"):
        points.write(2, iter(big.items()), {})
    assert points.steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    point = points.newest()
    assert point is not None
    assert torch.equal(read(point, tensors())["layer.4"], tensors()["layer.4"])


@pytest.mark.parametrize("damage", ["cut", "gone", "no record", "bad record", "garbage"])
def test_a_damaged_point_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    points = Points(tmp_path, "step")
    points.write(3, iter(tensors().items()), {})
    file, record = points.path(3) / "tensors-00001.safetensors", points.path(3) / RECORD
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "no record":
        record.unlink()
    elif damage == "bad record":
        record.write_text(record.read_text()[:-5])
    else:
        file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(BadInput, match="step-00000003: not a whole resume point"):
        read(points.read(3), tensors())


def test_a_foreign_point_is_refused_by_the_tensor_that_differs(tmp_path: Path) -> None:
    points = Points(tmp_path, "step")
    points.write(3, iter(tensors().items()), {})
    with pytest.raises(BadInput, match=r"no tensor 'layer.9'"):
        read(points.read(3), {"layer.9": torch.zeros(1)})
    with pytest.raises(BadInput, match=r"'layer.0' is \(8, 4\), wanted \(8, 5\)"):
        read(points.read(3), {"layer.0": torch.zeros(8, 5)})


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    points = Points(tmp_path, "step")
    points.write(3, iter(tensors().items()), {"settings": {"rate": 0.1, "steps": 5, "prompts": [1, 2]}})
    point = points.read(3)
    check_settings(point, {"rate": 0.1, "steps": 5, "prompts": (1, 2)})
    with pytest.raises(BadInput) as refused:
        check_settings(point, {"rate": 0.2, "steps": 5, "prompts": (1, 2), "new": None})
    assert "rate (was 0.1, is 0.2)" in str(refused.value)
    assert "steps" not in str(refused.value).partition("other settings:")[2]
