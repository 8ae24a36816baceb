"""sentence-transformers' forward beside `benches/cuda.rs`: the same shapes and lengths, fp16 and bf16.

    python3 benches/gpu/peer.py

BERT with random weights and scaled-dot-product attention, eager and compiled, sorted by length and padded in batches of
the size that is fastest; wall time from ids on the host to logits on the host, medians of 20. Needs torch and
transformers from PyPI.
"""

import statistics
import time

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

MODELS = {"L2 H128": (2, 128, 2, 512), "L12 H384": (12, 384, 12, 1536), "L12 H768": (12, 768, 12, 3072)}
random = np.random.default_rng(42)


def lengths(count, tokens_max):
    """Lognormal with a mean of 107, as in `benches/cuda.rs`."""
    drawn, tokens = [], 0
    while len(drawn) < count:
        length = int(np.clip(round(random.lognormal(np.log(94.4), 0.5)), 16, 512))
        tokens += length
        if tokens > tokens_max:
            break
        drawn.append(length)
    return drawn


def score(model, batches):
    scores = []
    with torch.inference_mode():
        for ids, mask in batches:
            scores.append(model(input_ids=ids.cuda(), attention_mask=mask.cuda()).logits)
        return torch.cat(scores).float().cpu()


def batches(sizes, batch):
    """Pairs sorted by length, padded to the longest of each batch."""
    ordered = sorted(sizes)
    for first in range(0, len(ordered), batch):
        part = ordered[first : first + batch]
        ids = torch.full((len(part), part[-1]), 0)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(part):
            ids[row, :length] = 5
            mask[row, :length] = 1
        yield ids.pin_memory(), mask.pin_memory()


def measure(model, sizes):
    """Seconds by the fastest batch size, and that size."""
    best = (float("inf"), 0)
    for batch in (16, 32, 64, 128, 256):
        if batch > max(32, len(sizes)):
            continue
        prepared = list(batches(sizes, batch))
        times = []
        for round in range(23):
            started = time.perf_counter()
            score(model, prepared)
            times.append(time.perf_counter() - started)
        best = min(best, (statistics.median(times[3:]), batch))
    return best


for dtype in (torch.float16, torch.bfloat16):
    for name, (layers, hidden, heads, inner) in MODELS.items():
        config = BertConfig(
            num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=inner,
            num_labels=1, attn_implementation="sdpa",
        )
        eager = BertForSequenceClassification(config).to("cuda", dtype).eval()
        for how, model in (("eager", eager), ("compiled", torch.compile(eager, dynamic=True))):
            for workload, sizes in (("32 documents", lengths(32, 1 << 30)), ("saturated", lengths(10_000, 16_384))):
                seconds, batch = measure(model, sizes)
                print(
                    f"{str(dtype):<15} {name:<9} {how:<9} {workload:<13} {len(sizes):>4} pairs: {seconds * 1e3:.3f} ms,"
                    f" {len(sizes) / seconds:.0f} pairs/s in batches of {batch}",
                    flush=True,
                )
