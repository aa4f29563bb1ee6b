"""Resume points of what is spread over ranks: each rank writes and reads its own part, by torch's DCP.

Notable:
- torch.distributed.checkpoint decides who writes what (copies of one part are written once) and, when reading, which
  pieces of which files a rank needs: a point of four ranks goes on with two or with one, sharded or not.
- The files are safetensors with the parts' places in their headers: nothing is pickled. Each rank hashes what it wrote.
- The folder gets its record and its name by the first rank, when all have written: whole or not there at all.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llm_core.train.distributed import Ranks, local, part_of
from llm_core.train.resume import Point, Points, facts

FORM = "parts"
"""What the record of such a point has under "form"."""


def write_parts(
    points: Points, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], ranks: Ranks
) -> None:
    """Write the point of `step`; every rank calls it with its parts of the same tensors.

    Raises `OSError` on every rank if one of them cannot write; the points before it are then untouched.
    """
    from torch.distributed import checkpoint

    partial = points.path(step).with_name(f".{points.path(step).name}.part")
    if ranks.first:
        points.begun(step).mkdir(parents=True)
    ranks.any(False)  # all wait until the folder is there
    held = {name: value.detach() for name, value in tensors.items()}
    writer = checkpoint.HuggingFaceStorageWriter(str(partial), save_distributed=True)
    try:
        checkpoint.save(held, storage_writer=writer)
    except checkpoint.api.CheckpointException as error:  # told to all ranks, so all come here
        ranks.any(False)
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
        why = "; ".join(f"rank {rank}: {each[0]}" for rank, each in sorted(error.failures.items()))
        raise OSError(f"{points.path(step)}: could not be saved ({why}); the points saved before are whole") from error
    mine = {path.name: facts(path) for path in sorted(partial.glob(f"shard-{ranks.rank + 1:05d}-*.safetensors"))}
    files = {name: entry for each in ranks.collect(mine) for name, entry in each.items()}
    if ranks.first:
        points.publish(step, files, {**record, "form": FORM})
    ranks.any(False)  # nobody goes on, and perhaps ends, before the point stands


@torch.no_grad()
def load(point: Point, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill the tensors, or this rank's parts of them, in place; whoever wrote the point, whole or in parts.

    Every rank calls it. Raises `BadInput` naming the point if a tensor is missing or has another shape.
    """
    if point.record.get("form") != FORM:
        point.read(tensors, lambda name, value: local(tensors[name]).copy_(local(part_of(value, tensors[name]))))
        return
    from torch.distributed import checkpoint

    reader = checkpoint.HuggingFaceStorageReader(str(point.path))
    found = reader.read_metadata().state_dict_metadata
    for name, like in tensors.items():
        point.fits(name, getattr(found.get(name), "size", None), like.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        checkpoint.load(dict(tensors), storage_reader=reader, no_dist=ranks.world == 1)
