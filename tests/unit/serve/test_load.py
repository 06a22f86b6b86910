"""16 clients at once, and requests that follow our own OpenAPI document."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from serving import NAMES, NEW, QUESTIONS, Served, generated

CLIENTS = 16


@pytest.mark.parametrize("seconds", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_16_clients_get_whole_and_right_answers(served: Served, seconds: float) -> None:
    asked = [(name, question) for name in NAMES for question in QUESTIONS]
    expected = {each: generated(served.folder, *each) for each in asked}
    client, end = served.openai(), time.monotonic() + seconds

    def ask_on(number: int) -> int:
        count = 0
        while not count or time.monotonic() < end:
            name, question = asked[(number + count) % len(asked)]
            chunks = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=NEW,
                stream=True,
            )
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected[name, question]
            count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        counts = list(pool.map(ask_on, range(CLIENTS)))
    assert min(counts) >= 1
    assert served.worker.num_open == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_that_the_document_allows_or_forbids_breaks_the_server(
    served: Served, mode: GenerationMode
) -> None:
    # not by schemathesis' own plugin, which needs an older pytest
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 5
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # without a body nothing of it can be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        def call(case: Any) -> None:
            case.call_and_validate(checks=(not_a_server_error,), timeout=60)

        call()
