"""What the checks share: the server, three documents with their right scores, and the list of checks."""

import importlib.util
import math

import requests

MODEL = "ms-marco-MiniLM-L-12-v2"
QUERY = "how many people live in berlin?"
DOCUMENTS = [
    "Berlin is well known for its museums.",
    "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "New York City is famous for the Metropolitan Museum of Art.",
]
# Logits of the f32 forward in transformers, in the order of DOCUMENTS.
LOGITS = [-3.934, 9.267, -11.187]
# DOCUMENTS from the best to the worst.
ORDER = [1, 0, 2]
# Longer than the model reads (512 tokens), as a chat turn can be.
LONG = QUERY + " please tell me more about it," * 120


class Server:
    """The server under test; `run.py` sets its address."""

    base = "http://127.0.0.1:8080"

    @classmethod
    def host(cls):
        return cls.base.split("://")[1]


class Check:
    def __init__(self, function, packages):
        self.name = function.__name__
        self.run = function
        self.missing = [package for package in packages if not installed(package)]


def installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        # The package that it is in is not there.
        return False


CHECKS = []


def check(*packages):
    """Registers a check, which is skipped where one of the packages is not installed."""

    def register(function):
        CHECKS.append(Check(function, packages))
        return function

    return register


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def right(results, form=sigmoid, order=ORDER, tolerance=1e-3):
    """Asserts that results, as (index, score) in the order in which they came, are right."""
    results = list(results)
    assert [index for index, _ in results] == order, results
    for index, score in results:
        assert abs(score - form(LOGITS[index])) < tolerance, (index, score, form(LOGITS[index]))


def logits(results, order=ORDER):
    right(results, form=lambda logit: logit, order=order)


def ranked(results, score="relevance_score"):
    return [(result["index"], result[score]) for result in results]


def raised(kind, call):
    """The error that a call must end with."""
    try:
        answer = call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {answer}")


def send(method, path, status=200, **arguments):
    """The response to a plain request, which must have the status."""
    response = requests.request(method, Server.base + path, timeout=60, **arguments)
    assert response.status_code == status, (method, path, response.status_code, response.text[:500])
    return response


def post(path, body, status=200, **headers):
    """The JSON answer to a plain request for scores, which must have the status and a receipt."""
    response = send("POST", path, status, json=body, headers=headers)
    assert response.headers["x-podium-request-id"]
    if status == 200:
        assert response.headers["x-podium-tier"] == "full"
        assert int(response.headers["x-podium-device-ns"]) > 0
    return response.json()


def get(path, status=200, **headers):
    return send("GET", path, status, headers=headers).json()
