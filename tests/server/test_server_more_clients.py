"""Tools, embeddings and reasoning through openai's client, and other packages' clients, against the live server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.model, pytest.mark.parity]

MODEL = "smollm2-135m"
FRANCE = [{"role": "user", "content": "Name the capital of France."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLIENTS = Path(__file__).with_name("clients.py")


@pytest.fixture(scope="module")
def openai(live):
    package = pytest.importorskip("openai", reason="the openai client is not installed (make test-all)")
    with package.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def guided(live):
    """Skips where nothing obeys grammars yet."""
    pytest.importorskip("ridgeline.guidance.grammar", reason="grammars are not built in this engine")


def run_client(name: str, url: str) -> None:
    python = os.environ.get("RIDGELINE_CLIENTS", "")
    if not python:
        pytest.skip("RIDGELINE_CLIENTS names no Python with langchain-openai, litellm and instructor")
    done = subprocess.run([python, str(CLIENTS), name, url], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"client": name, "good": True}


@pytest.mark.parametrize("name", ["langchain", "langchain_more", "litellm", "litellm_more", "instructor_more"])
def test_clients(live, name):
    run_client(name, live.url)


def test_clients_that_force_calls(live, guided):
    run_client("forced", live.url)


def test_tools_are_taken_and_their_results(openai):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    history = [
        {"role": "user", "content": "How is the weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 21 degrees."},
    ]
    given = {"model": MODEL, "messages": history, "tools": [WEATHER], "temperature": 0, "max_tokens": 24}
    done = openai.chat.completions.create(**given).choices[0]
    with openai.chat.completions.stream(**given) as stream:
        for _ in stream:
            pass
        told = stream.get_final_completion().choices[0]
    assert told.message.content == done.message.content and told.finish_reason == done.finish_reason


def test_a_forced_call(openai, guided):
    given = {
        "model": MODEL, "messages": FRANCE, "tools": [WEATHER], "temperature": 0, "max_tokens": 60,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }  # fmt: skip
    done = openai.chat.completions.create(**given).choices[0]
    assert done.finish_reason == "tool_calls"
    (call,) = done.message.tool_calls
    assert call.function.name == "get_weather" and "city" in json.loads(call.function.arguments)
    with openai.chat.completions.stream(**given) as stream:
        for _ in stream:
            pass
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments


def test_structured_output(openai):
    schema = {**WEATHER["function"]["parameters"], "additionalProperties": False}
    given = {
        "model": MODEL, "messages": FRANCE, "temperature": 0, "max_tokens": 60,
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": schema}},
    }  # fmt: skip
    done = openai.chat.completions.create(**given).choices[0]
    assert list(json.loads(done.message.content)) == ["city"] and done.finish_reason == "stop"
    streamed = openai.chat.completions.create(**given, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == done.message.content
    pydantic = pytest.importorskip("pydantic")
    place = pydantic.create_model("Place", city=(str, ...))
    parsed = openai.chat.completions.parse(model=MODEL, messages=FRANCE, max_tokens=60, response_format=place)
    assert isinstance(parsed.choices[0].message.parsed.city, str)


def test_functions_under_their_old_names(openai):
    given = {
        "model": MODEL, "messages": FRANCE, "functions": [WEATHER["function"]], "temperature": 0, "max_tokens": 60,
        "function_call": {"name": "get_weather"},
    }  # fmt: skip
    done = openai.chat.completions.create(**given).choices[0]
    assert done.finish_reason == "function_call" and done.message.function_call.name == "get_weather"
    told = [c.choices[0].delta.function_call for c in openai.chat.completions.create(**given, stream=True)]
    assert "".join(x.arguments or "" for x in told if x) == done.message.function_call.arguments


def test_scores_and_ids_of_a_prompt(openai):
    extra = {"prompt_logprobs": 2, "return_token_ids": True}
    done = openai.completions.create(model=MODEL, prompt="The capital of", max_tokens=2, extra_body=extra).choices[0]
    assert done.prompt_logprobs[0] is None and len(done.prompt_logprobs) == len(done.prompt_token_ids)
    for id, entry in list(zip(done.prompt_token_ids, done.prompt_logprobs, strict=True))[1:]:
        ranked = sorted(entry.values(), key=lambda told: -told["logprob"])
        assert entry[str(id)]["logprob"] <= ranked[0]["logprob"] <= 0 and ranked[0]["rank"] == 1
    assert len(done.token_ids) == 2


def test_embeddings(openai):
    numpy = pytest.importorskip("numpy")
    done = openai.embeddings.create(model=MODEL, input=["a cat", "a cat", "the law of large numbers"])
    one, same, other = (numpy.array(x.embedding) for x in done.data)
    assert one.shape == (576,) and one @ one == pytest.approx(1, abs=1e-3)
    assert one @ same == pytest.approx(1, abs=1e-5) and one @ other < 0.999
    short = openai.embeddings.create(model=MODEL, input="a cat", dimensions=8, encoding_format="float")
    assert len(short.data[0].embedding) == 8 and done.usage.total_tokens == done.usage.prompt_tokens > 0


def test_a_stream_that_is_left_is_cancelled(openai, live):
    stream = openai.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    assert openai.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=2).choices
    for _ in range(100):
        if live.client.idle:
            return
        openai.models.list()
    assert live.client.idle
