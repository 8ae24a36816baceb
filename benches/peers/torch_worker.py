"""PyTorch with `transformers` beside `benches/cpu.rs`, on random weights.

    python torch_worker.py CONFIG bf16|fp32 [--threads N] [--prefix N] [--mode eager|compiled]

CONFIG is the text of a model's `config.json`; `model_type` chooses the architecture. An encoder is
scored by its `ForSequenceClassification`. A decoder is scored by the last token's hidden state and one
row, the difference of the rows of "yes" and "no", so `vocab_size` may be cut: the rest of the vocabulary
is never multiplied. A decoder's batch is padded on the right and needs no mask. `--prefix N` computes
the keys and values of a decoder's first N tokens once for all pairs of a round.

Modes: `eager` runs the modules as they are; `compiled` is `torch.compile` with frozen weights.

`rounds.py` has the protocol. Needs torch and transformers from PyPI; `compiled` needs a C++ compiler.
"""

import argparse
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from rounds import serve

parser = argparse.ArgumentParser()
parser.add_argument("config", type=json.loads)
parser.add_argument("dtype", choices=["bf16", "fp32"])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--prefix", type=int, default=0)
parser.add_argument("--mode", choices=["eager", "compiled"], default="eager")


class Encoder:
    start = None

    def __init__(self, config, dtype):
        self.config = config
        kind = transformers.AutoModelForSequenceClassification
        # DeBERTa's attention has no other implementation.
        attention = "eager" if config.model_type == "deberta-v2" else "sdpa"
        self.model = kind.from_config(config, dtype=dtype, attn_implementation=attention).eval()

    def prepare(self, lengths):
        ids = torch.randint(self.config.vocab_size, (len(lengths), lengths[0]))
        mask = torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]
        # Without padding a model needs no mask, which is faster.
        return {"input_ids": ids, "attention_mask": None if mask.all() else mask.long()}

    def score(self, batch, _state=None):
        return self.model(**batch).logits[:, 0]


class Decoder:
    def __init__(self, config, dtype, prefix):
        self.config = config
        self.model = transformers.AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        self.head = (torch.randn(config.hidden_size) / config.hidden_size**0.5).to(dtype)
        self.prefix = torch.randint(config.vocab_size, (1, prefix))
        if prefix == 0:
            self.start = None

    def start(self):
        cache = transformers.DynamicCache()
        self.model(self.prefix, cache=cache, use_cache=True)
        return cache

    def prepare(self, lengths):
        rest = torch.tensor(lengths) - self.prefix.shape[1]
        return torch.randint(self.config.vocab_size, (len(lengths), int(rest[0]))), rest - 1

    def score(self, batch, state=None):
        ids, last = batch
        if state is not None:
            shared = [
                tuple(part.expand(len(ids), -1, -1, -1) for part in (layer.keys, layer.values))
                for layer in state.layers
            ]
            state = transformers.DynamicCache(shared)
        hidden = self.model(ids, cache=state, use_cache=state is not None).last_hidden_state
        return hidden[torch.arange(len(ids)), last] @ self.head


def load(config, dtype, prefix=0, mode="eager"):
    """A scorer with random weights of a `config.json`."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(**{"num_labels": 1, **config})
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    is_decoder = config.model_type.startswith("qwen")
    scorer = Decoder(config, dtype, prefix) if is_decoder else Encoder(config, dtype)
    if mode == "compiled":
        import torch._inductor.config as inductor

        inductor.freezing = True
        scorer.model = torch.compile(scorer.model, dynamic=True)
    return scorer


def main():
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__} on {capability}, {torch.get_num_threads()} threads", file=sys.stderr)
    with torch.inference_mode():
        scorer = load(arguments.config, arguments.dtype, arguments.prefix, arguments.mode)
        serve(scorer.prepare, scorer.score, arguments.threads, scorer.start)


if __name__ == "__main__":
    main()
