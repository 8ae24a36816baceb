"""Measures sentence-transformers on a GPU, for comparison with Podium.

    python3 benches/gpu/peer.py                          forwards, with the shapes and lengths of `benches/cuda.rs`
    python3 benches/gpu/peer.py MODEL_DIR SET_DIR URL    whole requests, to its CrossEncoder and to a Podium server

Forwards: BERT with random weights and scaled-dot-product attention, eager and compiled, sorted by length and padded in
batches of the fastest size. Reported is the wall time from ids on the host to logits on the host, medians of 20.
Requests: BM25's first 32 of each query of a judged set, one after the other; and the first 100, cut to 46 words, all at
once. Reported is the time from text to scores, medians. Needs torch, transformers and sentence-transformers from PyPI.
"""
@@ benches/gpu/pack
<<<
# Builds what a GPU machine runs, into target/gpu: the tests of the kernels, both benches, and the program, stripped.
# Set CUDA_HOME to a toolkit (13.0) first; the machine itself needs the driver, cublasLt and no Rust.
===
# Builds the programs for a GPU machine into target/gpu, stripped: the kernels' tests, two benches and podium.
# Set CUDA_HOME to a toolkit (13.0) first. The GPU machine needs the driver and cublasLt, but no Rust.

import collections
import concurrent.futures
import http.client
import json
import statistics
import sys
import threading
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


def requests(folder, depth):
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
    return [(texts["queries", query], documents[:depth]) for query, documents in found.items()]


def timed(requests, ask):
    """Median seconds of a request, after all were asked once, with words before the texts, so that no cache has them."""
    for query, documents in requests:
        ask(query, ["zero " + text for text in documents])
    times = []
    for query, documents in requests:
        fresh = ["one " + text for text in documents]
        started = time.perf_counter()
        ask(query, fresh)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def rate(requests, turns, ask):
    """Median pairs a second of asking all requests at once, likewise."""
    rates = []
    for turn in range(turns):
        fresh = [(query, [f"{turn} {text}" for text in documents]) for query, documents in requests]
        started = time.perf_counter()
        ask(fresh)
        rates.append(sum(len(documents) for _, documents in fresh) / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def body(query, documents):
    return json.dumps({"query": query, "documents": documents}).encode()


class Server:
    """Ours, by kept connections."""

    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url)
        self.local = threading.local()

    def send(self, body):
        if not hasattr(self.local, "client"):
            self.local.client = http.client.HTTPConnection(self.address.hostname, self.address.port)
        self.local.client.request("POST", "/v1/rerank", body, {"content-type": "application/json"})
        answer = self.local.client.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return text


def whole(model_dir, set_dir, url):
    from sentence_transformers import CrossEncoder

    server = Server(url)
    asked = requests(set_dir, DOCUMENTS)[:REQUESTS]
    # About 107 tokens a pair.
    many = [(query, [" ".join(text.split()[:46]) for text in documents]) for query, documents in requests(set_dir, 100)]
    declared = json.loads(server.send(body(*many[0])))
    print(f"{declared['usage']['prompt_tokens'] / len(many[0][1]):.0f} tokens a pair of many; {declared['meta']['podium']}")

    def ours(fresh):
        bodies = [body(*request) for request in fresh]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(server.send, bodies))

    def podium():
        one = timed(asked, lambda query, documents: server.send(body(query, documents)))
        print(f"podium, over HTTP: {one * 1e3:.3f} ms a request of {DOCUMENTS}, {rate(many, 6, ours):.0f} pairs/s", flush=True)

    podium()
    for dtype in DTYPES:
        for how in ("eager", "compiled"):
            encoder = CrossEncoder(model_dir, device="cuda", model_kwargs={"torch_dtype": dtype})
            if how == "compiled":
                encoder.model.compile(dynamic=True)
            one = timed(
                asked,
                lambda query, documents: encoder.predict([(query, text) for text in documents], batch_size=DOCUMENTS),
            )
            best = max(
                rate(
                    many[:30],
                    3,
                    lambda fresh: encoder.predict([(q, text) for q, texts in fresh for text in texts], batch_size=batch),
                )
                for batch in (64, 256)
            )
            print(f"CrossEncoder {dtype} {how}: {one * 1e3:.3f} ms a request, {best:.0f} pairs/s", flush=True)
    podium()


if sys.argv[1:]:
    whole(*sys.argv[1:])
else:
    forwards()
