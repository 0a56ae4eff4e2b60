"""Activations of all calibration images, in memory and in a file that is mapped into memory."""

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.models import weight_layers
from yolo_slim_lessons.quantization.few_bits import stored_activations
from yolo_slim_lessons.quantization.few_bits.stored_activations import StoredActivations


@pytest.fixture(params=["memory", "file"])
def place(request, monkeypatch):
    monkeypatch.setattr(stored_activations, "IN_MEMORY", 0 if request.param == "file" else 10**9)
    return request.param


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_numbers_come_back_in_any_order_and_in_their_layout(place, memory_format):
    numbers = torch.randn(7, 3, 5, 4).to(memory_format=memory_format)
    stored = StoredActivations.of(numbers.split(3), 7, 3)
    assert stored.in_file == (place == "file")
    assert [len(batch) for batch in stored] == [3, 3, 1]
    chosen = torch.tensor([6, 0, 0, 3])
    assert stored[chosen].equal(numbers[chosen])
    assert stored[2:6].equal(numbers[2:6])
    assert stored[2:6].is_contiguous(memory_format=memory_format)


def test_repairs_are_the_same_from_memory_and_from_a_file(nano, data, monkeypatch):
    narrow = slim.prune_channels(nano, 0.875)
    images = data.train.take(40)
    rounded = slim.quantize_integer(narrow, 4, 8, images)
    repaired = []
    for limit in (10**9, 0):
        monkeypatch.setattr(stored_activations, "IN_MEMORY", limit)
        learned = slim.learn_rounding(rounded, narrow, images, steps=3, progress=False)
        repaired.append((learned, slim.correct_biases(rounded, narrow, images)))
    for in_memory, in_file in zip(*repaired, strict=True):
        for (name, first), (_, second) in zip(weight_layers(in_memory), weight_layers(in_file), strict=True):
            assert first.integers.equal(second.integers), name
            assert first.bias_integers.equal(second.bias_integers), name
