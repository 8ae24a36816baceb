"""onnxruntime beside `benches/cpu.rs`: a BERT or ModernBERT cross-encoder in fp32 or dynamic int8.

    python onnxruntime_worker.py CONFIG fp32|int8 [THREADS]
    python onnxruntime_worker.py CONFIG check       compares fp32 with torch and transformers

CONFIG is the text of the model's `config.json`. Weights are random: speed does not depend on them.
`graph.py` makes the graph, `rounds.py` has the protocol. Needs numpy, onnx and onnxruntime from PyPI.
"""

import json
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic

from graph import build, masks
from rounds import serve

random = np.random.default_rng(1)


def random_weights(name, shape):
    if name.endswith("norm.weight") or name.endswith("LayerNorm.weight"):
        return np.ones(shape, np.float32)
    return random.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)


def load(config, weights, dtype, threads):
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/model.onnx"
    onnx.save(build(config, weights), path)
    if dtype == "int8":
        # Shape inference does not know the outputs of contributed operators.
        options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        quantize_dynamic(path, f"{folder.name}/int8.onnx", weight_type=QuantType.QInt8, extra_options=options)
        path = f"{folder.name}/int8.onnx"
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def batch(config, lengths):
    ids = random.integers(1000, config["vocab_size"] - 100, (len(lengths), max(lengths)))
    return {"ids": ids, **masks(config, lengths)}


def check(config):
    """Compares scores of a padded batch with those of `transformers` for the same weights."""
    import torch
    import torch_worker

    lengths = [300, 150, 90, 30, 1]
    inputs = batch(config, lengths)
    with torch.inference_mode():
        model = torch_worker.load(config, "fp32").model
        # Larger than the initial ones, so that attention and its masks matter.
        for parameter in (each for each in model.parameters() if each.dim() > 1):
            parameter.normal_(0, 2 / parameter.shape[-1] ** 0.5)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        theirs = model(input_ids=torch.from_numpy(inputs["ids"]), attention_mask=mask.long()).logits.numpy()
    weights = model.state_dict()
    for dtype in ["fp32", "int8"]:
        session = load(config, lambda name, shape: weights[name].numpy().reshape(shape), dtype, 1)
        difference = np.abs(session.run(None, inputs)[0] - theirs).max()
        print(f"{dtype}: logits from {theirs.min():.2f} to {theirs.max():.2f} differ by at most {difference:.1e}")
        assert dtype == "int8" or difference < 1e-3


def main():
    config, dtype = json.loads(sys.argv[1]), sys.argv[2]
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    if dtype == "check":
        return check(config)
    session = load(config, random_weights, dtype, threads)
    serve(lambda lengths: batch(config, lengths), lambda inputs, _: session.run(None, inputs), threads)


if __name__ == "__main__":
    main()
