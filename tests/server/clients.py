"""Other packages' clients against a server, run where they are installed: `python clients.py NAME URL`.

They need other versions of packages than the tests do, so they live in an environment of their own, whose Python the
variable RIDGELINE_CLIENTS names. Each function is one client's test; it raises where something is wrong.
"""

from __future__ import annotations

import json
import sys

MODEL = "smollm2-135m"
FRANCE = "Name the capital of France."
FRANCE_MESSAGES = [{"role": "user", "content": FRANCE}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": SCHEMA},
}


def langchain(url: str) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    model = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=12, max_retries=0)
    done = model.invoke(FRANCE)
    assert "Paris" in done.content, done
    assert done.usage_metadata["total_tokens"] == done.usage_metadata["input_tokens"] + 12 or done.response_metadata
    assert "".join(chunk.content for chunk in model.stream(FRANCE)) == done.content
    call = {"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1"}
    history = [
        HumanMessage("How is it?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("Rain.", tool_call_id="call_1"),
    ]
    told = model.bind_tools([WEATHER]).invoke(history)
    assert isinstance(told.content, str)
    vectors = OpenAIEmbeddings(
        model=MODEL, base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    ).embed_documents(["a cat", "a dog", "the law of large numbers"])
    assert len(vectors) == 3 and abs(sum(x * x for x in vectors[0]) - 1) < 1e-3


def litellm(url: str) -> None:
    import litellm as package

    given = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_tokens": 12}
    messages = [{"role": "user", "content": FRANCE}]
    done = package.completion(messages=messages, **given)
    text = done.choices[0].message.content
    assert "Paris" in text and done.usage.completion_tokens <= 12
    stream = package.completion(messages=messages, stream=True, **given)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    scored = package.completion(messages=messages, logprobs=True, top_logprobs=2, **given)
    assert len(scored.choices[0].logprobs["content"][0]["top_logprobs"]) == 2
    try:
        package.completion(messages=messages, **{**given, "temperature": -1})
    except package.BadRequestError as error:
        assert "temperature" in str(error)
    else:
        raise AssertionError("a negative temperature was taken")
    try:
        package.completion(messages=messages, **{**given, "model": "openai/gpt-9"})
    except package.NotFoundError:
        pass
    else:
        raise AssertionError("an unknown model was taken")


def langchain_more(url: str) -> None:
    """Structured output, logprobs, n with a seed, errors, and a stream that is left."""
    import openai
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    def model(**more):
        given = {"temperature": 0, "max_tokens": 60, **more}
        return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", max_retries=0, **given)

    for method in ("json_schema", "function_calling"):
        place = model().with_structured_output(Place, method=method).invoke(FRANCE)
        assert isinstance(place, Place), (method, place)
    scored = model(max_tokens=4).bind(logprobs=True, top_logprobs=2).invoke(FRANCE)
    assert len(scored.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    several = [model(n=2, seed=3, temperature=1.5, max_tokens=8).generate([[HumanMessage(FRANCE)]]) for _ in range(2)]
    one, two = ([choice.text for choice in result.generations[0]] for result in several)
    assert one == two and len(set(one)) == 2, several
    stream = model(max_tokens=400).stream(FRANCE)
    next(stream)
    stream.close()
    told = "".join(
        chunk["args"] or ""
        for piece in model().bind_tools([WEATHER], tool_choice="get_weather").stream("How is the weather in Paris?")
        for chunk in piece.tool_call_chunks
    )
    assert "city" in json.loads(told)
    for wrong, kind in (({"temperature": -1}, openai.BadRequestError), ({"model": "gpt-9"}, openai.NotFoundError)):
        raises(kind, lambda wrong=wrong: model().bind(**wrong).invoke(FRANCE))


def litellm_more(url: str) -> None:
    """Tools, structured output, n with a seed, errors, and a stream that is left."""
    import litellm as package

    given = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_tokens": 60}
    given["messages"] = [{"role": "user", "content": FRANCE}]
    shape = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
    shown = package.completion(response_format=shape, **given).choices[0].message.content
    assert isinstance(json.loads(shown)["city"], str)
    forced = {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
    forced["_skip_mcp_handler"] = True  # it wants packages of its proxy, also for tools that are not MCP's
    choice = package.completion(**given, **forced).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "get_weather", choice
    assert list(json.loads(call.function.arguments)) == ["city"], call
    pieces = [chunk.choices[0].delta.tool_calls for chunk in package.completion(**given, **forced, stream=True)]
    told = "".join(piece[0].function.arguments or "" for piece in pieces if piece)
    assert told == call.function.arguments
    sampled = {**given, "temperature": 1.5, "max_tokens": 8, "n": 2, "seed": 3}
    one, two = ([c.message.content for c in package.completion(**sampled).choices] for _ in range(2))
    assert one == two and len(set(one)) == 2, (one, two)
    vectors = package.embedding(model=f"openai/{MODEL}", input=["a cat"], api_base=f"{url}/v1", api_key="none")
    assert len(vectors.data[0]["embedding"]) == 576
    long = {**given, "messages": [{"role": "user", "content": "word " * 600}]}
    raises(package.ContextWindowExceededError, lambda: package.completion(**long))
    left = package.completion(**{**given, "max_tokens": 400}, stream=True)
    next(iter(left))
    del left


def forced(url: str) -> None:
    """Clients that force a call: instructor, and langchain's with tool_choice."""
    import instructor
    from langchain_openai import ChatOpenAI
    from openai import OpenAI
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none"), mode=instructor.Mode.TOOLS)
    place = client.chat.completions.create(
        model=MODEL, response_model=Place, messages=[{"role": "user", "content": FRANCE}], max_tokens=60, max_retries=0
    )
    assert isinstance(place.city, str)
    model = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=60)
    done = model.bind_tools([WEATHER], tool_choice="get_weather").invoke("How is the weather in Paris?")
    assert [call["name"] for call in done.tool_calls] == ["get_weather"] and "city" in done.tool_calls[0]["args"]


def instructor_more(url: str) -> None:
    """Its other modes, streams of parts, a list of things, and errors."""
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    given = {"model": MODEL, "response_model": Place, "messages": FRANCE_MESSAGES, "max_tokens": 60, "seed": 1}
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
            made = instructor.from_openai(client, mode=mode).chat.completions
            assert isinstance(made.create(max_retries=0, **given).city, str), mode
        tools = instructor.from_openai(client, mode=instructor.Mode.TOOLS).chat.completions
        parts = [part.city for part in tools.create_partial(max_retries=0, **given)]
        grown = [city for city in parts if city]
        assert grown and all(later.startswith(city) for city, later in zip(grown, grown[1:], strict=False)), parts
        shaped = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).chat.completions
        *_, last = shaped.create_partial(max_retries=0, **given)
        assert isinstance(last.city, str)
        listed = list(tools.create_iterable(max_retries=0, **{**given, "response_model": Place, "max_tokens": 120}))
        assert listed and all(isinstance(place.city, str) for place in listed)
        place, whole = tools.create_with_completion(max_retries=0, **given)
        assert whole.choices[0].finish_reason == "tool_calls" and json.loads(
            whole.choices[0].message.tool_calls[0].function.arguments
        ) == {"city": place.city}
        try:
            tools.create(max_retries=0, **{**given, "max_tokens": -1})
        except Exception as error:  # its own, whose place in the package moves
            assert "max_tokens must be at least 1" in str(error)
        else:
            raise AssertionError("a negative max_tokens was taken")


def raises(kind: type[Exception], call) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


TESTS = (langchain, langchain_more, litellm, litellm_more, forced, instructor_more)

if __name__ == "__main__":
    {test.__name__: test for test in TESTS}[sys.argv[1]](sys.argv[2])
    print(json.dumps({"client": sys.argv[1], "good": True}))
