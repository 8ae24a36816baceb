"""onnxruntime beside `benches/cpu.rs`: a BERT cross-encoder of a given shape, in fp32 or dynamic int8.

    python onnxruntime_worker.py LAYERS HIDDEN HEADS INTERMEDIATE fp32|int8

The first line of standard input is the pairs' lengths, as JSON. It answers "ready BATCH", and each
further line with the milliseconds of CPU time that all pairs took on one thread, sorted by length and
padded in batches of the size that was fastest in a trial. Weights are random: speed does not depend
on them. Needs numpy, onnx and onnxruntime from PyPI.
"""

import json
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

layers, hidden, heads, inner = map(int, sys.argv[1:5])
size = hidden // heads
random = np.random.default_rng(1)
nodes, weights = [], []


def weight(name, value):
    weights.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def floats(name, *shape):
    return weight(name, random.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32))


def node(kind, *inputs, **attributes):
    name = f"n{len(nodes)}"
    nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
    return name


def linear(x, name, inputs, outputs):
    product = node("MatMul", x, floats(f"{name}.w", inputs, outputs))
    return node("Add", product, floats(f"{name}.b", outputs))


def norm(x, name):
    scale = weight(f"{name}.g", np.ones(hidden, np.float32))
    return node("LayerNormalization", x, scale, floats(f"{name}.b", hidden), axis=-1, epsilon=1e-12)


def split(x, *order):
    shaped = node("Reshape", x, shape_split)
    return node("Transpose", shaped, perm=order)


shape_split = weight("split", np.array([0, 0, heads, size], np.int64))
shape_join = weight("join", np.array([0, 0, hidden], np.int64))
half, one = weight("half", np.float32(0.5)), weight("one", np.float32(1))
root = weight("root", np.float32(np.sqrt(2)))
scale = weight("scale", np.float32(1 / np.sqrt(size)))

words = node("Gather", floats("words", 30522, hidden), "ids")
kinds = node("Gather", floats("kinds", 2, hidden), "kinds_of")
places = node("Gather", floats("places", 512, hidden), "places_of")
x = norm(node("Add", node("Add", words, kinds), places), "embedding")
for number in range(layers):
    name = f"layer{number}"
    query = split(linear(x, f"{name}.q", hidden, hidden), 0, 2, 1, 3)
    key = split(linear(x, f"{name}.k", hidden, hidden), 0, 2, 3, 1)
    value = split(linear(x, f"{name}.v", hidden, hidden), 0, 2, 1, 3)
    scores = node("Add", node("Mul", node("MatMul", query, key), scale), "mask")
    context = node("MatMul", node("Softmax", scores, axis=-1), value)
    context = node("Reshape", node("Transpose", context, perm=(0, 2, 1, 3)), shape_join)
    x = norm(node("Add", linear(context, f"{name}.o", hidden, hidden), x), f"{name}.n1")
    up = linear(x, f"{name}.up", hidden, inner)
    gelu = node("Mul", node("Mul", up, node("Add", node("Erf", node("Div", up, root)), one)), half)
    x = norm(node("Add", linear(gelu, f"{name}.down", inner, hidden), x), f"{name}.n2")
first = node("Gather", x, weight("zero", np.array(0, np.int64)), axis=1)
logits = linear(node("Tanh", linear(first, "pooler", hidden, hidden)), "classifier", hidden, 1)
nodes.append(helper.make_node("Identity", [logits], ["logits"]))

ints = ["ids", "kinds_of", "places_of"]
inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ints]
inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["b", 1, 1, "s"]))
output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 1])
graph = helper.make_graph(nodes, "bert", inputs, [output], weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
folder = tempfile.mkdtemp()
path = f"{folder}/model.onnx"
onnx.save(model, path)
if sys.argv[5] == "int8":
    quantize_dynamic(path, f"{folder}/int8.onnx", weight_type=QuantType.QInt8)
    path = f"{folder}/int8.onnx"
options = ort.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

lengths = sorted(json.loads(sys.stdin.readline()), reverse=True)


def batches(count):
    made = []
    for start in range(0, len(lengths), count):
        rows = lengths[start : start + count]
        longest = rows[0]
        ids = random.integers(1000, 30000, (len(rows), longest))
        kinds_of = np.broadcast_to((np.arange(longest) >= 10).astype(np.int64), ids.shape).copy()
        places_of = np.broadcast_to(np.arange(longest), ids.shape).copy()
        mask = np.zeros((len(rows), 1, 1, longest), np.float32)
        for row, length in enumerate(rows):
            mask[row, ..., length:] = -1e4
        made.append({"ids": ids, "kinds_of": kinds_of, "places_of": places_of, "mask": mask})
    return made


def run(made):
    started = time.process_time()
    for batch in made:
        session.run(None, batch)
    return (time.process_time() - started) * 1e3


choices = {count: batches(count) for count in (4, 8, 16, 32)}
trials = {count: min(run(made) for _ in range(3)) for count, made in choices.items()}
best = min(trials, key=trials.get)
print(f"ready {best}", flush=True)
for _ in sys.stdin:
    print(run(choices[best]), flush=True)
