"""Frameworks for retrieval: LangChain's compressors, LlamaIndex's postprocessors, Haystack's rankers, `rerankers`."""

import asyncio

from common import DOCUMENTS, LONG, MODEL, ORDER, QUERY, Server, check, logits, right


def places(texts):
    return [DOCUMENTS.index(text) for text in texts]


# LangChain


def compressed(compressor, form=right, count=3):
    """Holds what a compressor answers to the right scores; long queries are answered too."""
    from langchain_core.documents import Document

    documents = [Document(page_content=text, metadata={"place": place}) for place, text in enumerate(DOCUMENTS)]
    answer = compressor.compress_documents(documents, QUERY)
    form([(hit.metadata["place"], hit.metadata["relevance_score"]) for hit in answer], order=ORDER[:count])
    assert len(compressor.compress_documents(documents, LONG)) == count


@check("langchain_cohere")
def langchain_cohere():
    from langchain_cohere import CohereRerank

    compressed(CohereRerank(cohere_api_key="a key", base_url=Server.base, model=MODEL))
    compressed(CohereRerank(cohere_api_key="a key", base_url=Server.base, model=MODEL, top_n=2), count=2)


@check("langchain_voyageai")
def langchain_voyage():
    from langchain_voyageai import VoyageAIRerank

    compressed(VoyageAIRerank(api_key="a key", base_url=Server.base + "/v1", model=MODEL))


@check("langchain_community")
def langchain_jina():
    from langchain_community.document_compressors import jina_rerank

    # The address is a constant of the module.
    jina_rerank.JINA_API_URL = Server.base + "/v1/rerank"
    compressed(jina_rerank.JinaRerank(jina_api_key="a key", model=MODEL))


@check("langchain_community", "infinity_client")
def langchain_infinity():
    from infinity_client import Client
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank

    InfinityRerank.model_rebuild(_types_namespace={"Client": Client, "Optional": __import__("typing").Optional})
    compressed(InfinityRerank(client=Client(base_url=Server.base), model=MODEL))


@check("langchain_nvidia_ai_endpoints")
def langchain_nvidia():
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    compressed(NVIDIARerank(base_url=Server.base + "/v1", api_key="a key", model=MODEL, truncate="END"), form=logits)
    # Without a model it takes the first of /v1/models.
    compressed(NVIDIARerank(base_url=Server.base + "/v1", api_key="a key", truncate="END"), form=logits)


# LlamaIndex


def postprocessed(postprocessor, form=right, count=3):
    from llama_index.core.schema import NodeWithScore, TextNode

    def nodes():
        return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in DOCUMENTS]

    answer = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    form(list(zip(places(hit.node.text for hit in answer), (hit.score for hit in answer))), order=ORDER[:count])
    assert len(postprocessor.postprocess_nodes(nodes(), query_str=LONG)) == count
    # A document that is longer than the model reads; some postprocessors never ask for truncation.
    long = [NodeWithScore(node=TextNode(text=LONG), score=0.5) for _ in range(count)]
    assert len(postprocessor.postprocess_nodes(long, query_str=QUERY)) == count


@check("llama_index.postprocessor.tei_rerank")
def llama_index_tei():
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    postprocessed(TextEmbeddingInference(base_url=Server.base, top_n=2), count=2)


@check("llama_index.postprocessor.cohere_rerank")
def llama_index_cohere():
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    postprocessed(CohereRerank(api_key="a key", base_url=Server.base, model=MODEL, top_n=2), count=2)


@check("llama_index.postprocessor.jinaai_rerank")
def llama_index_jina():
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    postprocessed(JinaRerank(api_key="a key", base_url=Server.base + "/v1", model=MODEL, top_n=2), count=2)


@check("llama_index.postprocessor.voyageai_rerank")
def llama_index_voyage():
    import voyageai
    from llama_index.postprocessor.voyageai_rerank import VoyageAIRerank

    postprocessor = VoyageAIRerank(api_key="a key", model=MODEL, top_n=2)
    # It has no argument for the address.
    postprocessor._client = voyageai.Client(api_key="a key", base_url=Server.base + "/v1")
    postprocessed(postprocessor, count=2)


@check("llama_index.postprocessor.nvidia_rerank")
def llama_index_nvidia():
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    postprocessor = NVIDIARerank(base_url=Server.base + "/v1", api_key="a key", model=MODEL, top_n=2, truncate="END")
    postprocessed(postprocessor, form=logits, count=2)


@check("llama_index.postprocessor.xinference_rerank")
def llama_index_xinference():
    from llama_index.postprocessor.xinference_rerank import XinferenceRerank

    postprocessed(XinferenceRerank(base_url=Server.base, model=MODEL, top_n=2), count=2)


# Haystack 2


def haystack(ranker, form=right, count=2):
    from haystack import Document

    documents = [Document(content=text) for text in DOCUMENTS]
    answers = [ranker.run(query=QUERY, documents=documents)]
    if hasattr(ranker, "run_async"):
        answers.append(asyncio.run(ranker.run_async(query=QUERY, documents=documents)))
    for answer in answers:
        hits = answer["documents"]
        form(list(zip(places(hit.content for hit in hits), (hit.score for hit in hits))), order=ORDER[:count])
    assert len(ranker.run(query=LONG, documents=documents)["documents"]) == count
    return answers[0]


@check("haystack_integrations.components.rankers.cohere")
def haystack_cohere():
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.cohere import CohereRanker

    key = Secret.from_token("a key")
    haystack(CohereRanker(model=MODEL, api_key=key, api_base_url=Server.base, top_k=2))


@check("haystack_integrations.components.rankers.jina")
def haystack_jina():
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.jina import JinaRanker

    key, base = Secret.from_token("a key"), Server.base + "/v1/rerank"
    answer = haystack(JinaRanker(model=MODEL, api_key=key, base_url=base, top_k=2))
    assert answer["meta"]["model"] == MODEL and answer["meta"]["usage"]["total_tokens"] > 0
    # Without a limit it sends `top_n: null`.
    haystack(JinaRanker(model=MODEL, api_key=key, base_url=base), count=3)


@check("haystack_integrations.components.rankers.huggingface_api")
def haystack_tei():
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker, TruncationDirection

    token = Secret.from_token("a key")
    haystack(HuggingFaceTEIRanker(url=Server.base, token=token, top_k=2))
    raw = HuggingFaceTEIRanker(url=Server.base, token=token, top_k=2, raw_scores=True)
    haystack(raw, form=logits)
    for direction in TruncationDirection:
        documents = [Document(content=LONG), Document(content=DOCUMENTS[1])]
        answer = raw.run(query=QUERY, documents=documents, truncation_direction=direction)
        assert len(answer["documents"]) == 2


@check("haystack_integrations.components.rankers.vllm")
def haystack_vllm():
    from haystack_integrations.components.rankers.vllm import VLLMRanker

    for base in ("", "/v1", "/v2"):
        haystack(VLLMRanker(model=MODEL, api_base_url=Server.base + base, top_k=2))
    extra = {"truncate_prompt_tokens": 256}
    answer = haystack(VLLMRanker(model=MODEL, api_base_url=Server.base + "/v1", top_k=2, extra_parameters=extra))
    assert answer["meta"]["model"] == MODEL and answer["meta"]["usage"]["total_tokens"] > 0


@check("haystack_integrations.components.rankers.nvidia")
def haystack_nvidia():
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.nvidia import NvidiaRanker

    key = Secret.from_token("a key")
    ranker = NvidiaRanker(model=MODEL, api_key=key, api_url=Server.base + "/v1", top_k=2, truncate="END")
    haystack(ranker, form=logits)


# `rerankers`


def rerankers_check(provider, path):
    def ranks():
        from rerankers.documents import Document
        from rerankers.models.api_rankers import APIRanker

        ranker = APIRanker(MODEL, api_key="a key", api_provider=provider, verbose=0, url=Server.base + path)
        answer = ranker.rank(query=QUERY, docs=DOCUMENTS)
        right([(hit.doc_id, hit.score) for hit in answer.results])
        assert len(ranker.rank(query=LONG, docs=DOCUMENTS).results) == 3
        assert abs(ranker.score(QUERY, Document(DOCUMENTS[1])) - answer.results[0].score) < 1e-6

    ranks.__name__ = f"rerankers_{provider.replace('-', '_')}"
    check("rerankers")(ranks)


for provider, path in [
    ("cohere", "/v1/rerank"),
    ("jina", "/v1/rerank"),
    ("voyage", "/v1/rerank"),
    ("text-embeddings-inference", "/rerank"),
]:
    rerankers_check(provider, path)
