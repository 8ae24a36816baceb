"""The Open Inference Protocol and Triton's extensions, by tritonclient."""

from common import DOCUMENTS, MODEL, ORDER, QUERY, Server, check, get, logits, post, raised, right, send


def client():
    import tritonclient.http

    return tritonclient.http.InferenceServerClient(Server.host(), concurrency=4)


def tensor(name, texts, binary=True, shape=None):
    import numpy
    import tritonclient.http

    shape = shape or [len(texts)]
    values = numpy.array([text.encode() for text in texts], dtype=object).reshape(shape)
    tensor = tritonclient.http.InferInput(name, shape, "BYTES")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def inputs(binary=True):
    return [tensor("QUERY", [QUERY], binary), tensor("PASSAGE", DOCUMENTS, binary)]


def scores(answer):
    return list(enumerate(answer.as_numpy("SCORE").reshape(-1)))


@check("tritonclient", "numpy")
def triton_metadata():
    triton = client()
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.get_server_metadata()["name"] == "podium"
    metadata = triton.get_model_metadata(MODEL)
    types = {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"] + metadata["outputs"]}
    assert types == {"QUERY": "BYTES", "PASSAGE": "BYTES", "SCORE": "FP32", "INDEX": "INT64"}, types
    config = triton.get_model_config(MODEL)
    assert config["name"] == MODEL and config["input"][0]["data_type"] == "TYPE_STRING", config
    assert {tensor["name"] for tensor in config["output"]} == {"SCORE", "INDEX"}, config


@check("tritonclient", "numpy")
def triton_versions_agree():
    import tritonclient.utils

    triton = client()
    served = triton.get_model_metadata(MODEL)["versions"]
    assert served
    for version in ["", "1", *served]:
        assert triton.is_model_ready(MODEL, version), version
        assert triton.get_model_metadata(MODEL, version)["name"] == MODEL
        right(scores(triton.infer(MODEL, inputs(), model_version=version)), order=[0, 1, 2])
    assert not triton.is_model_ready(MODEL, "7")
    kind = tritonclient.utils.InferenceServerException
    for call in [
        lambda: triton.infer(MODEL, inputs(), model_version="7"),
        lambda: triton.get_model_metadata(MODEL, "7"),
        lambda: triton.get_model_config(MODEL, "7"),
    ]:
        error = raised(kind, call)
        assert error.status() == "404" and "7" in error.message(), error


@check("tritonclient", "numpy")
def triton_infers():
    import tritonclient.http

    triton = client()
    for binary in (True, False):
        outputs = [tritonclient.http.InferRequestedOutput("SCORE", binary_data=binary)]
        answer = triton.infer(
            MODEL, inputs(binary), outputs=outputs, request_id="7", parameters={"raw_scores": True}
        )
        logits(scores(answer), order=[0, 1, 2])
        assert answer.get_response()["id"] == "7"
        assert [output["name"] for output in answer.get_response()["outputs"]] == ["SCORE"]
    shaped = [tensor("QUERY", [QUERY], shape=[1, 1]), tensor("PASSAGE", DOCUMENTS, shape=[1, 3])]
    answer = triton.infer(MODEL, shaped, parameters={"raw_scores": True})
    assert answer.as_numpy("SCORE").shape == (1, 3)
    waits = triton.async_infer(MODEL, inputs())
    right(scores(waits.get_result()), order=[0, 1, 2])


@check("tritonclient", "numpy")
def triton_without_outputs_gets_all():
    # The client asks for `binary_data_output` then.
    answer = client().infer(MODEL, inputs(), parameters={"raw_scores": True})
    logits(scores(answer), order=[0, 1, 2])
    assert answer.as_numpy("INDEX").reshape(-1).tolist() == ORDER
    assert all("data" not in output for output in answer.get_response()["outputs"]), answer.get_response()


@check("tritonclient", "numpy")
def triton_mixes_binary_and_json_outputs():
    import tritonclient.http

    outputs = [
        tritonclient.http.InferRequestedOutput("INDEX", binary_data=False),
        tritonclient.http.InferRequestedOutput("SCORE", binary_data=True),
    ]
    answer = client().infer(MODEL, inputs(), outputs=outputs)
    right(scores(answer), order=[0, 1, 2])
    assert answer.as_numpy("INDEX").reshape(-1).tolist() == ORDER


@check("tritonclient", "numpy")
def triton_priority_and_timeout():
    import tritonclient.utils

    triton = client()
    # 0 is the default, 1 the highest; the timeout is in microseconds.
    for priority in (0, 1, 2, 9):
        right(scores(triton.infer(MODEL, inputs(), priority=priority)), order=[0, 1, 2])
    answer = triton.infer(MODEL, inputs(), priority=1, timeout=20_000_000)
    right(scores(answer), order=[0, 1, 2])
    assert answer.get_response()["parameters"]["podium_budget_ms"] == 20_000, answer.get_response()
    right(scores(triton.infer(MODEL, inputs(), timeout=0)), order=[0, 1, 2])
    error = raised(
        tritonclient.utils.InferenceServerException,
        lambda: triton.infer(MODEL, inputs(), parameters={"latency_budget_ms": -1}),
    )
    assert "latency_budget_ms" in error.message(), error


@check("tritonclient", "numpy")
def triton_compresses():
    import tritonclient.utils

    # Podium does not read compressed bodies: the client learns that from an error in its own shape.
    error = raised(
        tritonclient.utils.InferenceServerException,
        lambda: client().infer(MODEL, inputs(), request_compression_algorithm="gzip"),
    )
    assert error.status() == "415" and "encod" in error.message(), error
    answer = client().infer(MODEL, inputs(), response_compression_algorithm="gzip")
    right(scores(answer), order=[0, 1, 2])


@check("tritonclient", "numpy")
def triton_reads_errors():
    import tritonclient.utils

    kind = tritonclient.utils.InferenceServerException
    triton = client()
    error = raised(kind, lambda: triton.infer(MODEL, [tensor("QUERY", [QUERY])]))
    assert error.status() == "400" and "PASSAGE" in error.message(), error
    error = raised(kind, lambda: triton.infer(MODEL, [*inputs(), tensor("OTHER", ["x"])]))
    assert "OTHER" in error.message(), error


@check()
def open_inference_errors_are_strings_on_every_path():
    rows = [
        ("GET", "/v2/models/no-such-model", 404),
        ("GET", f"/v2/models/{MODEL}/versions/7", 404),
        ("GET", f"/v2/models/{MODEL}/no-such-page", 404),
        ("GET", f"/v2/models/{MODEL}/infer", 405),
        ("GET", "/v2/no-such-page", 404),
        ("POST", "/v2", 405),
    ]
    for method, path, status in rows:
        answer = send(method, path, status, json={} if method == "POST" else None).json()
        assert isinstance(answer["error"], str) and set(answer) == {"error"}, (method, path, answer)
    answer = send("POST", f"/v2/models/{MODEL}/infer", 400, data="{").json()
    assert isinstance(answer["error"], str), answer


@check()
def open_inference_json():
    passage = {"name": "PASSAGE", "shape": [3], "datatype": "BYTES", "data": DOCUMENTS}
    query = {"name": "QUERY", "shape": [1], "datatype": "BYTES", "data": [QUERY]}
    answer = post(f"/v2/models/{MODEL}/infer", {"inputs": [query, passage], "parameters": {"raw_scores": True}})
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    logits(enumerate(outputs["SCORE"]), order=[0, 1, 2])
    assert outputs["INDEX"] == ORDER
    assert answer["model_name"] == MODEL
    assert get(f"/v2/models/{MODEL}/ready", 200)


@check("tritonclient", "numpy")
def repository_loads_and_unloads():
    # The server has a repository in explicit mode: `large` with the versions 1 and 2, and `other` with the version 1.
    import tritonclient.utils

    triton, admin = client(), {"authorization": "Bearer secret-key"}

    def states():
        index = triton.get_model_repository_index()
        return {(entry["name"], entry["version"]): entry["state"] for entry in index}

    assert {"model_repository", "model_repository(unload_dependents)"} <= set(
        triton.get_server_metadata()["extensions"]
    )
    assert states()["large", "1"] == states()["large", "2"] == "UNAVAILABLE", states()
    assert not triton.is_model_ready("large")
    triton.load_model("large", headers=admin)
    assert states()["large", "2"] == "READY", states()
    assert triton.is_model_ready("large") and triton.is_model_ready("large", "2")
    right(scores(triton.infer("large", inputs())), order=[0, 1, 2])
    triton.load_model("large@1", headers=admin)
    assert triton.is_model_ready("large", "1") and not triton.is_model_ready("large", "2")
    right(scores(triton.infer("large", inputs(), model_version="1")), order=[0, 1, 2])
    triton.load_model("other", headers=admin)
    assert triton.is_model_ready("other")
    for model in ("other", "large"):
        triton.unload_model(model, headers=admin, unload_dependents=True)
        assert not triton.is_model_ready(model), model
    kind = tritonclient.utils.InferenceServerException
    for call, status in [
        (lambda: triton.load_model("large"), "401"),
        (lambda: triton.load_model("huge", headers=admin), "404"),
        (lambda: triton.unload_model("large", headers=admin), "404"),
        (lambda: triton.load_model("large", headers=admin, config="{}"), "400"),
        (lambda: triton.load_model("large", headers=admin, config="{}", files={"file:1/a": b"b"}), "400"),
    ]:
        error = raised(kind, call)
        assert error.status() == status, error
