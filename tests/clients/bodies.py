"""Requests as they go over the wire, of peers and of applications that have no client of their own."""

from common import (
    DOCUMENTS, LONG, MODEL, ORDER, QUERY, Server, check, get, logits, post, ranked, right, send,
)


def texts(results):
    return [result["document"]["text"] for result in results]


IN_ORDER = [DOCUMENTS[place] for place in ORDER]


@check()
def text_embeddings_inference():
    right(ranked(post("/rerank", {"query": QUERY, "texts": DOCUMENTS, "truncate": True}), "score"))
    # As SageMaker and the root path have it.
    for path in ("/", "/invocations"):
        right(ranked(post(path, {"query": QUERY, "texts": DOCUMENTS}), "score"))
    # SGLang's and llama.cpp's fields beside TEI's.
    for field in ("top_n", "top_k"):
        right(ranked(post("/rerank", {"query": QUERY, "texts": DOCUMENTS, field: 2}), "score"), order=ORDER[:2])
    assert send("GET", "/health").status_code == 200
    assert send("GET", "/ping").status_code == 200


@check()
def text_embeddings_inference_truncates():
    # TEI truncates by default from 1.9, and LlamaIndex's client never asks for it.
    for body in ({}, {"truncate": True}, {"truncate": True, "truncation_direction": "Left"}):
        response = send("POST", "/rerank", json={"query": QUERY, "texts": [LONG, DOCUMENTS[1]]} | body)
        assert len(response.json()) == 2 and response.headers["x-podium-truncated"] == "1", response.headers
    error = post("/rerank", {"query": QUERY, "texts": [LONG], "truncate": False}, status=413)
    assert error["error_type"] == "Validation" and "512" in error["error"], error


@check()
def text_embeddings_inference_errors():
    rows = [
        ({"query": QUERY, "texts": []}, 400, "Empty"),
        ({"query": QUERY, "texts": "not a list"}, 422, "Validation"),
        ({"query": QUERY, "truncate": True}, 422, "Validation"),
        ({"query": QUERY, "texts": DOCUMENTS, "truncation_direction": "Up"}, 422, "Validation"),
    ]
    for body, status, kind in rows:
        error = post("/rerank", body, status)
        assert set(error) == {"error", "error_type"} and error["error_type"] == kind, (body, error)


@check()
def text_embeddings_inference_predicts():
    pair = [QUERY, DOCUMENTS[1]]
    one = post("/predict", {"inputs": pair, "raw_scores": True})
    logits([(1, one[0]["score"])], order=[1])
    many = post("/predict", {"inputs": [[QUERY, text] for text in DOCUMENTS]})
    right(((place, labels[0]["score"]) for place, labels in enumerate(many)), order=[0, 1, 2])


@check()
def text_embeddings_inference_tokenizes():
    tokens = send("POST", "/tokenize", json={"inputs": QUERY}).json()[0]
    assert [tokens[0]["text"], tokens[-1]["text"]] == ["[CLS]", "[SEP]"]
    assert tokens[0]["special"] and not tokens[1]["special"]
    words = [QUERY[token["start"] : token["stop"]] for token in tokens if not token["special"]]
    assert words == ["how", "many", "people", "live", "in", "berlin", "?"], words
    cased = send("POST", "/tokenize", json={"inputs": "Berlin?"}).json()[0]
    assert [token["text"] for token in cased if not token["special"]] == ["Berlin", "?"], cased
    ids = [token["id"] for token in tokens]
    assert send("POST", "/decode", json={"ids": ids}).json() == ["how many people live in berlin?"]
    plain = send("POST", "/tokenize", json={"inputs": [QUERY], "add_special_tokens": False}).json()[0]
    assert [token["id"] for token in plain] == ids[1:-1]


@check()
def jina():
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    answer = post("/v1/rerank", body)
    right(ranked(answer["results"]), order=ORDER[:2])
    assert texts(answer["results"]) == IN_ORDER[:2]
    assert answer["usage"]["total_tokens"] > 0 and answer["model"] == MODEL


@check()
def vllm():
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "truncate_prompt_tokens": -1}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        for top_n in (0, -1, 3):
            answer = post(path, body | {"top_n": top_n})
            right(ranked(answer["results"]))
            assert texts(answer["results"]) == IN_ORDER and answer["usage"]["total_tokens"] > 0
    for use_activation, form in ((True, right), (False, logits)):
        form(ranked(post("/rerank", body | {"use_activation": use_activation})["results"]))
    parts = [{"content": [{"type": "text", "text": text}]} for text in DOCUMENTS]
    right(ranked(post("/v1/rerank", body | {"documents": parts})["results"]))
    one = post("/rerank", body | {"documents": DOCUMENTS[1]})["results"]
    right([(1, result["relevance_score"]) for result in one], order=[1])
    assert get("/version")["version"]


@check()
def vllm_truncates():
    body = {"model": MODEL, "query": QUERY, "documents": [LONG, DOCUMENTS[1]]}
    for more in (
        {"truncate_prompt_tokens": -1},
        {"truncate_prompt_tokens": 100},
        {"truncate_prompt_tokens": 100, "truncation_side": "left"},
        {"truncate_prompt_tokens": -1, "max_tokens_per_doc": 50},
        {"truncate_prompt_tokens": -1, "max_tokens_per_query": 5},
    ):
        answer = post("/v1/rerank", body | more)
        assert len(answer["results"]) == 2, (more, answer)
        if more["truncate_prompt_tokens"] == 100:
            assert answer["usage"]["prompt_tokens"] <= 200, (more, answer)
    error = post("/v1/rerank", body | {"truncate_prompt_tokens": 513}, status=400)
    assert "truncate_prompt_tokens" in error["error"]["message"] and "512" in error["error"]["message"], error


@check()
def vllm_scores():
    rows = [
        {"text_1": QUERY, "text_2": DOCUMENTS},
        {"text_1": [QUERY], "text_2": DOCUMENTS},
        {"queries": [QUERY] * 3, "documents": DOCUMENTS},
        {"queries": QUERY, "items": DOCUMENTS},
        {"data_1": QUERY, "data_2": DOCUMENTS},
    ]
    for path in ("/score", "/v1/score"):
        for body in rows:
            answer = post(path, {"model": MODEL} | body)
            right(ranked(answer["data"], "score"), order=[0, 1, 2])
            assert answer["object"] == "list" and answer["model"] == MODEL and answer["created"] > 0
            assert all(row["object"] == "score" for row in answer["data"])
        answer = post(path, {"model": MODEL, "queries": QUERY, "documents": DOCUMENTS[1], "use_activation": False})
        assert abs(answer["data"][0]["score"] - 9.267) < 1e-3, answer
    error = post("/score", {"model": MODEL, "text_1": [QUERY] * 2, "text_2": DOCUMENTS}, status=400)
    assert set(error["error"]) == {"message", "type", "param", "code"}, error


@check()
def infinity():
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "raw_scores": True, "return_documents": True}
    answer = post("/rerank", body)
    logits(ranked(answer["results"]))
    assert answer["object"] == "rerank" and answer["results"][0]["document"] == DOCUMENTS[1]
    error = post("/rerank", body | {"documents": []}, status=422)
    assert error["detail"][0]["loc"] == ["body", "documents"], error


@check()
def nim():
    body = {"model": MODEL, "query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}
    logits(ranked(post("/v1/ranking", body)["rankings"], "logit"))
    logits(ranked(post(f"/v1/retrieval/nvidia/{MODEL}/reranking", body)["rankings"], "logit"))
    error = post("/v1/ranking", body | {"query": {}}, status=400)
    assert "query.text" in str(error), error
    long = body | {"query": {"text": LONG}}
    assert len(post("/v1/ranking", long | {"truncate": "END"})["rankings"]) == 3
    error = post("/v1/ranking", long | {"truncate": "NONE"}, status=400)
    assert "token" in str(error), error


@check()
def podium():
    body = {"query": QUERY, "documents": DOCUMENTS, "scores": "logit", "latency_budget_ms": 10_000}
    answer = post("/v1/rank", body)
    logits(ranked(answer["results"], "score"))
    assert (answer["tier"], answer["degraded"], answer["budget_ms"]) == ("full", None, 10_000)
    assert answer["cost"]["device_ns"] > 0
    models = get("/v1/models")
    assert models["object"] == "list" and models["data"][0]["id"] == MODEL


# Applications


@check()
def ragflow_xinference():
    # Booleans are strings; its first versions read the tokens from `meta.tokens`.
    body = {"model": MODEL, "query": QUERY, "return_documents": "true", "return_len": "true", "documents": DOCUMENTS}
    answer = post("/v1/rerank", body)
    right(ranked(answer["results"]))
    assert texts(answer["results"]) == IN_ORDER
    tokens = answer["meta"]["tokens"]
    assert tokens["input_tokens"] + tokens["output_tokens"] > 0, answer["meta"]
    response = send("POST", "/v1/rerank", json=body)
    assert "return_documents" in response.headers["x-podium-warning"], response.headers


@check()
def ragflow_tei():
    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": False, "truncate": True}
    right(ranked(post("/rerank", body), "score"))


@check()
def ragflow_openai_compatible():
    # LocalAI, GPUStack, vLLM and others; the address ends with /rerank or /v1/rerank.
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": len(DOCUMENTS)}
    for path in ("/rerank", "/v1/rerank"):
        right(ranked(post(path, body)["results"]))
    silicon_flow = {"return_documents": False, "max_chunks_per_doc": 1024, "overlap_tokens": 80}
    right(ranked(post("/v1/rerank", body | silicon_flow)["results"]))


@check()
def ragflow_nvidia():
    body = {
        "model": MODEL,
        "query": {"text": QUERY},
        "passages": [{"text": text} for text in DOCUMENTS],
        "truncate": "END",
        "top_n": len(DOCUMENTS),
    }
    logits(ranked(post(f"/v1/retrieval/nvidia/{MODEL}/reranking", body)["rankings"], "logit"))


@check()
def dify_tei():
    info = get("/info")
    assert list(info["model_type"]) == ["reranker"], info
    assert info["max_input_length"] == 512 and info["max_client_batch_size"] >= 1
    answer = post("/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True})
    right(ranked(answer, "score"))
    assert [result["text"] for result in answer] == IN_ORDER
    counts = [len(tokens) for tokens in send("POST", "/tokenize", json={"inputs": DOCUMENTS}).json()]
    assert all(count > 2 for count in counts), counts


@check()
def dify_openai_compatible():
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 3}
    parts = [{"content": [{"type": "text", "text": text}]} for text in DOCUMENTS]
    for path in ("/rerank", "/v1/rerank"):
        right(ranked(post(path, body)["results"]))
        right(ranked(post(path, body | {"documents": parts})["results"]))


@check()
def dify_xinference():
    # As xinference_client asks: every field is there, most of them null.
    body = {
        "model": MODEL,
        "documents": DOCUMENTS,
        "query": QUERY,
        "top_n": 3,
        "max_chunks_per_doc": None,
        "return_documents": True,
        "return_len": None,
        "kwargs": "{}",
    }
    answer = post("/v1/rerank", body)
    right(ranked(answer["results"]))
    assert texts(answer["results"]) == IN_ORDER


# What every dialect does with what proxies and shells add.


@check()
def paths_and_bodies_as_they_come():
    body = {"query": QUERY, "documents": DOCUMENTS}
    right(ranked(post("/v1/rerank/", body)["results"]))
    import json

    marked = "\ufeff".encode() + json.dumps(body).encode()
    right(ranked(send("POST", "/v1/rerank", data=marked).json()["results"]))


@check()
def an_error_is_where_each_client_of_v1_rerank_reads_it():
    # Cohere's client shows `message`, Jina's `detail`, and OpenAI-like clients of vLLM `error.message`.
    wrong = post("/v1/rerank", {"query": QUERY, "documents": []}, 400)
    text = wrong["message"]
    assert text.startswith("documents: ") and wrong["detail"] == text and wrong["error"]["message"] == text, wrong
