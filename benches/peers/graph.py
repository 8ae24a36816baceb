"""ONNX graphs of cross-encoders, written by hand from a `config.json`.

`build(config, weights)` makes the graph with inputs `ids`, `far` and, for ModernBERT, `near`: token ids
`[b, s]` and what attention adds to scores, `[b, 1, s, s]`, in layers that see all tokens and in those
with a window. `weights(name, shape)` gives each weight by its name in `transformers`.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


class Graph:
    def __init__(self, config, weights):
        self.hidden = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.inner = config["intermediate_size"]
        self.layers = config["num_hidden_layers"]
        self.epsilon = config.get("norm_eps", config.get("layer_norm_eps", 1e-5))
        self.weights, self.nodes, self.constants = weights, [], {}

    def constant(self, name, value):
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name, *shape):
        return self.constant(name, self.weights(name, shape))

    def node(self, kind, *inputs, **attributes):
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def contrib(self, kind, *inputs, **attributes):
        return self.node(kind, *inputs, domain="com.microsoft", **attributes)

    def linear(self, x, name, inputs, outputs, bias=True):
        value = np.ascontiguousarray(self.weights(f"{name}.weight", (outputs, inputs)).T)
        product = self.node("MatMul", x, self.constant(f"{name}.weight", value))
        return self.node("Add", product, self.weight(f"{name}.bias", outputs)) if bias else product

    def parts(self, x, name, inputs, *outputs):
        """Maps of one weight, one by one, since ONNX would copy the parts of their joint output."""
        whole = self.weights(f"{name}.weight", (sum(outputs), inputs))
        weights = np.split(whole, np.cumsum(outputs)[:-1])
        names = [self.constant(f"{name}.{part}", weight.T.copy()) for part, weight in enumerate(weights)]
        return [self.node("MatMul", x, weight) for weight in names]

    def norm(self, x, name, bias=True):
        inputs = [x, self.weight(f"{name}.weight", self.hidden)]
        if bias:
            inputs.append(self.weight(f"{name}.bias", self.hidden))
        return self.node("LayerNormalization", *inputs, axis=-1, epsilon=self.epsilon)

    def gelu(self, x):
        half, one = self.constant("half", np.float32(0.5)), self.constant("one", np.float32(1))
        error = self.node("Erf", self.node("Div", x, self.constant("root", np.float32(2**0.5))))
        return self.node("Mul", self.node("Mul", x, self.node("Add", error, one)), half)

    def attend(self, query, key, value, mask):
        return self.contrib("MultiHeadAttention", query, key, value, "", "", mask, num_heads=self.heads)

    def first(self, x):
        return self.node("Gather", x, self.constant("zero", np.array(0, np.int64)), axis=1)

    def positions(self):
        """The numbers of the tokens, `[s]`."""
        zero, one = self.constant("zero", np.array(0, np.int64)), self.constant("step", np.array(1, np.int64))
        length = self.node("Gather", self.node("Shape", "ids"), one)
        return self.node("Range", zero, length, one)


def bert(graph, config):
    hidden, inner = graph.hidden, graph.inner
    embeddings = "bert.embeddings"
    words = graph.weight(f"{embeddings}.word_embeddings.weight", config["vocab_size"], hidden)
    words = graph.node("Gather", words, "ids")
    # All tokens are of the first kind.
    kinds = graph.weight(f"{embeddings}.token_type_embeddings.weight", 2, hidden)
    kinds = graph.node("Gather", kinds, graph.constant("zero", np.array(0, np.int64)))
    rows = config.get("max_position_embeddings", 512)
    places = graph.weight(f"{embeddings}.position_embeddings.weight", rows, hidden)
    places = graph.node("Gather", places, graph.positions())
    x = graph.node("Add", graph.node("Add", words, kinds), places)
    x = graph.norm(x, f"{embeddings}.LayerNorm")
    for number in range(graph.layers):
        name = f"bert.encoder.layer.{number}"
        maps = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        context = graph.attend(*(graph.linear(x, part, hidden, hidden) for part in maps), "far")
        context = graph.linear(context, f"{name}.attention.output.dense", hidden, hidden)
        x = graph.norm(graph.node("Add", context, x), f"{name}.attention.output.LayerNorm")
        up = graph.gelu(graph.linear(x, f"{name}.intermediate.dense", hidden, inner))
        down = graph.linear(up, f"{name}.output.dense", inner, hidden)
        x = graph.norm(graph.node("Add", down, x), f"{name}.output.LayerNorm")
    pooled = graph.node("Tanh", graph.linear(graph.first(x), "bert.pooler.dense", hidden, hidden))
    return graph.linear(pooled, "classifier", hidden, 1)


def modernbert(graph, config):
    hidden, inner, size = graph.hidden, graph.inner, graph.hidden // graph.heads
    words = graph.weight("model.embeddings.tok_embeddings.weight", config["vocab_size"], hidden)
    x = graph.norm(graph.node("Gather", words, "ids"), "model.embeddings.norm", bias=False)
    axis = graph.constant("axis", np.array([0], np.int64))
    places = graph.node("Unsqueeze", graph.positions(), axis)
    places = graph.node("Add", places, graph.node("Mul", "ids", graph.constant("zero", np.array(0, np.int64))))
    rotations = {}
    for reach, theta in [("far", 160_000.0), ("near", 10_000.0)]:
        angles = np.outer(np.arange(8192), theta ** -(np.arange(0, size, 2) / size))
        rotations[reach] = [
            graph.constant(f"{reach}.cos", np.cos(angles).astype(np.float32)),
            graph.constant(f"{reach}.sin", np.sin(angles).astype(np.float32)),
        ]
    for number in range(graph.layers):
        name = f"model.layers.{number}"
        reach = "near" if number % config["global_attn_every_n_layers"] else "far"
        normed = graph.norm(x, f"{name}.attn_norm", bias=False) if number else x
        query, key, value = graph.parts(normed, f"{name}.attn.Wqkv", hidden, hidden, hidden, hidden)
        query = graph.contrib("RotaryEmbedding", query, places, *rotations[reach])
        key = graph.contrib("RotaryEmbedding", key, places, *rotations[reach])
        context = graph.attend(query, key, value, reach)
        x = graph.node("Add", graph.linear(context, f"{name}.attn.Wo", hidden, hidden, bias=False), x)
        normed = graph.norm(x, f"{name}.mlp_norm", bias=False)
        up, gate = graph.parts(normed, f"{name}.mlp.Wi", hidden, inner, inner)
        gated = graph.node("Mul", graph.gelu(up), gate)
        x = graph.node("Add", graph.linear(gated, f"{name}.mlp.Wo", inner, hidden, bias=False), x)
    # The final norm is per token, and the score needs the first only.
    x = graph.norm(graph.first(x), "model.final_norm", bias=False)
    x = graph.gelu(graph.linear(x, "head.dense", hidden, hidden, bias=False))
    return graph.linear(graph.norm(x, "head.norm", bias=False), "classifier", hidden, 1)


def masks(config, lengths):
    """What attention adds to the scores of a padded batch, by the name of the input."""
    longest = max(lengths)
    places = np.arange(longest)
    padding = np.where(places < np.array(lengths)[:, None], 0, -1e4).astype(np.float32)[:, None, None]
    made = {"far": np.ascontiguousarray(np.broadcast_to(padding, (len(lengths), 1, longest, longest)))}
    if config["model_type"] == "modernbert":
        distances = np.abs(places[:, None] - places)
        window = np.where(distances <= config["local_attention"] // 2, 0, -1e4).astype(np.float32)
        made["near"] = np.minimum(padding, window)
    return made


def build(config, weights):
    graph = Graph(config, weights)
    logits = {"bert": bert, "modernbert": modernbert}[config["model_type"]](graph, config)
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])]
    for name in masks(config, [1]):
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, "s", "s"]))
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 1])
    made = helper.make_graph(graph.nodes, "encoder", inputs, [output], list(graph.constants.values()))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8)
