"""Three of schemathesis' checks, each with its exceptions; `fuzz.py` hands this file to schemathesis.

An exception is a function that is true where the check does not apply, and its docstring is the reason.
"""

import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance


def budget_too_short(case, response):
    """A request whose latency budget cannot be met is refused with 503 or 504, which are documented; 0 ms never can."""
    code = response.headers.get("x-podium-error", [""])[0]
    return response.status_code in (503, 504) and code in ("budget_spent", "budget_too_short")


def no_room_for_a_pair(case, response):
    """How many tokens a pair needs at least depends on the model's special tokens, so no schema can state it."""
    return response.status_code in (400, 422) and "no room for a query and a document" in response.text


def more_than_the_model_reads(case, response):
    """vLLM's truncate_prompt_tokens must not be more than the model reads, which depends on the model."""
    return response.status_code == 400 and "tokens that the model reads" in response.text


def lengths_differ(case, response):
    """JSON Schema cannot state that two lists have the same length, or that a tensor's shape is the length of its data."""
    told = ("give one, or as many", "elements, and its shape is")
    return response.status_code == 400 and any(text in response.text for text in told)


def no_rank_field(case, response):
    """JSON Schema cannot state that a document has one of the fields that another field names."""
    return response.status_code == 400 and "has none of rank_fields" in response.text


def unknown_header(case, response):
    """A server ignores header fields that it does not know (RFC 9110, 5.1)."""
    data = case.meta.phase.data
    return data.parameter_location == ParameterLocation.HEADER and "unexpected properties" in (data.description or "")


def excused(check, exceptions):
    """The check, where none of the exceptions holds."""

    def rule(ctx, response, case):
        if not any(exception(case, response) for exception in exceptions):
            return check(ctx, response, case)

    rule.__name__ = check.__name__ + "_but_for_exceptions"
    schemathesis.check(rule)


excused(not_a_server_error, [budget_too_short])
excused(
    positive_data_acceptance, [no_room_for_a_pair, more_than_the_model_reads, lengths_differ, no_rank_field]
)
excused(negative_data_rejection, [unknown_header])
