"""deployment.py: ONNX Runtime must answer as PyTorch does."""

import numpy as np
import onnx
import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.deployment import export_onnx, onnx_session
from yolo_slim_lessons.models import logits


@pytest.mark.parametrize("pruned", [False, True])
def test_exported_model_answers_as_pytorch(nano, data, tmp_path, pruned):
    model = slim.prune_channels(nano, 0.3) if pruned else nano
    session = onnx_session(export_onnx(model, tmp_path / "model.onnx"), threads=1)
    images = as_floats(data.test.take(200).images)
    for batch in (images, images[:1]):
        theirs = session.run(None, {"images": batch.numpy()})[0]
        with torch.inference_mode():
            ours = logits(model, batch)
        difference = torch.from_numpy(theirs).softmax(1) - ours.softmax(1)
        assert difference.abs().max() < 1e-4
        assert np.array_equal(theirs.argmax(1), ours.argmax(1))


def test_batchnorm_is_folded(nano, tmp_path):
    graph = onnx.load(export_onnx(nano, tmp_path / "model.onnx")).graph
    assert {"Conv", "Gemm"} <= {node.op_type for node in graph.node}
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_exporting_leaves_the_model_alone(nano, tmp_path):
    before = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    export_onnx(nano, tmp_path / "model.onnx")
    assert all(torch.equal(tensor, before[name]) for name, tensor in nano.state_dict().items())


def test_a_failure_keeps_the_old_file(nano, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(torch.onnx, "export", full_disk)
    with pytest.raises(OSError, match="no space"):
        export_onnx(nano, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"old"


def test_bad_arguments_are_named(nano, tmp_path):
    with pytest.raises(TypeError, match="model is a Linear"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"model\.pt.*\.onnx"):
        export_onnx(nano, tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        onnx_session(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match="threads=0"):
        onnx_session(export_onnx(nano, tmp_path / "model.onnx"), threads=0)
