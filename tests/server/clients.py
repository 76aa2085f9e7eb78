"""Other packages' clients against a server, run where they are installed: `python clients.py NAME URL`.

They need other versions of packages than the tests do, so they live in an environment of their own, whose Python the
variable RIDGELINE_CLIENTS names. Each function is one client's test; it raises where something is wrong.
"""

from __future__ import annotations

import json
import sys

MODEL = "smollm2-135m"
FRANCE = "Name the capital of France."
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


if __name__ == "__main__":
    {"langchain": langchain, "litellm": litellm, "forced": forced}[sys.argv[1]](sys.argv[2])
    print(json.dumps({"client": sys.argv[1], "good": True}))
