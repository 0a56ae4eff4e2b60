"""Fingerprints tell numbers apart, on any device and of any size."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch

from yolo_slim_lessons.files import fingerprint
from yolo_slim_lessons.models import copy_model


def test_the_same_numbers_have_the_same_fingerprint(nano):
    same = [nano, copy_model(nano), copy_model(nano).to(memory_format=torch.channels_last)]
    assert len({fingerprint(model) for model in same}) == 1
    other = copy_model(nano)
    with torch.no_grad():
        other.model[9].linear.bias[3] += 1e-6
    assert fingerprint(other) != fingerprint(nano)


def test_a_fingerprint_is_the_same_on_every_device(nano, device):
    assert fingerprint(copy_model(nano).to(device)) == fingerprint(nano)


def test_a_fingerprint_is_that_of_the_bytes_in_order():
    values = [1.5, -2.0, 3.25, 0.0, 5.0, 6.0]
    by_hand = hashlib.sha256(struct.pack("<6f", *values)).hexdigest()[:16]
    tensor = torch.tensor(values)
    for same in (tensor, tensor.view(2, 3), tensor.view(3, 2).t().contiguous().t(), tensor.view(6, 1, 1)):
        assert fingerprint(same) == by_hand


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.bool, torch.int64])
def test_every_number_type_has_one(dtype):
    ones, zeros = torch.ones(5, dtype=dtype), torch.zeros(5, dtype=dtype)
    assert fingerprint(ones) == fingerprint(ones.clone()) != fingerprint(zeros)
    assert fingerprint(torch.tensor(1).to(dtype)) == fingerprint(ones[:1])
    assert fingerprint(ones[:0])


def test_a_fingerprint_copies_no_data_set(run_python):
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak memory of a process is read from Linux's /proc")
    answer = run_python(
        """
import json, re
from pathlib import Path
import torch
from yolo_slim_lessons.files import fingerprint
def megabytes(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000
images = torch.zeros(1, 1, 64, 64, dtype=torch.uint8).expand(40_000, 3, -1, -1)  # 490 MB, if they were written out
before = megabytes("VmRSS")
fingerprint(images)
print(json.dumps(megabytes("VmHWM") - before))
"""
    )
    assert json.loads(answer.splitlines()[-1]) < 60
