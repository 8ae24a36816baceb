"""Runs the peers' own clients against a Podium that serves ms-marco-MiniLM-L-12-v2.

    podium serve --precision f32 --primary ../shared/data/models/ms-marco-MiniLM-L-12-v2
    python -m venv CLIENTS && CLIENTS/bin/pip install -r tests/clients/requirements.txt
    CLIENTS/bin/python tests/clients/run.py http://127.0.0.1:8080

Nothing but the base address differs from how each is used against its own service. Ends with 1 if
any of them got a wrong answer, or an error in another shape than its own.
"""

import math
import sys
import traceback

import cohere
import httpx
import huggingface_hub
import infinity_client
import infinity_client.api.default.models
import infinity_client.api.default.rerank
import infinity_client.models
import litellm
import llama_index.core.schema
import llama_index.postprocessor.tei_rerank
import numpy
import rerankers.models.api_rankers
import requests
import tritonclient.http
import voyageai

BASE = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8080"
MODEL = "ms-marco-MiniLM-L-12-v2"
QUERY = "how many people live in berlin?"
DOCUMENTS = [
    "Berlin is well known for its museums.",
    "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "New York City is famous for the Metropolitan Museum of Art.",
]
# Of the f32 forward in transformers, in the order of DOCUMENTS.
LOGITS = [-3.934, 9.267, -11.187]
ORDER = [1, 0, 2]

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def right(results, form=sigmoid, order=ORDER, tolerance=1e-3):
    """results: (index, score) in the order in which they came."""
    assert [index for index, _ in results] == order, results
    for index, score in results:
        assert abs(score - form(LOGITS[index])) < tolerance, (index, score, form(LOGITS[index]))


def logits(results, order=ORDER):
    right(results, form=lambda logit: logit, order=order)


def raised(kind, call):
    """The error that a call must end with."""
    try:
        answer = call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {answer}")


def post(path, body, status=200, **headers):
    response = requests.post(BASE + path, json=body, headers=headers, timeout=30)
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["x-podium-request-id"]
    if status == 200:
        assert response.headers["x-podium-tier"] == "full"
        assert int(response.headers["x-podium-device-ns"]) > 0
    return response.json()


def ranked(results, score="relevance_score"):
    return [(result["index"], result[score]) for result in results]


@check
def cohere_v1():
    client = cohere.Client("a key", base_url=BASE)
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, return_documents=True)
    right([(result.index, result.relevance_score) for result in answer.results])
    assert [result.document.text for result in answer.results] == [DOCUMENTS[place] for place in ORDER]
    assert answer.meta.billed_units.search_units == 1
    answer = client.rerank(model=MODEL, query=QUERY, documents=[{"text": text} for text in DOCUMENTS], top_n=1)
    right([(result.index, result.relevance_score) for result in answer.results], order=[1])
    error = raised(cohere.BadRequestError, lambda: client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=0))
    assert "top_n" in error.body["message"] if isinstance(error.body, dict) else error.body.message, error.body


@check
def cohere_v2():
    client = cohere.ClientV2("a key", base_url=BASE)
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=2, max_tokens_per_doc=400, priority=0)
    right([(result.index, result.relevance_score) for result in answer.results], order=ORDER[:2])
    error = raised(cohere.BadRequestError, lambda: client.rerank(model=MODEL, query="", documents=DOCUMENTS))
    assert "query" in str(error.body), error.body


@check
def voyage():
    client = voyageai.Client(api_key="a key", base_url=BASE + "/v1")
    answer = client.rerank(QUERY, DOCUMENTS, model=MODEL, top_k=3)
    right([(result.index, result.relevance_score) for result in answer.results])
    assert [result.document for result in answer.results] == [DOCUMENTS[place] for place in ORDER]
    assert answer.total_tokens > 0
    error = raised(voyageai.error.InvalidRequestError, lambda: client.rerank(QUERY, DOCUMENTS, model=MODEL, top_k=0))
    assert "top_k" in str(error), error


def bytes_input(name, texts, binary):
    tensor = tritonclient.http.InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(numpy.array([text.encode() for text in texts], dtype=object), binary_data=binary)
    return tensor


@check
def open_inference_protocol():
    client = tritonclient.http.InferenceServerClient(BASE.split("://")[1])
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.get_server_metadata()["name"] == "podium"
    assert client.get_model_metadata(MODEL)["inputs"][0]["datatype"] == "BYTES"
    for binary in (True, False):
        inputs = [bytes_input("QUERY", [QUERY], binary), bytes_input("PASSAGE", DOCUMENTS, binary)]
        outputs = [tritonclient.http.InferRequestedOutput("SCORE", binary_data=binary)]
        answer = client.infer(MODEL, inputs, outputs=outputs, request_id="7", parameters={"raw_scores": True})
        scores = answer.as_numpy("SCORE").reshape(-1)
        logits(list(enumerate(scores)), order=[0, 1, 2])
        assert answer.get_response()["id"] == "7"
    inputs = [bytes_input("QUERY", [QUERY], True), bytes_input("PASSAGE", DOCUMENTS, True)]
    answer = client.infer(MODEL, inputs, model_version="1", priority=1, timeout=20_000_000)
    right(list(enumerate(answer.as_numpy("SCORE").reshape(-1))), order=[0, 1, 2])
    assert list(answer.as_numpy("INDEX")) == ORDER
    assert client.is_model_ready(MODEL, "1") and not client.is_model_ready(MODEL, "9")
    assert client.get_model_config(MODEL)["output"][0]["data_type"] == "TYPE_FP32"
    raised(tritonclient.utils.InferenceServerException, lambda: client.infer(MODEL, inputs, model_version="9"))
    error = raised(
        tritonclient.utils.InferenceServerException,
        lambda: client.infer(MODEL, [bytes_input("QUERY", [QUERY], True)]),
    )
    assert "PASSAGE" in error.message(), error


@check
def text_embeddings_inference():
    # As huggingface_hub calls a TEI endpoint.
    session = huggingface_hub.get_session()
    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "return_text": True}
    response = session.post(BASE + "/rerank", json=body)
    huggingface_hub.utils.hf_raise_for_status(response)
    logits(ranked(response.json(), "score"))
    assert response.json()[0]["text"] == DOCUMENTS[1]
    right(ranked(post("/rerank", {"query": QUERY, "texts": DOCUMENTS, "truncate": True}), "score"))
    error = post("/rerank", {"query": QUERY, "texts": "not a list"}, status=422)
    assert set(error) == {"error", "error_type"} and error["error_type"] == "Validation", error
    assert requests.get(BASE + "/info", timeout=30).json()["model_id"] == MODEL


@check
def jina():
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    answer = post("/v1/rerank", body)
    right(ranked(answer["results"]), order=ORDER[:2])
    assert answer["results"][0]["document"]["text"] == DOCUMENTS[1]
    assert answer["usage"]["total_tokens"] > 0 and answer["model"] == MODEL


@check
def vllm():
    answer = post("/rerank", {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 0})
    right(ranked(answer["results"]))
    assert answer["results"][0]["document"]["text"] == DOCUMENTS[1] and answer["usage"]["total_tokens"] > 0
    answer = post("/score", {"model": MODEL, "text_1": QUERY, "text_2": DOCUMENTS})
    right(ranked(answer["data"], "score"), order=[0, 1, 2])
    answer = post("/v1/score", {"model": MODEL, "queries": [QUERY] * 3, "documents": DOCUMENTS})
    right(ranked(answer["data"], "score"), order=[0, 1, 2])
    error = post("/score", {"model": MODEL, "text_1": [QUERY] * 2, "text_2": DOCUMENTS}, status=400)
    assert set(error["error"]) == {"message", "type", "param", "code"}, error


@check
def infinity():
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "raw_scores": True, "return_documents": True}
    answer = post("/rerank", body)
    logits(ranked(answer["results"]))
    assert answer["object"] == "rerank" and answer["results"][0]["document"] == DOCUMENTS[1]
    error = post("/rerank", body | {"documents": []}, status=422)
    assert error["detail"][0]["loc"] == ["body", "documents"], error


@check
def nim():
    body = {"model": MODEL, "query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}
    logits(ranked(post("/v1/ranking", body)["rankings"], "logit"))
    error = post("/v1/ranking", body | {"query": {}}, status=400)
    assert "query.text" in str(error), error


def lite(model, path="", **more):
    """Through LiteLLM, in the words of one of its providers."""
    answer = litellm.rerank(
        model=model, query=QUERY, documents=DOCUMENTS, api_base=BASE + path, api_key="a key", **more
    )
    return [(result["index"], result["relevance_score"]) for result in answer.results]


@check
def litellm_s_providers():
    # The first two send the same body to the same path, and read `document` in different shapes.
    for provider in ("hosted_vllm", "infinity"):
        right(lite(f"{provider}/{MODEL}"))
        right(lite(f"{provider}/{MODEL}", return_documents=False, top_n=2), order=ORDER[:2])
    right(lite(f"huggingface/{MODEL}", top_n=2), order=ORDER[:2])
    right(lite(f"voyage/{MODEL}"))
    right(lite(f"cohere/{MODEL}", "/v2/rerank", top_n=2), order=ORDER[:2])
    right(lite(f"jina_ai/{MODEL}", "/v1/rerank"))
    logits(lite(f"nvidia_nim/{MODEL}"))


@check
def infinity_s_client():
    client = infinity_client.Client(base_url=BASE)
    body = infinity_client.models.RerankInput(
        query=QUERY, documents=DOCUMENTS, model=MODEL, return_documents=True, top_n=2
    )
    answer = infinity_client.api.default.rerank.sync(client=client, body=body)
    right([(result.index, result.relevance_score) for result in answer.results], order=ORDER[:2])
    assert [result.document for result in answer.results] == [DOCUMENTS[place] for place in ORDER[:2]]
    models = infinity_client.api.default.models.sync(client=client)
    assert models.data[0].id == MODEL and models.data[0].stats["queue_absolute"] == 0
    body.top_n = 0
    assert infinity_client.api.default.rerank.sync_detailed(client=client, body=body).status_code == 422
    answer = httpx.get(BASE + "/health", headers={"accept": "application/json"})
    assert answer.json()["unix"] > 1.7e9


@check
def llama_index_s_client_of_tei():
    nodes = [
        llama_index.core.schema.NodeWithScore(node=llama_index.core.schema.TextNode(text=text * times), score=0.0)
        for text, times in zip(DOCUMENTS, (1, 1, 500))  # the last is longer than the model reads
    ]
    client = llama_index.postprocessor.tei_rerank.TextEmbeddingInference(base_url=BASE, top_n=3)
    answer = client.postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node.text for node in answer][0] == DOCUMENTS[1], answer
    assert abs(answer[0].score - sigmoid(LOGITS[1])) < 1e-3


@check
def rerankers_of_several_services():
    for provider, path in (("text-embeddings-inference", "/rerank"), ("jina", "/v1/rerank"), ("voyage", "/v1/rerank")):
        ranker = rerankers.models.api_rankers.APIRanker(MODEL, "a key", provider, verbose=0, url=BASE + path)
        answer = ranker.rank(QUERY, DOCUMENTS)
        right([(result.document.doc_id, result.score) for result in answer.results])


@check
def bodies_of_ragflow_and_dify():
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 3, "return_documents": "true"}
    answer = post("/v1/rerank", body)
    right(ranked(answer["results"]))
    assert answer["results"][0]["document"]["text"] == DOCUMENTS[1]
    right(ranked(post("/rerank", body | {"return_documents": True})["results"]))


@check
def tei_beside_rerank():
    predictions = post("/predict", {"inputs": [[QUERY, text] for text in DOCUMENTS], "raw_scores": True})
    logits([(place, one["score"]) for place, [one] in enumerate(predictions)], order=[0, 1, 2])
    for path in ("/", "/invocations"):
        right(ranked(post(path, {"query": QUERY, "texts": DOCUMENTS}), "score"))
    tokens = requests.post(BASE + "/tokenize", json={"inputs": "Berlin?"}, timeout=30).json()[0]
    assert [token["text"] for token in tokens if not token["special"]] == ["Berlin", "?"], tokens
    ids = [token["id"] for token in tokens]
    assert requests.post(BASE + "/decode", json={"ids": ids}, timeout=30).json() == ["berlin?"]


@check
def podium():
    body = {"query": QUERY, "documents": DOCUMENTS, "scores": "logit", "latency_budget_ms": 10_000}
    answer = post("/v1/rank", body)
    logits(ranked(answer["results"], "score"))
    assert (answer["tier"], answer["degraded"], answer["budget_ms"]) == ("full", None, 10_000)
    assert answer["cost"]["device_ns"] > 0
    models = requests.get(BASE + "/v1/models", timeout=30).json()
    assert models["object"] == "list" and models["data"][0]["id"] == MODEL


def main():
    failed = 0
    for function in CHECKS:
        try:
            function()
            print(f"ok      {function.__name__}")
        except Exception:
            failed += 1
            print(f"FAILED  {function.__name__}")
            traceback.print_exc()
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
