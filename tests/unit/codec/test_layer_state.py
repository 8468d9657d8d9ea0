"""States of several streams can be joined and split again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from musicgen_bento.codec.layer_state import (
    Conv1dState,
    ConvTranspose1dState,
    LayerState,
    ResidualState,
    SequentialState,
    StackedLSTMState,
)


def tensor(value: int, rows: int) -> torch.Tensor:
    return torch.full((rows, 3, 2), float(value))


def state_of(value: int, rows: int) -> SequentialState:
    """Return a state of every kind, with `rows` batch rows of this value."""
    conv = Conv1dState(tensor(value, rows), started=True)
    lstm = StackedLSTMState([(tensor(value, rows), tensor(-value, rows))])
    residual = ResidualState(SequentialState([conv]), SequentialState([]), tensor(value, rows))
    return SequentialState([LayerState(), conv, ConvTranspose1dState(2, tensor(value, rows)), lstm, residual])


def tensors_in(state: Any) -> list[torch.Tensor]:
    """Return all tensors of a state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, list | tuple):
        return [found for part in state for found in tensors_in(part)]
    fields = getattr(state, "__dataclass_fields__", ())
    return [found for name in fields for found in tensors_in(getattr(state, name))]


@pytest.mark.parametrize("rows", [1, 2])
def test_split_states_equal_the_joined_ones(rows: int) -> None:
    states = [state_of(value, rows) for value in (1, 2, 3)]
    batch = SequentialState.batch(states)
    assert all(part.shape[0] == 3 * rows for part in tensors_in(batch))
    for state, split in zip(states, batch.unbatch(3), strict=True):
        assert split.signature == state.signature
        assert len(tensors_in(split)) == 6
        for original, copy in zip(tensors_in(state), tensors_in(split), strict=True):
            assert torch.equal(original, copy)
            assert original.data_ptr() != copy.data_ptr()


def test_states_of_new_streams_can_be_joined() -> None:
    def new_state() -> SequentialState:
        return SequentialState([Conv1dState(), ConvTranspose1dState(4), StackedLSTMState()])

    batch = SequentialState.batch([new_state(), new_state()])
    assert batch == new_state()
    assert batch.unbatch(2) == [new_state(), new_state()]


def test_signatures_differ_by_what_prevents_a_batch() -> None:
    signatures = [
        Conv1dState().signature,
        Conv1dState(tensor(1, 1)).signature,
        Conv1dState(tensor(1, 1), started=True).signature,
        Conv1dState(tensor(1, 1)[:, 1:], started=True).signature,
    ]
    assert len(set(signatures)) == 4
    assert ConvTranspose1dState(1).signature != ConvTranspose1dState(0).signature
