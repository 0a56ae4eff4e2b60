"""The bytes of a ``.tflite`` file: a flatbuffer after the schema that comes with ``ai-edge-litert``, and a ZIP behind.

Used by ``litert_tensors`` and ``litert_graph``, in lesson 12. Leaves out: what stands in the file, and files of more
than 2 GB.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from types import ModuleType

import numpy as np

ALIGNMENT = 16  # bytes: the schema asks for it, and processors that load several numbers at once rely on it
FORMAT_VERSION = 3
FORMAT_NAME = b"TFL3"


@functools.cache
def schema() -> ModuleType:
    """The classes that ``ai-edge-litert`` made of the schema, one for each kind of table in the file.

    Raises:
        ImportError: the package is not there, or does not load here.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ImportError(f"LiteRT needs ai-edge-litert ({error}): pip install 'yolo-slim-lessons[deploy]'") from error
    return schema_py_generated


def file_bytes(
    tensors: list,
    operators: list,
    codes: Iterable[tuple[str, int]],
    buffers: Iterable[bytes],
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
) -> bytes:
    """The flatbuffer.

    Args:
        tensors: of the schema's class ``TensorT``.
        operators: of its class ``OperatorT``.
        codes: names and versions of operators, in the order in which ``operators`` count them.
        buffers: the numbers of constants, in the order in which ``tensors`` count them.
        inputs: name → index of a tensor.
        outputs: likewise.
    """
    tables = schema()
    for index in (*inputs.values(), *outputs.values()):  # any number of images
        tensors[index].shapeSignature = np.array([-1, *tensors[index].shape[1:]], np.int32)
    graph = tables.SubGraphT(
        tensors=tensors,
        inputs=np.array(list(inputs.values()), np.int32),
        outputs=np.array(list(outputs.values()), np.int32),
        operators=operators,
        name="classifier",
    )
    signature = tables.SignatureDefT(
        inputs=[tables.TensorMapT(name, index) for name, index in inputs.items()],
        outputs=[tables.TensorMapT(name, index) for name, index in outputs.items()],
        signatureKey="serving_default",
    )
    model = tables.ModelT(
        version=FORMAT_VERSION,
        operatorCodes=[_operator_code(name, version) for name, version in codes],
        subgraphs=[graph],
        description="yolo_slim_lessons",
        buffers=[_Buffer(data) for data in buffers],
        signatureDefs=[signature],
    )
    builder = _builder(sum(map(len, buffers)) + 2**16)
    builder.Finish(model.Pack(builder), file_identifier=FORMAT_NAME)
    return bytes(builder.Output())


def _operator_code(name: str, version: int):
    code = getattr(schema().BuiltinOperator, name)
    # Runtimes from before 2020 read the first number, which has 8 bits.
    return schema().OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version)


def _builder(size: int):
    """A builder of flatbuffers that writes equal vectors once: each weight has a row of zero points, all of them 0."""
    import flatbuffers  # comes with the schema

    class Builder(flatbuffers.Builder):
        def __init__(self, size: int):
            super().__init__(size)
            self.written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 - the schema's classes call it so
            key = x.dtype.str, x.tobytes()
            if key not in self.written:
                self.written[key] = super().CreateNumpyVector(x)
            return self.written[key]

    return Builder(size)


class _Buffer:
    """The numbers of a constant. The schema's own class for them leaves the alignment out."""

    def __init__(self, data: bytes):
        self.data = data

    def Pack(self, builder) -> int:  # noqa: N802 - the schema's classes call it so
        start = None
        if self.data:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            start = builder.EndVector()
        schema().BufferStart(builder)
        if start is not None:
            schema().BufferAddData(builder, start)
        return schema().BufferEnd(builder)


def with_properties(model: bytes, properties: Mapping[str, object]) -> bytes:
    """``model``, and behind it a ZIP archive with ``metadata.json``: where Ultralytics looks, and no runtime does."""
    file = io.BytesIO(model)
    file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file, "a") as archive:
        entry = zipfile.ZipInfo("metadata.json", (1980, 1, 1, 0, 0, 0))  # equal models make equal files
        archive.writestr(entry, json.dumps(properties, ensure_ascii=False), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def nibbles(numbers: np.ndarray) -> bytes:
    """Two numbers of 4 bits in each byte, the first in the lower half."""
    halves = numbers.astype(np.int8).ravel().view(np.uint8) & 0xF
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8))
    return (halves[::2] | halves[1::2] << 4).tobytes()
