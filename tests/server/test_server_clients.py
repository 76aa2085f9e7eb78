"""The official clients against the live server: openai, and huggingface_hub's InferenceClient."""

from __future__ import annotations

import json

import pytest
from serving import Server, listening

from ridgeline.errors import EngineFailed, InvalidRequest, Overloaded

pytestmark = [pytest.mark.model, pytest.mark.parity]

MODEL = "smollm2-135m"
FRANCE = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture(scope="module")
def openai(live):
    package = pytest.importorskip("openai", reason="the openai client is not installed (make test-all)")
    with package.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def inference(live):
    package = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (make test-all)")
    return package.InferenceClient(live.url)


def test_openai_chat(openai):
    done = openai.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0, max_completion_tokens=12)
    assert "Paris" in done.choices[0].message.content
    assert done.choices[0].finish_reason in ("stop", "length")
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done._request_id and done.system_fingerprint


def test_openai_chat_stream(openai):
    whole = openai.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0, max_tokens=12)
    chunks = list(
        openai.chat.completions.create(
            model=MODEL, messages=FRANCE, temperature=0, max_tokens=12, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []


def test_openai_streaming_helper(openai):
    with openai.chat.completions.stream(model=MODEL, messages=FRANCE, temperature=0, max_tokens=12) as stream:
        for _ in stream:
            pass
        assert "Paris" in stream.get_final_completion().choices[0].message.content


def test_openai_chat_logprobs(openai):
    done = openai.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    items = done.choices[0].logprobs.content
    assert b"".join(bytes(i.bytes) for i in items).decode() == done.choices[0].message.content
    for item in items:
        best = item.top_logprobs[0]
        assert (best.token, best.logprob) == (item.token, item.logprob) and len(item.top_logprobs) == 3


def test_openai_n_with_seed(openai):
    def texts(**options) -> list[str]:
        done = openai.chat.completions.create(
            model=MODEL, messages=FRANCE, n=3, seed=3, temperature=1.5, max_tokens=12, **options
        )
        if not options:
            return [c.message.content for c in sorted(done.choices, key=lambda c: c.index)]
        shown = [""] * 3
        for chunk in done:
            for choice in chunk.choices:
                shown[choice.index] += choice.delta.content or ""
        return shown

    first = texts()
    assert texts() == first and texts(stream=True) == first
    assert len(set(first)) > 1


def test_openai_completion(openai):
    given = {
        "model": MODEL,
        "prompt": "The capital of France is",
        "temperature": 0,
        "max_tokens": 4,
        "logprobs": 2,
        "echo": True,
    }
    done = openai.completions.create(**given)
    choice = done.choices[0]
    assert choice.text.startswith(given["prompt"]) and "Paris" in choice.text
    lists = choice.logprobs
    assert lists.token_logprobs[0] is None and all(x <= 0 for x in lists.token_logprobs[1:])
    assert [choice.text[a:][: len(t)] for a, t in zip(lists.text_offset, lists.tokens, strict=True)] == lists.tokens
    streamed = openai.completions.create(**given, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == choice.text


def test_openai_models_and_errors(openai):
    import openai as package

    assert [m.id for m in openai.models.list()] == [MODEL]
    assert openai.models.retrieve(MODEL).id == MODEL
    with pytest.raises(package.NotFoundError):
        openai.chat.completions.create(model="gpt-9", messages=FRANCE)
    with pytest.raises(package.BadRequestError, match="temperature"):
        openai.chat.completions.create(model=MODEL, messages=FRANCE, temperature=-1)
    with pytest.raises(package.BadRequestError, match="512"):
        openai.completions.create(model=MODEL, prompt="word " * 600)


def test_text_generation(inference):
    text = inference.text_generation("The capital of France is", max_new_tokens=4)
    assert "Paris" in text


def test_text_generation_details(inference):
    plain = inference.text_generation("The capital of France is", max_new_tokens=4)
    done = inference.text_generation(
        "The capital of France is", max_new_tokens=4, details=True, decoder_input_details=True, top_n_tokens=2
    )
    assert done.generated_text == plain
    assert done.details.finish_reason == "length" and done.details.generated_tokens == 4
    assert "".join(t.text for t in done.details.tokens) == plain
    assert done.details.prefill[0].logprob is None and all(t.logprob < 0 for t in done.details.prefill[1:])
    assert [t[0]["id"] for t in done.details.top_tokens] == [t.id for t in done.details.tokens]


def test_text_generation_stream(inference):
    plain = inference.text_generation("The capital of France is", max_new_tokens=6)
    assert "".join(inference.text_generation("The capital of France is", max_new_tokens=6, stream=True)) == plain
    events = list(inference.text_generation("The capital of France is", max_new_tokens=6, stream=True, details=True))
    assert [e.index for e in events] == list(range(1, 7))
    assert events[-1].generated_text == plain and events[-1].details.generated_tokens == 6


def test_text_generation_samples_with_a_seed(inference):
    given = {"max_new_tokens": 8, "do_sample": True, "seed": 4, "temperature": 1.2, "details": True}
    one, two = (inference.text_generation("Once upon a time", **given) for _ in range(2))
    assert one.generated_text == two.generated_text and one.details.seed == 4


def test_text_generation_errors_are_typed(inference):
    from huggingface_hub.errors import ValidationError

    with pytest.raises(ValidationError, match="top_p"):
        inference.text_generation("x", top_p=3.0)


def failing(error):
    def submit(*_):
        raise error

    return submit


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (Overloaded("full"), "OverloadedError"),
        (EngineFailed("it broke"), "GenerationError"),
        (InvalidRequest("too long"), "ValidationError"),
        (KeyError("a bug"), "IncompleteGenerationError"),
    ],
)
def test_text_generation_knows_our_errors(error, raised, stream):
    package = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (make test-all)")
    from huggingface_hub import errors

    server = Server.new()
    server.client.submit = failing(error)
    with listening(server.app) as url, pytest.raises(getattr(errors, raised)):
        list(package.InferenceClient(url).text_generation("x", stream=stream))


def test_text_generation_knows_an_error_inside_a_stream():
    package = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (make test-all)")
    from huggingface_hub.errors import GenerationError

    server, seen = Server.new(), []
    server.client.crash_at = 3
    raises = pytest.raises(GenerationError, match="engine failed")
    with listening(server.app) as url, package.InferenceClient(url) as client, raises:
        for text in client.text_generation("x", stream=True):
            seen.append(text)
    assert seen == ["H", "i", " "]


def test_what_tgi_tells_in_plain_text_its_client_only_passes_on():
    """Why malformed bodies are JSON here, unless --tgi-strict."""
    package = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (make test-all)")
    from huggingface_hub.errors import HfHubHTTPError, ValidationError

    for strict, raised in ((False, ValidationError), (True, HfHubHTTPError)):
        with listening(Server.new(tgi_strict=strict).app) as url, pytest.raises(raised) as told:
            package.InferenceClient(url).text_generation("x", max_new_tokens="many")
        assert type(told.value) is raised or strict


def test_chat_through_inference_client(inference):
    done = inference.chat_completion(FRANCE, max_tokens=12, temperature=0)
    assert "Paris" in done.choices[0].message.content
    streamed = inference.chat_completion(FRANCE, max_tokens=12, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == done.choices[0].message.content


def test_more_of_chat_through_inference_client(inference):
    scored = inference.chat_completion(FRANCE, max_tokens=4, logprobs=True, top_logprobs=2).choices[0]
    assert len(scored.logprobs.content) <= 4 and len(scored.logprobs.content[0].top_logprobs) == 2
    given = {"max_tokens": 8, "temperature": 1.5, "seed": 3, "n": 2}
    one, two = ([c.message.content for c in inference.chat_completion(FRANCE, **given).choices] for _ in range(2))
    assert one == two and len(set(one)) == 2
    stream = inference.chat_completion(FRANCE, max_tokens=400, stream=True)
    next(stream)
    stream.close()


def test_tools_and_grammars_through_inference_client(inference):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "description": "Tells it.", "parameters": schema}}
    done = inference.chat_completion(FRANCE, tools=[tool], tool_choice="get_weather", max_tokens=60).choices[0]
    assert done.finish_reason == "tool_calls" and done.message.tool_calls[0].function.name == "get_weather"
    shape = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    told = inference.chat_completion(FRANCE, response_format=shape, max_tokens=60).choices[0].message.content
    assert isinstance(json.loads(told)["city"], str), told
    number = inference.text_generation("A number:", grammar={"type": "regex", "value": "[0-9]{3}"}, max_new_tokens=8)
    assert len(number) == 3 and number.isdigit()
