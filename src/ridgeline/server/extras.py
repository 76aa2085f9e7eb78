"""What vLLM adds to OpenAI's answers where it is asked for: scores of the prompt, and token ids.

Must not know routes: they say where in an answer these stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ridgeline.engine.params import MAX_TOP_LOGPROBS
from ridgeline.engine.records import Token
from ridgeline.errors import InvalidRequest
from ridgeline.server.openai import MIN_LOGPROB
from ridgeline.server.schema import OpenAIRequest
from ridgeline.text.tokenizer import Tokenizer


def scored(r: OpenAIRequest, shown: int | None, echoed: bool = False) -> dict[str, Any]:
    """Sampling parameters that score tokens: those generated with `shown` alternatives, and the prompt's if it is
    `echoed` with them, or `prompt_logprobs` asks for it."""
    count = r.prompt_logprobs
    if count is None:
        return {"logprobs": shown, "prompt_logprobs": echoed}
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"prompt_logprobs must be 0 to {MAX_TOP_LOGPROBS}, is {count}", "prompt_logprobs")
    if r.stream:
        raise InvalidRequest("prompt_logprobs is not available in streams; use stream: false", "prompt_logprobs")
    return {"logprobs": max(shown or 0, count), "prompt_logprobs": True}


def of_prompt(
    r: OpenAIRequest, tokenizer: Tokenizer, prompt: Sequence[int], scores: Sequence[Token] | None
) -> dict[str, Any]:
    """The fields about a prompt. `scores` are those of its tokens but the first."""
    found: dict[str, Any] = {}
    if r.prompt_logprobs is not None:
        listed = [_alternatives(tokenizer, token, r.prompt_logprobs) for token in scores or ()]
        found["prompt_logprobs"] = [None, *listed]
    if r.return_token_ids:
        found["prompt_token_ids"] = list(prompt)
    return found


def of_answer(r: OpenAIRequest, tokens: Iterable[Token]) -> dict[str, Any]:
    """The field about generated tokens, the one that ended the answer included."""
    return {"token_ids": [token.id for token in tokens]} if r.return_token_ids else {}


def _alternatives(tokenizer: Tokenizer, token: Token, count: int) -> dict[str, Any]:
    """By id, the token and the `count` likeliest ones. How likely the token ranks is known only among those."""
    ranks = {id: rank for rank, (id, _) in enumerate(token.top, 1)}
    logprobs = {token.id: token.logprob, **dict(token.top[:count])}
    return {
        str(id): {
            "logprob": max(logprob, MIN_LOGPROB), "rank": ranks.get(id), "decoded_token": tokenizer.token_text(id),
        }
        for id, logprob in logprobs.items()
    }  # fmt: skip
