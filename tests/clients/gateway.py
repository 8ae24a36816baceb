"""LiteLLM in front of Podium, by each of its providers, blocking and asynchronous."""

import asyncio

from common import DOCUMENTS, LONG, MODEL, ORDER, QUERY, Server, check, logits, raised, right

# Provider, what its api_base has behind the server's address.
PROVIDERS = [
    ("hosted_vllm", ""),
    ("cohere", ""),
    ("jina_ai", ""),
    ("infinity", ""),
    ("huggingface", ""),
    ("voyage", ""),
]


def arguments(provider, path, **more):
    # Any text does as a key; LiteLLM asks for one.
    return {
        "model": f"{provider}/{MODEL}",
        "query": QUERY,
        "documents": DOCUMENTS,
        "api_base": Server.base + path,
        "api_key": "a key",
    } | more


def pairs(answer):
    return [(result["index"], result["relevance_score"]) for result in answer.results]


def ask(provider, path, **more):
    """The answers of the blocking and of the asynchronous call."""
    import litellm

    body = arguments(provider, path, **more)
    return [litellm.rerank(**body), asyncio.run(litellm.arerank(**body))]


def provider_check(name, provider, path):
    def ranks():
        for answer in ask(provider, path):
            right(pairs(answer))
        for answer in ask(provider, path, top_n=2):
            right(pairs(answer)[:2], order=ORDER[:2])
        for answer in ask(provider, path, query=LONG):
            assert sorted(index for index, _ in pairs(answer)) == [0, 1, 2]

    ranks.__name__ = name
    check("litellm")(ranks)


for provider, path in PROVIDERS:
    provider_check(f"litellm_{provider}", provider, path)


@check("litellm")
def litellm_nvidia_nim():
    for answer in ask("nvidia_nim", ""):
        logits(pairs(answer))
    for answer in ask("nvidia_nim", "", query=LONG, truncate="END"):
        assert sorted(index for index, _ in pairs(answer)) == [0, 1, 2]


@check("litellm")
def litellm_nvidia_nim_ranking():
    import litellm

    # LiteLLM's name for the path /v1/ranking.
    answer = litellm.rerank(**arguments("nvidia_nim", "", model=f"nvidia_nim/ranking/{MODEL}"))
    logits(pairs(answer))


def documents_come_back(provider, **more):
    for answer in ask(provider, "", return_documents=True, **more):
        right(pairs(answer))
        assert [result["document"]["text"] for result in answer.results] == [DOCUMENTS[place] for place in ORDER]


@check("litellm")
def litellm_documents_come_back():
    documents_come_back("jina_ai")
    documents_come_back("huggingface")
    # Its `top_k` tells Voyage from Cohere.
    documents_come_back("voyage", top_n=3)


@check("litellm")
def pinned_vllm_documents_come_back():
    documents_come_back("hosted_vllm")


@check("litellm")
def pinned_infinity_documents_come_back():
    documents_come_back("infinity")


@check("litellm")
def litellm_vllm_and_infinity_read_one_answer():
    # Their requests are the same, so the answer is one that both of them read.
    for provider in ("hosted_vllm", "infinity"):
        for return_documents in (True, False):
            for answer in ask(provider, "", return_documents=return_documents):
                right(pairs(answer))


@check("litellm")
def litellm_truncates():
    for answer in ask("hosted_vllm", "", query=LONG, truncate_prompt_tokens=-1):
        assert len(answer.results) == 3
        # What tells vLLM from Infinity gives the documents back.
        assert all(result["document"]["text"] == DOCUMENTS[result["index"]] for result in answer.results), answer
    for answer in ask("hosted_vllm", "", truncate_prompt_tokens=256, max_tokens_per_doc=128, truncation_side="left"):
        right(pairs(answer))
    for answer in ask("huggingface", "", truncate=True, truncation_direction="Left"):
        right(pairs(answer))


@check("litellm")
def litellm_reads_errors():
    import litellm

    for provider in ("cohere", "hosted_vllm", "infinity", "jina_ai", "voyage"):
        error = raised(Exception, lambda: litellm.rerank(**arguments(provider, "", query="")))
        assert "query" in str(error), (provider, error)
    error = raised(
        Exception, lambda: litellm.rerank(**arguments("hosted_vllm", "", query=LONG, truncate_prompt_tokens=513))
    )
    assert "truncate_prompt_tokens" in str(error), error
    assert isinstance(error, litellm.BadRequestError), type(error)
