"""Service: what every handler needs of the served model. Immutable. Must not know any route."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ridgeline.config import ServerConfig
from ridgeline.engine.records import EOS, STOP, Delta, EngineInfo, Token, most_tokens
from ridgeline.errors import ConfigError, ContextExceeded, InvalidRequest, ModelNotFound
from ridgeline.server.schema import WARNING_HEADER
from ridgeline.server.stream import Stream
from ridgeline.text.dialogue import Dialogue
from ridgeline.text.template import ChatTemplate, require_template
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.weights.hub import ResolvedModel


@dataclass(frozen=True)
class Service:
    """The model behind the routes. `model` is the id clients see; `created` seconds since the epoch; `sha` its
    file's or snapshot's, where that is known."""

    info: EngineInfo
    tokenizer: Tokenizer
    config: ServerConfig
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    sha: str | None = None

    def __post_init__(self) -> None:
        most, longest = self.max_total_tokens, self.config.max_input_tokens
        if most <= longest:
            raise ConfigError(f"max_input_tokens must be below max_total_tokens, which is {most}; it is {longest}")

    @cached_property
    def max_total_tokens(self) -> int:
        """Longest prompt and answer together."""
        return most_tokens(self.info)

    @property
    def max_input_tokens(self) -> int:
        """Longest prompt."""
        return self.config.max_input_tokens or self.max_total_tokens - 1

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, compiled. TemplateError where there is none."""
        return require_template(self.tokenizer)

    @cached_property
    def dialogue(self) -> Dialogue:
        """The chat template, and what it makes of tools and thoughts."""
        return Dialogue.of(self.template)

    def dialogue_of(self, source: str | None) -> Dialogue:
        """That of a request's own chat template, or else the model's. InvalidRequest where that is not allowed."""
        if source is None:
            return self.dialogue
        if not self.config.trust_request_chat_template:
            raise InvalidRequest(
                "this server renders no template of a request; leave chat_template out, or start it with "
                "--trust-request-chat-template",
                "chat_template",
            )
        return Dialogue.of(ChatTemplate(source, self.tokenizer.bos_token, self.tokenizer.eos_token))

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call this model. "tgi" and "dummy" are what Hugging Face's clients send for "this one"."""
        return (self.model, *self.config.aliases, "tgi", "dummy")

    def check_model(self, name: str | None) -> None:
        """ModelNotFound unless `name` is this model (None is)."""
        if name is not None and name not in self.names:
            raise ModelNotFound(f"the model {name[:200]!r} is not served here; ask for {self.model!r}")

    def warned(self, headers: dict[str, str], *texts: str) -> dict[str, str]:
        """`headers`, with a warning where bytes of `texts` have no token and encoding drops them."""
        lost = sum(map(self.tokenizer.count_lost, texts))
        if not lost:
            return headers
        said = f"{lost} bytes of the prompt are not in the vocabulary and were dropped"
        return {**headers, WARNING_HEADER: "; ".join(filter(None, (headers.get(WARNING_HEADER), said)))}

    def check_limits(self, n: int, stops: int, n_name: str) -> None:
        """InvalidRequest naming the server's limit."""
        if not 1 <= n <= self.config.max_best_of:
            raise InvalidRequest(f"{n_name} must be at least 1 and at most {self.config.max_best_of}, is {n}", n_name)
        if stops > self.config.max_stop_sequences:
            limit = self.config.max_stop_sequences
            raise InvalidRequest(f"stop has {stops} sequences; at most {limit} are allowed", "stop")

    def check_input(self, tokens: int, name: str) -> None:
        """ContextExceeded naming both numbers, where a prompt is longer than the server takes."""
        if tokens > self.max_input_tokens:
            raise ContextExceeded(f"{name} has {tokens} tokens; at most {self.max_input_tokens} are allowed", name)

    def check_truncation(self, keep: int | None) -> None:
        """The same for how much of a prompt is kept."""
        if keep is not None and not 1 <= keep <= self.max_input_tokens:
            raise InvalidRequest(f"truncate must be 1 to {self.max_input_tokens}, is {keep}", "truncate")

    def check_batch(self, size: int, name: str) -> None:
        """The same for too many prompts in one request."""
        if size > (most := self.config.max_client_batch_size):
            raise InvalidRequest(f"{name} holds {size} prompts; at most {most} are allowed", name)


@dataclass
class Choice:
    """A finished choice, put together from its deltas. `tokens` includes the one that ended it."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str = ""
    prompt: tuple[Token, ...] | None = None
    cached: int = 0

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens.extend(delta.tokens)
        self.finish = delta.finish or self.finish
        self.prompt = delta.prompt if delta.prompt is not None else self.prompt
        self.cached = max(self.cached, delta.cached)

    @property
    def mean_logprob(self) -> float:
        return sum(t.logprob for t in self.tokens) / max(len(self.tokens), 1)


def best(candidates: list[Choice], count: int) -> list[Choice]:
    """As many as were asked for: where there are more, those of the highest logprob per token, best first."""
    if len(candidates) == count:
        return candidates
    return sorted(candidates, key=lambda c: -c.mean_logprob)[:count]


async def collect(stream: Stream, shape: list[int]) -> list[list[Choice]]:
    """All choices of all jobs, when they have ended; `shape[j]` choices of job j."""
    done = [[Choice() for _ in range(n)] for n in shape]
    async for batch in stream.batches():
        for event in batch:
            done[event.job][event.delta.choice].add(event.delta)
    return done


def spoken(tokens: tuple[Token, ...] | list[Token], finish: str | None, stop_ids: tuple[int, ...]) -> list[Token]:
    """The tokens that belong to the text: without the one that only ended it."""
    silent = finish == EOS or (finish == STOP and bool(tokens) and tokens[-1].id in stop_ids)
    return list(tokens[:-1] if silent else tokens)


def public_name(found: ResolvedModel) -> str:
    """A local path's last part, without .gguf (never a path of this machine); other models are called what they were
    asked for as."""
    if found.path != Path(found.alias).expanduser():
        return found.alias
    path = Path(os.path.abspath(found.path))  # links keep their own name
    return (path.stem if found.kind == "gguf" else path.name) or "model"


def sha_of(found: ResolvedModel) -> str | None:
    """SHA-256 of a file that was hashed when it was fetched, or the commit of a snapshot in the Hub's own cache."""
    if found.kind == "random":
        return None
    if found.sha256 is not None:
        return found.sha256
    folder = (found.path if found.kind == "dir" else found.path.parent).resolve()
    return folder.name if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name) else None
