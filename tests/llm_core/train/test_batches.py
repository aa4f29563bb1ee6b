"""Batches depend on their number alone, and an epoch shows everything once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llm_core.contract import BadInput
from llm_core.train.batches import DialogueBatches, PageBatches, Windows, collate, shuffled_stream


def test_an_epoch_of_windows_covers_the_stream_once() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    windows = Windows(lambda _: tokens, 16, seed=1)
    for epoch in range(3):
        seen = [windows.window(epoch * windows.count + i) for i in range(windows.count)]
        inputs = np.concatenate([window[:-1] for window in seen])
        assert len(set(inputs.tolist())) == len(inputs) == windows.count * 16
        assert all((np.diff(window) == 1).all() for window in seen)
    assert windows.count == 61


def test_epochs_differ_in_order_and_offset() -> None:
    windows = Windows(lambda _: np.arange(1000), 16, seed=1)
    starts = [[int(windows.window(e * windows.count + i)[0]) for i in range(windows.count)] for e in range(2)]
    assert starts[0] != starts[1]
    assert starts[0][0] % 16 != starts[1][0] % 16 or sorted(starts[0]) != sorted(starts[1])


def test_a_batch_is_a_pure_function_of_its_number() -> None:
    pages, other = np.arange(500), np.arange(1000, 1400)

    def make(seed: int = 3) -> PageBatches:
        return PageBatches(Windows(lambda _: pages, 8, seed), Windows(lambda _: other, 8, seed, 1), 0.25, rows=4)

    forward = [make()(n).inputs_BT for n in range(40)]
    shared = make()
    for number in (39, 0, 17, 3):
        assert torch.equal(shared(number).inputs_BT, forward[number])
    assert not torch.equal(make(4)(0).inputs_BT, forward[0])
    assert all(int((batch >= 1000).any(dim=1).sum()) == 1 for batch in forward)


def test_a_step_is_the_same_however_it_is_cut() -> None:
    windows = Windows(lambda _: np.arange(500), 8, 3)
    whole, cut = PageBatches(windows, None, 0.0, rows=5), PageBatches(windows, None, 0.0, rows=5, parts=2)
    for step in range(20):
        parts = torch.cat([cut(2 * step).inputs_BT, cut(2 * step + 1).inputs_BT])
        assert torch.equal(parts, whole(step).inputs_BT)


def test_targets_are_the_next_tokens() -> None:
    batch = PageBatches(Windows(lambda _: np.arange(500), 8, 0), None, 0.5, rows=3)(0)
    assert torch.equal(batch.targets_BT, batch.inputs_BT + 1)


def test_too_few_tokens_are_named() -> None:
    with pytest.raises(BadInput, match="17 tokens are too few for windows of 16"):
        Windows(lambda _: np.arange(17), 16, 0)


def test_too_few_tokens_for_one_batch_are_named() -> None:
    windows = Windows(lambda _: np.arange(500), 16, 0)
    PageBatches(windows, None, 0.0, rows=windows.count)
    with pytest.raises(BadInput, match=r"batch_sequences: 31 sequences a step .* \(30 windows of 16 from 500 tokens\)"):
        PageBatches(windows, None, 0.0, rows=windows.count + 1)
    PageBatches(windows, windows, 0.5, rows=windows.count + 1)


def test_ids_in_the_wrong_format_are_named() -> None:
    with pytest.raises(BadInput, match="shards: token ids are float32, not whole numbers"):
        Windows(lambda _: np.zeros(500, dtype=np.float32), 16, 0)
    wide = np.arange(500, dtype="<u4") * 70000
    misread = np.frombuffer(wide.tobytes(), dtype="<u2")
    batches = PageBatches(Windows(lambda _: misread, 16, 0), None, 0.0, rows=4, vocab_size=512)
    with pytest.raises(BadInput, match=r"token id \d+ is beyond the model's vocabulary of 512"):
        [batches(number) for number in range(10)]


def test_an_id_beyond_the_vocabulary_is_refused_and_the_last_one_is_not() -> None:
    windows = Windows(lambda _: np.full(500, 63), 16, 0)
    assert int(PageBatches(windows, None, 0.0, rows=4, vocab_size=64)(0).inputs_BT.max()) == 63
    with pytest.raises(BadInput, match="token id 63 is beyond the model's vocabulary of 63"):
        PageBatches(windows, None, 0.0, rows=4, vocab_size=63)(0)


def test_shuffled_stream_keeps_pieces_whole() -> None:
    stream = shuffled_stream(np.arange(10), np.array([0, 3, 4, 10]), seed=2)
    orders = {tuple(stream(epoch).tolist()) for epoch in range(20)}
    assert len(orders) > 1
    for order in orders:
        text = ",".join(map(str, order))
        assert "0,1,2" in text
        assert "4,5,6,7,8,9" in text
        assert sorted(order) == list(range(10))


def test_collate_pads_masks_and_cuts() -> None:
    batch = collate([np.array([5, 6, 7]), np.arange(10, 20)], [np.array([0, 0, 1]), np.ones(10)], context=4)
    assert batch.inputs_BT.tolist() == [[5, 6, 7, 0], [10, 11, 12, 13]]
    assert batch.targets_BT.tolist() == [[6, 7, 0, 0], [11, 12, 13, 14]]
    assert batch.mask_BT is not None
    assert batch.mask_BT.tolist() == [[False, True, False, False], [True] * 4]
    assert batch.counted_N is not None
    assert batch.counted_N.tolist() == [1, 4, 5, 6, 7]


def test_dialogues_keep_their_proportion_and_are_cut_by_length() -> None:
    offsets = np.concatenate(([0], np.cumsum(np.arange(20) % 7 + 3)))
    tokens = np.repeat(np.arange(20), np.diff(offsets))
    groups = [(np.arange(5), 2), (np.arange(5, 20), 4)]
    batches = DialogueBatches(tokens, np.ones_like(tokens), offsets, groups, context=16, seed=1, parts=2)
    seen: list[int] = []
    for step in range(15):
        parts = [batches(2 * step + part) for part in range(2)]
        rows = [int(row[0]) for part in parts for row in part.inputs_BT]
        assert len(rows) == 6
        assert sum(row < 5 for row in rows) == 2
        assert parts[0].inputs_BT.shape[1] <= parts[1].inputs_BT.shape[1]
        seen += rows
    assert all(seen.count(index) == 4 for index in range(5, 20))
    assert all(seen.count(index) == 6 for index in range(5))


def test_a_group_without_dialogues_is_refused() -> None:
    with pytest.raises(BadInput, match="batch_dialogues"):
        DialogueBatches(np.arange(4), np.ones(4), np.array([0, 4]), [(np.array([], dtype=int), 1)], context=8, seed=0)
