"""The network as a graph of few kinds of nodes, found by tracing its real forward pass. Used by all of the package.

``trace`` writes down what is computed from what. Whatever needs the structure, such as channel pruning, integer
execution or the writer of ONNX files, is a ``Walk`` over the result: a class with one method for each kind of node. No
other module knows how a block of Ultralytics looks inside.

The kinds: ``image``; the layers ``conv``, ``norm``, ``activation``, ``pool``, ``dropout``, ``linear``; what is done
between them, ``sum``, ``concat``, ``split``, ``reshape``, ``transpose``; and what attention adds, ``scale``,
``matmul``, ``softmax``. Leaves out: everything else, which is refused by its name and its place; and tensors whose
first dimension is not the image.
"""

from yolo_slim_lessons.graph.nodes import Execution, Graph, Node, Walk, replace_module
from yolo_slim_lessons.graph.tracing import trace

__all__ = ["Execution", "Graph", "Node", "Walk", "replace_module", "trace"]
