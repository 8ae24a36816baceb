"""The clients that the peers publish: Cohere's, Voyage's, Hugging Face's and Infinity's."""

import asyncio

from common import (
    DOCUMENTS, LONG, MODEL, ORDER, QUERY, Server, check, logits, raised, ranked, right,
)


def pairs(results):
    return [(result.index, result.relevance_score) for result in results]


@check("cohere")
def cohere_v1():
    import cohere

    client = cohere.Client("a key", base_url=Server.base)
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, return_documents=True)
    right(pairs(answer.results))
    assert [result.document.text for result in answer.results] == [DOCUMENTS[place] for place in ORDER]
    assert answer.meta.billed_units.search_units == 1
    answer = client.rerank(model=MODEL, query=QUERY, documents=[{"text": text} for text in DOCUMENTS], top_n=1)
    right(pairs(answer.results), order=[1])
    wrong = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 0}
    error = raised(cohere.BadRequestError, lambda: client.rerank(**wrong))
    assert "top_n" in error.body["message"] if isinstance(error.body, dict) else error.body.message, error.body


@check("cohere")
def cohere_v2():
    import cohere

    client = cohere.ClientV2("a key", base_url=Server.base)
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=2, max_tokens_per_doc=400, priority=0)
    right(pairs(answer.results), order=ORDER[:2])
    answer = client.rerank(model=MODEL, query=LONG, documents=DOCUMENTS)
    assert sorted(result.index for result in answer.results) == [0, 1, 2]
    error = raised(cohere.BadRequestError, lambda: client.rerank(model=MODEL, query="", documents=DOCUMENTS))
    assert "query" in str(error.body), error.body


@check("cohere")
def cohere_async():
    import cohere

    async def ask():
        client = cohere.AsyncClientV2("a key", base_url=Server.base)
        calls = [client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS) for _ in range(8)]
        return await asyncio.gather(*calls)

    for answer in asyncio.run(ask()):
        right(pairs(answer.results))


@check("voyageai")
def voyage():
    import voyageai

    client = voyageai.Client(api_key="a key", base_url=Server.base + "/v1")
    answer = client.rerank(QUERY, DOCUMENTS, model=MODEL, top_k=3)
    right(pairs(answer.results))
    assert [result.document for result in answer.results] == [DOCUMENTS[place] for place in ORDER]
    assert answer.total_tokens > 0
    answer = client.rerank(LONG, DOCUMENTS, model=MODEL, truncation=True)
    assert sorted(result.index for result in answer.results) == [0, 1, 2]
    error = raised(
        voyageai.error.InvalidRequestError, lambda: client.rerank(LONG, DOCUMENTS, model=MODEL, truncation=False)
    )
    assert "token" in str(error), error
    error = raised(voyageai.error.InvalidRequestError, lambda: client.rerank(QUERY, DOCUMENTS, model=MODEL, top_k=0))
    assert "top_k" in str(error), error


@check("huggingface_hub")
def hugging_face_endpoint():
    # As huggingface_hub calls a TEI endpoint.
    import huggingface_hub

    session = huggingface_hub.get_session()
    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "return_text": True}
    response = session.post(Server.base + "/rerank", json=body)
    huggingface_hub.utils.hf_raise_for_status(response)
    logits(ranked(response.json(), "score"))
    assert response.json()[0]["text"] == DOCUMENTS[1]


@check("infinity_client")
def infinity_client_rerank():
    from infinity_client import Client
    from infinity_client.api.default import rerank
    from infinity_client.models import HTTPValidationError, RerankInput, ReRankResult

    client = Client(base_url=Server.base, raise_on_unexpected_status=True)
    body = RerankInput(query=QUERY, documents=DOCUMENTS, model=MODEL)
    answer = rerank.sync(client=client, body=body)
    assert isinstance(answer, ReRankResult), answer
    right(pairs(answer.results))
    assert answer.object_ == "rerank" and answer.model == MODEL and answer.usage.total_tokens > 0
    body = RerankInput(query=QUERY, documents=DOCUMENTS, raw_scores=True, return_documents=True, top_n=2)
    answer = rerank.sync(client=client, body=body)
    logits(pairs(answer.results), order=ORDER[:2])
    assert [result.document for result in answer.results] == [DOCUMENTS[place] for place in ORDER[:2]]
    for top_n in (0, -1):
        answer = rerank.sync(client=client, body=RerankInput(query=QUERY, documents=DOCUMENTS, top_n=top_n))
        assert isinstance(answer, HTTPValidationError), (top_n, answer)
        assert "top_n" in str(answer.to_dict()), answer


@check("infinity_client")
def infinity_client_async():
    from infinity_client import Client
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    async def ask():
        client = Client(base_url=Server.base, raise_on_unexpected_status=True)
        body = RerankInput(query=LONG, documents=DOCUMENTS, model=MODEL)
        return await rerank.asyncio(client=client, body=body)

    assert sorted(result.index for result in asyncio.run(ask()).results) == [0, 1, 2]


@check("infinity_client")
def infinity_client_pages():
    from infinity_client import Client
    from infinity_client.api.default import health, models

    client = Client(base_url=Server.base, raise_on_unexpected_status=True)
    answer = models.sync(client=client)
    assert answer.object_ == "list" and answer.data[0].id == MODEL, answer
    assert answer.data[0].stats["queue_absolute"] == 0, answer
    assert "rerank" in answer.data[0].capabilities, answer
    # The client reads JSON, though it sends `accept: */*`.
    assert health.sync(client=client).additional_properties["unix"] > 0
