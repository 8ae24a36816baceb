"""Answers held to the peers' own schemas: to models in their packages, and to the files in contracts/."""

import json
import pathlib

from common import DOCUMENTS, MODEL, QUERY, check, send

FOLDER = pathlib.Path(__file__).parent / "contracts"

TEI = {"query": QUERY, "texts": DOCUMENTS}
COHERE = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS}
INFINITY = COHERE | {"raw_scores": False, "return_documents": False}
VLLM = COHERE | {"truncate_prompt_tokens": -1}
OIP = {
    "id": "7",
    "inputs": [
        {"name": "QUERY", "shape": [1], "datatype": "BYTES", "data": [QUERY]},
        {"name": "PASSAGE", "shape": [3], "datatype": "BYTES", "data": DOCUMENTS},
    ],
}
MODEL_PATH = f"/v2/models/{MODEL}"

# Path, body (a GET where it is None), status, and the definition that the answer must match.
TEI_ROWS = [
    ("/rerank", TEI, 200, "RerankResponse"),
    ("/rerank", TEI | {"return_text": True, "raw_scores": True}, 200, "RerankResponse"),
    ("/", TEI, 200, "RerankResponse"),
    ("/invocations", TEI, 200, "RerankResponse"),
    ("/predict", {"inputs": [QUERY, DOCUMENTS[0]]}, 200, "PredictResponse"),
    ("/predict", {"inputs": [[QUERY, DOCUMENTS[0]]]}, 200, "PredictResponse"),
    ("/tokenize", {"inputs": QUERY}, 200, "TokenizeResponse"),
    ("/tokenize", {"inputs": DOCUMENTS, "add_special_tokens": False}, 200, "TokenizeResponse"),
    ("/decode", {"ids": [101, 2129, 102]}, 200, "DecodeResponse"),
    ("/decode", {"ids": [[101, 2129, 102], [2129]], "skip_special_tokens": False}, 200, "DecodeResponse"),
    ("/info", None, 200, "Info"),
    ("/rerank", TEI | {"texts": []}, 400, "ErrorResponse"),
    ("/rerank", TEI | {"texts": [1]}, 422, "ErrorResponse"),
    ("/rerank", {"query": QUERY, "return_text": True}, 422, "ErrorResponse"),
    ("/predict", {"inputs": 7}, 422, "ErrorResponse"),
    ("/tokenize", {}, 422, "ErrorResponse"),
    ("/decode", {"ids": ["a"]}, 422, "ErrorResponse"),
]
OIP_ROWS = [
    ("/v2", None, 200, "ServerMetadata"),
    ("/v2/", None, 200, "ServerMetadata"),
    (MODEL_PATH, None, 200, "ModelMetadata"),
    (MODEL_PATH + "/versions/1", None, 200, "ModelMetadata"),
    (MODEL_PATH + "/infer", OIP, 200, "InferenceResponse"),
    (MODEL_PATH + "/versions/1/infer", OIP | {"outputs": [{"name": "SCORE"}]}, 200, "InferenceResponse"),
    (MODEL_PATH + "/infer", {"inputs": []}, 400, "Error"),
    (MODEL_PATH + "/infer", OIP | {"outputs": [{"name": "OTHER"}]}, 400, "Error"),
    (MODEL_PATH + "/versions/7/infer", OIP, 404, "Error"),
    (MODEL_PATH + "/versions/7", None, 404, "Error"),
    ("/v2/models/no-such-model", None, 404, "Error"),
]
INFINITY_ROWS = [
    ("/rerank", INFINITY, 200, "ReRankResult"),
    ("/rerank", INFINITY | {"return_documents": True, "top_n": 2}, 200, "ReRankResult"),
    ("/models", None, 200, "OpenAIModelInfo"),
    ("/health", None, 200, "Health"),
    ("/rerank", INFINITY | {"top_n": 0}, 422, "HTTPValidationError"),
    ("/rerank", INFINITY | {"top_n": -1}, 422, "HTTPValidationError"),
    ("/rerank", INFINITY | {"documents": []}, 422, "HTTPValidationError"),
]
VLLM_ROWS = [
    ("/rerank", VLLM, 200, "RerankResponse"),
    ("/v1/rerank", VLLM, 200, "RerankResponse"),
    ("/v2/rerank", VLLM, 200, "RerankResponse"),
    ("/score", {"model": MODEL, "text_1": QUERY, "text_2": DOCUMENTS}, 200, "ScoreResponse"),
    ("/v1/score", {"model": MODEL, "queries": [QUERY], "items": DOCUMENTS}, 200, "ScoreResponse"),
    ("/rerank", VLLM | {"query": 7}, 400, "ErrorResponse"),
    ("/rerank", VLLM | {"truncate_prompt_tokens": 513}, 400, "ErrorResponse"),
    ("/score", {"model": MODEL, "text_1": [QUERY, QUERY], "text_2": DOCUMENTS}, 400, "ErrorResponse"),
]


def answer(path, body, status, headers=None):
    method = "GET" if body is None else "POST"
    return send(method, path, status, json=body, headers=headers or {}).json()


def hold(name, rows):
    """Registers a check that every row's answer matches its definition in contracts/."""

    def matches():
        import jsonschema

        contract = json.loads((FOLDER / f"{name}.json").read_text())
        faults = []
        for path, body, status, definition in rows:
            validator = jsonschema.Draft202012Validator(contract | {"$ref": f"#/$defs/{definition}"})
            try:
                found = answer(path, body, status)
                faults += [f"{path} {body}: {error.message}" for error in validator.iter_errors(found)]
            except AssertionError as error:
                faults.append(str(error))
        assert not faults, f"{len(faults)} of {len(rows)} rows: " + "; ".join(faults)

    matches.__name__ = f"contract_{name}"
    check("jsonschema")(matches)


hold("tei", TEI_ROWS)
hold("open_inference", OIP_ROWS)
hold("infinity", INFINITY_ROWS)
hold("vllm", VLLM_ROWS)


@check("infinity_client")
def contract_infinity_models():
    from infinity_client.models import HTTPValidationError, OpenAIModelInfo, ReRankResult

    for path, body, model in [
        ("/rerank", INFINITY, ReRankResult),
        ("/rerank", INFINITY | {"return_documents": True}, ReRankResult),
        ("/models", None, OpenAIModelInfo),
    ]:
        found = answer(path, body, 200)
        read = model.from_dict(found)
        assert read.to_dict() == found, (read.to_dict(), found)
        assert set(read.additional_keys) <= {"podium"}, read.additional_keys
    wrong = HTTPValidationError.from_dict(answer("/rerank", INFINITY | {"top_n": 0}, 422))
    assert wrong.detail and "top_n" in wrong.detail[0].loc, wrong


@check("cohere", "pydantic")
def contract_cohere_models():
    # The client itself constructs them without validation.
    import cohere

    v1 = answer("/v1/rerank", COHERE | {"return_documents": True}, 200)
    assert cohere.RerankResponse.model_validate(v1).meta.api_version.version
    v2 = answer("/v2/rerank", COHERE, 200)
    assert len(cohere.V2RerankResponse.model_validate(v2).results) == 3
    for path in ("/v1/rerank", "/v2/rerank"):
        wrong = answer(path, COHERE | {"documents": []}, 400)
        assert isinstance(wrong["message"], str) and isinstance(wrong["id"], str), wrong
