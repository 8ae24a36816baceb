"""sentence-transformers beside us on one GPU.

    python3 benches/gpu/peer.py                          forwards alone: the shapes and lengths of `benches/cuda.rs`
    python3 benches/gpu/peer.py MODEL_DIR SET_DIR URL    whole requests, to its CrossEncoder and to a server of ours

Forwards: BERT with random weights and scaled-dot-product attention, eager and compiled, sorted by length and padded in
batches of the size that is fastest; wall time from ids on the host to logits on the host, medians of 20. Requests: BM25's
first 32 of each query of a judged set, one after the other, from text to scores, medians. Needs torch, transformers and
sentence-transformers from PyPI.
"""

import collections
import http.client
import json
import statistics
import sys
import time
import urllib.parse

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

MODELS = {"L12 H384": (12, 384, 12, 1536)}
DTYPES = (torch.float16, torch.bfloat16)
SATURATED_TOKENS = 32_768
DOCUMENTS, REQUESTS = 32, 60


def lengths(random, count, tokens_max):
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
    for batch in (32, 64, 128, 256):
        if batch > max(32, len(sizes)):
            continue
        prepared = list(batches(sizes, batch))
        times = []
        for _ in range(23):
            started = time.perf_counter()
            score(model, prepared)
            times.append(time.perf_counter() - started)
        best = min(best, (statistics.median(times[3:]), batch))
    return best


def forwards():
    random = np.random.default_rng(42)
    workloads = (("32 documents", lengths(random, 32, 1 << 30)), ("saturated", lengths(random, 10_000, SATURATED_TOKENS)))
    for dtype in DTYPES:
        for name, (layers, hidden, heads, inner) in MODELS.items():
            config = BertConfig(
                num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=inner,
                num_labels=1, attn_implementation="sdpa",
            )
            eager = BertForSequenceClassification(config).to("cuda", dtype).eval()
            for how, model in (("eager", eager), ("compiled", torch.compile(eager, dynamic=True))):
                for workload, sizes in workloads:
                    seconds, batch = measure(model, sizes)
                    print(
                        f"{str(dtype):<15} {name:<9} {how:<9} {workload:<13} {len(sizes):>4} pairs: {seconds * 1e3:.3f} ms,"
                        f" {len(sizes) / seconds:.0f} pairs/s in batches of {batch}",
                        flush=True,
                    )


def requests(folder):
    """(query, documents) of a judged set's run."""
    texts = {}
    for name in ("queries", "corpus"):
        with open(f"{folder}/{name}.jsonl") as lines:
            for line in map(json.loads, lines):
                text = " ".join(filter(None, (line.get("title"), line.get("text"))))
                texts[name, str(line.get("_id", line.get("id")))] = text
    found = collections.defaultdict(list)
    with open(f"{folder}/bm25.run") as lines:
        for query, _, document, *_ in map(str.split, lines):
            found[query].append(texts["corpus", document])
    return [(texts["queries", query], documents[:DOCUMENTS]) for query, documents in found.items()][:REQUESTS]


def timed(requests, ask):
    """Median seconds of a request, after all were asked once."""
    for request in requests:
        ask(*request)
    times = []
    for request in requests:
        started = time.perf_counter()
        ask(*request)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def whole(model_dir, set_dir, url):
    from sentence_transformers import CrossEncoder

    asked = requests(set_dir)
    address = urllib.parse.urlsplit(url)
    client = http.client.HTTPConnection(address.hostname, address.port)

    def ours(query, documents):
        body = json.dumps({"query": query, "documents": documents, "latency_budget_ms": 10_000})
        client.request("POST", "/v1/rerank", body, {"content-type": "application/json"})
        answer = client.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body

    print(f"{len(asked)} requests of {DOCUMENTS} documents, one at a time; the server's last answer: {ours(*asked[0])[-400:]!r}")
    print(f"podium, over HTTP: {timed(asked, ours) * 1e3:.3f} ms", flush=True)
    for dtype in DTYPES:
        for how in ("eager", "compiled"):
            encoder = CrossEncoder(model_dir, device="cuda", model_kwargs={"torch_dtype": dtype})
            if how == "compiled":
                encoder.model = torch.compile(encoder.model, dynamic=True)
            theirs = lambda query, documents: encoder.predict([(query, text) for text in documents], batch_size=DOCUMENTS)
            print(f"CrossEncoder {dtype} {how}: {timed(asked, theirs) * 1e3:.3f} ms", flush=True)
    print(f"podium again: {timed(asked, ours) * 1e3:.3f} ms", flush=True)


if sys.argv[1:]:
    whole(*sys.argv[1:])
else:
    forwards()
