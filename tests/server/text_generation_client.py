"""Run with a Python that has the `text-generation` package: what its client makes of a server, as one JSON object.

Its streams of chats are left out: version 0.7.0 wants `tool_calls` in every delta, which TGI itself leaves out.

python text_generation_client.py http://127.0.0.1:3000
"""

from __future__ import annotations

import asyncio
import json
import sys

from text_generation import AsyncClient, Client
from text_generation.types import Grammar, GrammarType, Message, Tool

PROMPT = "The capital of France is"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
WEATHER = Tool(
    type="function", function={"name": "get_weather", "description": "The weather of a city.", "parameters": SCHEMA}
)


def main(url: str) -> dict:
    client = Client(url, timeout=250)
    plain = client.generate(PROMPT, max_new_tokens=4)
    detailed = client.generate(PROMPT, max_new_tokens=4, decoder_input_details=True, top_n_tokens=2)
    events = list(client.generate_stream(PROMPT, max_new_tokens=6))
    sampled = [client.generate(PROMPT, max_new_tokens=8, do_sample=True, seed=3).generated_text for _ in range(2)]
    best = client.generate(PROMPT, max_new_tokens=4, do_sample=True, best_of=2)
    talk = [Message(role="user", content="Name the capital of France.")]
    chat = client.chat(talk, max_tokens=12, temperature=0)
    call = client.chat(talk, max_tokens=60, temperature=0, tools=[WEATHER], tool_choice="get_weather").choices[0]
    scored = client.chat(talk, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2).choices[0]
    shape = Grammar(type=GrammarType.Json, value=SCHEMA)
    long = PROMPT * 600
    return {
        "text": plain.generated_text,
        "finish": plain.details.finish_reason,
        "prefill": [t.logprob for t in detailed.details.prefill],
        "top": [[t.id for t in row] for row in detailed.details.top_tokens],
        "ids": [t.id for t in detailed.details.tokens],
        "streamed": "".join(e.token.text for e in events if not e.token.special),
        "final": events[-1].generated_text,
        "final_tokens": events[-1].details.generated_tokens,
        "whole": client.generate(PROMPT, max_new_tokens=6).generated_text,
        "stopped": client.generate(PROMPT, max_new_tokens=20, stop_sequences=["."]).details.finish_reason,
        "full": client.generate(PROMPT, max_new_tokens=2, return_full_text=True).generated_text,
        "sampled": sampled,
        "others": len(best.details.best_of_sequences),
        "chat": chat.choices[0].message.content,
        "called": [call.finish_reason, call.message.tool_calls],
        "scored": scored.logprobs,
        "structured": client.generate("A city:", max_new_tokens=60, grammar=shape).generated_text,
        "errors": [told(lambda: client.generate(long)), told(lambda: list(client.generate_stream(long)))],
        **asyncio.run(asynchronous(url)),
    }


def told(call) -> list[str]:
    """The type and the words of what a call raises."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


async def asynchronous(url: str) -> dict:
    """A stream that is left after two events, and one to its end."""
    client = AsyncClient(url, timeout=250)
    left = client.generate_stream("Count: one, two,", max_new_tokens=400)
    seen = [(await anext(left)).token.text for _ in range(2)]
    await left.aclose()
    events = [e async for e in client.generate_stream(PROMPT, max_new_tokens=4)]
    return {"left": len(seen), "asynchronous": events[-1].generated_text}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
