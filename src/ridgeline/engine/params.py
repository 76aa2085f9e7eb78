"""SamplingParams: what a user may ask of one request. Checked once, before anything is queued."""

from __future__ import annotations

import math

import msgspec

from ridgeline.engine.watermark import Watermark, check_watermark
from ridgeline.errors import InvalidRequest
from ridgeline.guidance.grammar import Grammar, check_form

__all__ = ["Grammar", "SamplingParams", "check_params"]

MAX_TOP_LOGPROBS = 20
MAX_BIAS = 1024
MAX_BEAMS = 10
MIN_TEMPERATURE = 1e-6  # below, scaled logits leave float32
MAX_STOP_IDS = 256
MAX_STOP_CHARACTERS = 4096
MAX_BAD_WORDS = 512
MAX_BAD_WORD_TOKENS = 8192  # of all bad words together
POOLINGS = ("mean", "last")  # of a prompt's hidden states into one vector
MAX_ROW_BIAS = MAX_BIAS + MAX_STOP_IDS + MAX_BAD_WORDS  # tokens that one request may bias or ban, beside EOS


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to continue a prompt.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0, typical_p 1, repetition_penalty 1 and the other penalties 0
    are off.
    max_tokens None = all the room the context leaves. seed None = drawn at submission. logprobs None = none,
    k = the chosen token's and the k likeliest (k up to 20). prompt_logprobs adds those of the prompt's own tokens.
    processed_logprobs reports the distribution that was sampled instead of the model's own.
    repetition_prompt and count_prompt say which penalties also see the prompt (TGI and OpenAI differ).
    stop strings end a choice and are not part of its text unless include_stop; stop_token_ids likewise end it.
    Within the first min_tokens tokens nothing ends it: end tokens are not sampled, and a stop string that is complete
    by then is text like any other (vLLM's meaning).
    bad_words are sequences of token ids that an answer does not contain: the last token of each is never sampled where
    the answer's tokens before it are the others.
    seeds gives each of n choices a seed of its own: a choice is then that of n = 1 with its seed.
    beams k > 0 is beam search as transformers' generate(num_beams=k, do_sample=False) has it: the n likeliest answers
    by logprob / length ** length_penalty, best first, all at once at the end. early_stopping True ends with the first k
    answers, False when the best beam is no better as it is, "never" when it cannot become so.
    forced are tokens that each choice begins with, whatever else is asked: they count as generated, are shown, and have
    the model's logprobs. An end token among them ends the choice, if min_tokens lets it.
    watermark marks what is sampled (engine/watermark.py), from where as many tokens precede as its lists hang on.
    embed asks for no answer but a vector: the hidden states behind the model's last norm, of all of the prompt ("mean")
    or of its last token ("last"). It goes with max_tokens 1 and nothing else.
    grammar is what an answer must match: it is complete within max_tokens, or as far as can be told for a Lark grammar,
    and ends where the grammar does.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_prompt: bool = True
    count_prompt: bool = False
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    n: int = 1
    seeds: tuple[int, ...] = ()
    beams: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    forced: tuple[int, ...] = ()
    watermark: Watermark | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    processed_logprobs: bool = False
    skip_special_tokens: bool = True
    grammar: Grammar | None = None
    embed: str = ""

    @property
    def width(self) -> int:
        """Sequences that a request is computed in."""
        return max(self.n, self.beams)

    @property
    def penalised(self) -> bool:
        """Whether sampling needs the history of tokens."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def looks_back(self) -> bool:
        """Whether what may be sampled depends on the tokens before, beyond what attention sees of them."""
        words = any(len(word) > 1 for word in self.bad_words)
        guided = self.grammar is not None or self.watermark is not None
        return self.penalised or self.beams > 0 or words or guided

    @property
    def bans(self) -> bool:
        """Whether some tokens may not be sampled somewhere."""
        return self.min_tokens > 0 or bool(self.bad_words)


_DEFAULTS = msgspec.convert({}, SamplingParams)  # by msgspec, which crashes where threads first show it a type at once
_NOT_WITH_BEAMS = (
    "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias",
    "seeds", "stop", "bad_words", "forced", "watermark", "prompt_logprobs", "processed_logprobs", "grammar",
)  # fmt: skip
_NOT_WITH_GRAMMARS = ("ignore_eos", "min_tokens", "bad_words", "forced")  # what a grammar asks for could not be had


def check_params(p: SamplingParams, vocab: int) -> None:
    """InvalidRequest naming the field, its value and the allowed type or range."""
    try:
        msgspec.convert(msgspec.structs.asdict(p), SamplingParams)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"sampling parameters: {wrong}") from None
    _range("temperature", p.temperature, 0, 100)
    if 0 < p.temperature < MIN_TEMPERATURE:
        raise InvalidRequest(
            f"temperature must be 0 (greedy) or at least {MIN_TEMPERATURE}, is {p.temperature}", "temperature"
        )
    _range("top_p", p.top_p, 0, 1, above=True)
    _range("min_p", p.min_p, 0, 1)
    _range("typical_p", p.typical_p, 0, 1, above=True)
    _range("repetition_penalty", p.repetition_penalty, 0, 100, above=True)
    _range("frequency_penalty", p.frequency_penalty, -2, 2)
    _range("presence_penalty", p.presence_penalty, -2, 2)
    _range("top_k", p.top_k, 0, 1 << 30)
    _range("n", p.n, 1, 1024)
    if p.max_tokens is not None:
        _range("max_tokens", p.max_tokens, 1, 1 << 30)
    if p.seed is not None:
        _range("seed", p.seed, 0, (1 << 64) - 1)
    if p.logprobs is not None:
        _range("logprobs", p.logprobs, 0, MAX_TOP_LOGPROBS)
    if len(p.logit_bias) > MAX_BIAS:
        raise InvalidRequest(f"logit_bias has {len(p.logit_bias)} entries; at most {MAX_BIAS}", "logit_bias")
    for token, bias in p.logit_bias.items():
        _range("logit_bias token", token, 0, vocab - 1, param="logit_bias")
        if math.isnan(bias) or bias > 100:
            raise InvalidRequest(f"logit_bias of token {token} must be at most 100, is {bias}", "logit_bias")
    _check_ends(p, vocab)
    _check_words(p, vocab)
    _check_choices(p)
    _check_grammar(p)
    if p.watermark is not None:
        check_watermark(p.watermark)


def _check_ends(p: SamplingParams, vocab: int) -> None:
    """What may end an answer, and what it begins with."""
    _range("min_tokens", p.min_tokens, 0, 1 << 30)
    for name, tokens in (("stop_token_ids", p.stop_token_ids), ("forced", p.forced)):
        for token in tokens:
            _range(f"{name} entry", token, 0, vocab - 1, param=name)
    if len(p.stop_token_ids) > MAX_STOP_IDS:
        raise InvalidRequest(
            f"stop_token_ids has {len(p.stop_token_ids)} entries; at most {MAX_STOP_IDS}", "stop_token_ids"
        )
    if any(not s for s in p.stop):
        raise InvalidRequest("stop strings must not be empty", "stop")
    if (length := sum(map(len, p.stop))) > MAX_STOP_CHARACTERS:
        raise InvalidRequest(f"stop strings have {length} characters in all; at most {MAX_STOP_CHARACTERS}", "stop")


def _check_words(p: SamplingParams, vocab: int) -> None:
    words = p.bad_words
    if len(words) > MAX_BAD_WORDS or sum(map(len, words)) > MAX_BAD_WORD_TOKENS:
        raise InvalidRequest(
            f"bad_words has {len(words)} sequences of {sum(map(len, words))} tokens in all; at most {MAX_BAD_WORDS} of "
            f"{MAX_BAD_WORD_TOKENS}",
            "bad_words",
        )
    if not all(words):
        raise InvalidRequest("bad_words must not hold an empty sequence", "bad_words")
    for token in (token for word in words for token in word):
        _range("bad_words entry", token, 0, vocab - 1, param="bad_words")


def _check_choices(p: SamplingParams) -> None:
    """What tells the choices of a request from each other."""
    for seed in p.seeds:
        _range("seeds entry", seed, 0, (1 << 64) - 1, param="seeds")
    if p.seeds and (len(p.seeds) != p.n or p.seed is not None):
        raise InvalidRequest(f"seeds has {len(p.seeds)} entries for n {p.n}; give n of them and no seed", "seeds")
    _range("length_penalty", p.length_penalty, -10, 10)
    if p.early_stopping not in (True, False, "never"):
        raise InvalidRequest(
            f"early_stopping must be true, false or 'never', is {p.early_stopping!r}", "early_stopping"
        )
    if p.embed:
        _check_embed(p)
    if p.beams:
        _check_beams(p)
    elif p.length_penalty != 1 or p.early_stopping is not False:
        name = "early_stopping" if p.length_penalty == 1 else "length_penalty"
        raise InvalidRequest(f"{name} is for beam search; set beams, or leave it out", name)


def embedding(pooling: str) -> SamplingParams:
    """Parameters of a request for a vector."""
    return SamplingParams(embed=pooling, max_tokens=1, temperature=0)


def _check_embed(p: SamplingParams) -> None:
    if p.embed not in POOLINGS:
        raise InvalidRequest(f"embed must be one of {', '.join(POOLINGS)}, is {p.embed[:40]!r}", "embed")
    if msgspec.structs.replace(p, seed=None) != embedding(p.embed):
        raise InvalidRequest("embed goes with max_tokens 1, temperature 0 and no other setting", "embed")


def _check_beams(p: SamplingParams) -> None:
    if not 2 <= p.beams <= MAX_BEAMS:
        raise InvalidRequest(
            f"beams must be 2 to {MAX_BEAMS}, is {p.beams}; one beam is greedy decoding: temperature 0", "beams"
        )
    if p.n > p.beams:
        raise InvalidRequest(f"n is {p.n}, but {p.beams} beams give {p.beams} answers; lower n or raise beams", "n")
    if len(p.stop_token_ids) > MAX_TOP_LOGPROBS - MAX_BEAMS:
        most = MAX_TOP_LOGPROBS - MAX_BEAMS
        raise InvalidRequest(
            f"stop_token_ids has {len(p.stop_token_ids)} entries; at most {most} with beams", "stop_token_ids"
        )
    if p.temperature not in (0, 1):
        raise InvalidRequest(
            f"beam search picks no token at random; leave temperature out, or set it to 0: it is {p.temperature}",
            "temperature",
        )
    for name in _NOT_WITH_BEAMS:
        if getattr(p, name) != getattr(_DEFAULTS, name):
            raise InvalidRequest(f"{name} does not go with beam search; leave one of the two out", name)


def _check_grammar(p: SamplingParams) -> None:
    if p.grammar is None:
        return
    check_form(p.grammar)
    for name in _NOT_WITH_GRAMMARS:
        if getattr(p, name) != getattr(_DEFAULTS, name):
            raise InvalidRequest(f"{name} does not go with a grammar, which says itself what may follow", name)
    if never := [token for token, bias in p.logit_bias.items() if bias == -math.inf]:
        raise InvalidRequest(f"logit_bias bans token {never[0]}; that does not go with a grammar", "logit_bias")


def _range(name: str, value: float, low: float, high: float, *, above: bool = False, param: str = "") -> None:
    if not (low < value if above else low <= value) or not value <= high:
        bounds = f"{'above' if above else 'at least'} {low} and at most {high}"
        raise InvalidRequest(f"{name} must be {bounds}, is {value}", param or name)
