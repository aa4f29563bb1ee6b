"""Packing: short texts laid end to end in rows of one length, so that little of a batch is padding.

Unlike in packing by concatenation (GPT-3 and most that came after it), no text sees another: each carries the number
of its segment, attention stays within a segment, and positions begin anew in each (Krell et al. 2021, "Efficient
sequence packing without cross-contamination"). The loss of every text is the one it has alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed texts, each array [rows, room]: a token, the one that follows it, whether that one counts, and the number
    of the text within the row from 1 (0: padding)."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]
    segments: npt.NDArray[np.int64]


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of indices whose lengths fit into `room`, by first-fit decreasing (Johnson 1973: at most 11/9 of the least
    possible rows and a bit). Raises `ValueError` for a length above `room`."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[index] > room:
            raise ValueError(f"a text of {lengths[index]} tokens does not fit into rows of {room}")
        place = next((row for row, left in enumerate(free) if left >= lengths[index]), len(rows))
        if place == len(rows):
            rows.append([])
            free.append(room)
        rows[place].append(index)
        free[place] -= lengths[index]
    return rows


def deal(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Indices dealt into `parts` groups of nearly equal sums, the longest first; none is empty if there are enough."""
    groups: list[list[int]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        total, part = heapq.heappop(heap)
        groups[part].append(index)
        heapq.heappush(heap, (total + lengths[index], part))
    return groups


def lay_out(texts: Sequence[npt.NDArray[np.int64]], masks: Sequence[npt.NDArray[np.bool_]], room: int) -> Rows:
    """Texts of n tokens as n - 1 pairs of a token and the next, packed into rows; a text longer than `room` + 1 is cut
    there. The last row may be followed by padding; the rows are as wide as the fullest."""
    texts, masks = [text[: room + 1] for text in texts], [mask[: room + 1] for mask in masks]
    rows = first_fit([len(text) - 1 for text in texts], room)
    width = max(sum(len(texts[i]) - 1 for i in row) for row in rows)
    inputs, targets, segments = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(3))
    counted = np.zeros((len(rows), width), dtype=bool)
    for number, row in enumerate(rows):
        start = 0
        for segment, index in enumerate(row, 1):
            text = texts[index]
            cut = slice(start, start + len(text) - 1)
            inputs[number, cut], targets[number, cut], segments[number, cut] = text[:-1], text[1:], segment
            counted[number, cut] = masks[index][1:]
            start = cut.stop
    return Rows(inputs, targets, counted, segments)
