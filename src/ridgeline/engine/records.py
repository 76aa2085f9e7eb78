"""The plain records that cross to the engine and back, in one process or two: submit, cancel, one batch per step."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ridgeline.engine.params import SamplingParams
from ridgeline.errors import ContextExceeded, InvalidRequest

PAGE = 64  # keys in a page; the same number as ops.attention.PAGE, kept free of numpy for clients

EOS, STOP, LENGTH, CANCELLED, FAILED = "eos_token", "stop_sequence", "length", "cancelled", "failed"
FINISHED = (EOS, STOP, LENGTH)  # ends of an answer that is all there
EMBEDDED = "embedded"  # of a prompt that was asked for its vector, which came
EXPIRED = "deadline"
NO_MEMORY = "no_memory"  # the system had none left for pages that were promised
UNGUIDED = "grammar"  # what may follow could not be found within the bounds of grammars
UNDELIVERED = "undelivered"  # paused for too long: nobody took what there was


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """On whose account a request runs, how urgent it is, and until when: its first token, and all of it, in seconds
    from submission (0: any time)."""

    tenant: str = ""  # whose prefixes it may share, and whose share of the engine it takes
    salt: str = ""  # prefixes are shared only under the same one
    priority: int = 0  # higher goes first, where the policy looks at it
    wait_s: float = 0.0
    total_s: float = 0.0


NO_TERMS = Terms()


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """A request as accepted: seed drawn, `limit` tokens to generate at most, which no engine judges again.

    For a replay, `emitted[c]` are choice c's tokens so far.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    limit: int
    emitted: tuple[tuple[int, ...], ...] = ()
    done: tuple[int, ...] = ()
    terms: Terms = NO_TERMS


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop a request; its pages are free within one step and it ends for this reason."""

    id: int
    reason: str = CANCELLED


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Compute no more of a request for now: its reader is behind. It keeps its pages until others need them."""

    id: int


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Go on with a paused request."""

    id: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """End in order: what runs is cancelled, and what is to be kept between runs is written."""


ToEngine = Submit | Cancel | Pause | Resume | Close


class Token(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token with its logprob (0 where none was asked for) and the likeliest alternatives as (id, logprob)."""

    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one choice gained in a step. `text` may lag behind the tokens (partial characters, possible stops).

    `prompt` comes once, before the first token, if prompt logprobs were asked for. `cached` comes with a choice's first
    token: how many prompt tokens the prefix cache had. `finish` is set exactly once. `vector` comes with the end of an
    embedding: float32, little-endian [hidden]. `ran` comes with the first token of a choice that read its prompt, or
    with the vector: the seconds since its first step began.
    """

    id: int
    choice: int
    tokens: tuple[Token, ...]
    text: str
    finish: str | None = None
    prompt: tuple[Token, ...] | None = None
    cached: int = 0
    vector: bytes = b""
    ran: float = 0.0


class Steps(msgspec.Struct, array_like=True, gc=False):
    """How many steps there were, the seconds that the model took in them, and those of making text of their tokens."""

    count: int = 0
    forward_s: float = 0.0
    decode_s: float = 0.0

    def add(self, forward_s: float, decode_s: float) -> None:
        self.count += 1
        self.forward_s += forward_s
        self.decode_s += decode_s


class Counters(msgspec.Struct, array_like=True, gc=False):
    """What an engine has done since it was loaded."""

    cached_tokens: int = 0  # that the prefix cache saved computing
    preemptions: int = 0
    recomputed_tokens: int = 0  # that preemption made compute again
    reading: Steps = msgspec.field(default_factory=Steps)  # that read prompts, beside what else they did
    answering: Steps = msgspec.field(default_factory=Steps)  # the others
    joins: int = 0  # steps in which requests joined others that were running
    attainment: float = 0.0  # the part of the roofline that the last steps reached, 0: unknown


class Note(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was decided for a choice of a request, in words with places for its numbers."""

    id: int
    choice: int
    what: str
    numbers: tuple[int | str | None, ...] = ()

    @property
    def text(self) -> str:
        return f"choice {self.choice} {self.what.format(*self.numbers)}"


class StepDelta(msgspec.Struct, frozen=True, tag="step", gc=False):
    """All deltas of one step, what was decided since the one before, and the counters after it."""

    step: int
    deltas: tuple[Delta, ...]
    running: int
    waiting: int
    pages_used: int
    pages_cached: int = 0
    paused: int = 0
    counters: Counters = msgspec.field(default_factory=Counters)
    notes: tuple[Note, ...] = ()
    pages_withheld: int = 0  # for which the system has no memory
    reading: tuple[tuple[int, int, int], ...] = ()  # prompts not read in one step: request, tokens read, all of them


class GroupInfo(msgspec.Struct, frozen=True):
    """A KV group as admission sees it: its name and window (0 = none)."""

    name: str
    window: int


class EngineInfo(msgspec.Struct, frozen=True, tag="ready"):
    """What a client must know to accept or refuse a request without asking the engine."""

    model: str
    vocab: int
    context: int
    pages: int
    page_bytes: int
    groups: tuple[GroupInfo, ...]
    step_tokens: int
    step_ms: int
    max_requests: int
    queue: int
    depth: int  # steps in flight
    admission: str  # "overcommit" or "strict"
    policy: str
    backend: str
    format: str
    activations: str
    kv_format: str
    threads: int
    weight_bytes: int
    program: str
    load_seconds: float
    notes: tuple[str, ...] = ()  # what is approximate, and what it costs
    prefix_sharing: str = "tenant"  # or "all": between whose requests prefixes are shared


class LoadFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine process could not load; `error` is the typed error's class name."""

    error: str
    message: str


def prefix_key(terms: Terms, info: EngineInfo) -> str:
    """Requests with the same key share prefixes."""
    tenant = terms.tenant if info.prefix_sharing == "tenant" else ""
    return f"{tenant}\0{terms.salt}" if terms.salt else tenant


def pages_needed(info: EngineInfo, tokens: int, choices: int = 1, prompt: int = 0) -> int:
    """Most pages that choices of `tokens` in all hold at once, over all groups; full pages of `prompt` are shared."""
    total = 0
    for g in info.groups:
        # A window group keeps the window and the chunks in flight, cut at page edges; where it is, choices part.
        kept = tokens if not g.window else min(tokens, g.window + info.depth * info.step_tokens + PAGE)
        shared = 0 if g.window else min(prompt, tokens) // PAGE
        total += shared + choices * (-(-kept // PAGE) - shared)
    return total


def most_tokens(info: EngineInfo, choices: int = 1, prompt: int = 0) -> int:
    """Longest prompt and answer together, at most the context, of which `choices` fit the pool at once."""
    low, high = 0, info.context
    while low < high:
        middle = (low + high + 1) // 2
        fits = pages_needed(info, middle, choices, prompt) <= info.pages
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def check_room(info: EngineInfo, prompt: int, params: SamplingParams) -> int:
    """Tokens a request may generate; without max_tokens, all the room there is.

    InvalidRequest names what was asked, the limit, and the largest that would fit.
    """
    if prompt == 0:
        raise InvalidRequest("the prompt is empty; give at least one token", "prompt")
    if prompt >= info.context:
        raise ContextExceeded(
            f"the prompt has {prompt} tokens, so it is longer than the model's context length of {info.context} "
            f"allows: at most {info.context - 1} and one new token",
            "prompt",
        )
    if params.n > info.max_requests + info.queue:
        raise InvalidRequest(f"n is {params.n}; at most {info.max_requests + info.queue} fit in the queue", "n")
    if params.beams > info.max_requests:
        raise InvalidRequest(f"beams is {params.beams}; at most {info.max_requests} run together", "beams")
    count, lower = params.width, "beams" if params.beams else "n"
    room = most_tokens(info, count, prompt)
    if prompt >= room:
        raise InvalidRequest(
            f"the prompt has {prompt} tokens; {info.pages} KV pages hold {count} x {room} tokens, prompt and answer "
            f"together; shorten it to at most {max(room - 1, 0)}, lower {lower}, or raise --kv-memory",
            "prompt",
        )
    wanted = params.max_tokens if params.max_tokens is not None else room - prompt
    if prompt + wanted > info.context:
        raise ContextExceeded(
            f"{prompt} prompt tokens + max_tokens {wanted} = {prompt + wanted} is longer than the model's context "
            f"length of {info.context}; max_tokens may be at most {info.context - prompt}",
            "max_tokens",
        )
    if prompt + wanted > room:
        need = pages_needed(info, prompt + wanted, count, prompt)
        raise InvalidRequest(
            f"{count} x ({prompt} prompt + {wanted} new tokens) need {need} KV pages; the pool has {info.pages}; "
            f"max_tokens may be at most {room - prompt}, or raise --kv-memory",
            "max_tokens",
        )
    for name, least in (("min_tokens", params.min_tokens), ("forced", len(params.forced))):
        if least > wanted:
            raise InvalidRequest(f"{name} asks for {least} tokens; the answer has at most {wanted}", name)
    return wanted


def check_prompt(info: EngineInfo, prompt: Sequence[int], params: SamplingParams) -> int:
    """`check_room` of these ids, each of which must be in the vocabulary."""
    limit = check_room(info, len(prompt), params)
    outside = next((t for t in prompt if not 0 <= t < info.vocab), None)
    if outside is not None:
        raise InvalidRequest(f"token id {outside} is outside the vocabulary of {info.vocab}", "prompt")
    return limit
