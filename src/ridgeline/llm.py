"""The offline API: `LLM(model).generate(prompts, params)` and `.chat(messages)`. The engine runs in this thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from ridgeline.config import EngineConfig
from ridgeline.engine.client import EngineClient, LocalClient, check_grammar
from ridgeline.engine.engine import Flight
from ridgeline.engine.feed import Feeder, Work
from ridgeline.engine.interrupts import Uninterrupted
from ridgeline.engine.load import load
from ridgeline.engine.params import SamplingParams, check_params
from ridgeline.engine.records import FAILED, NO_MEMORY, UNGUIDED, Delta, Token, check_prompt
from ridgeline.errors import EngineFailed, InvalidRequest
from ridgeline.program.batch import StepResult

if TYPE_CHECKING:
    from ridgeline.text.template import ChatTemplate

NOT_NUMBERS = "no token could be sampled: the model's logits are not numbers; its file may be damaged"
OUT_OF_MEMORY = "the system had no memory left for an answer; free some, or shorten prompts and max_tokens"

OUT_OF_BOUNDS = "what a grammar allows next could not be found within its bounds; simplify it"
_BROKEN = {FAILED: NOT_NUMBERS, NO_MEMORY: OUT_OF_MEMORY, UNGUIDED: OUT_OF_BOUNDS}

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Completion:
    """One choice: its text, tokens (with logprobs where asked for) and why it ended."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""


@dataclass
class Output:
    """What one prompt gave: n completions in order of choice."""

    prompt: Prompt
    prompt_ids: list[int]
    completions: list[Completion]
    prompt_logprobs: list[Token] | None = None

    @property
    def text(self) -> str:
        return self.completions[0].text

    def add(self, delta: Delta) -> None:
        """Put a delta of the engine where it belongs."""
        choice = self.completions[delta.choice]
        choice.text += delta.text
        choice.tokens.extend(delta.tokens)
        choice.finish_reason = delta.finish or choice.finish_reason
        if delta.prompt is not None:
            self.prompt_logprobs = list(delta.prompt)


class LLM:
    """A loaded model. Settings are EngineConfig's fields: LLM("smollm2-135m", threads=2, activations="float32")."""

    def __init__(self, model: str | PathLike[str] = "smollm2-135m", **settings: Any) -> None:
        self.config = EngineConfig(fspath(model), **settings)
        self._loaded = load(self.config, observe=self._observe)
        self.tokenizer = self._loaded.opened.tokenizer
        self.client: EngineClient = LocalClient(self._loaded.engine)
        self.observers: list[Callable[[Flight, StepResult], None]] = []

    @property
    def program(self) -> Any:
        """The final program, as it runs."""
        return self._loaded.opened.program

    @property
    def step(self) -> Any:
        """The compiled program (backends/base.Step) that the engine runs."""
        return self._loaded.step

    @property
    def info(self) -> Any:
        """EngineInfo: limits, formats, sizes."""
        return self.client.info

    def generate(self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None) -> list[Output]:
        """Continue each prompt (text or token ids), any number of them. Results are in order of the prompts.

        InvalidRequest names the first prompt that is refused, before any runs.
        """
        if not isinstance(prompts, Sequence):
            raise InvalidRequest(f"prompts must be text, token ids, or a list of them, not {type(prompts).__name__}")
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        todo: list[Any] = [prompts] if single else list(prompts)
        chosen = SamplingParams() if params is None else params
        if not isinstance(chosen, SamplingParams):
            raise InvalidRequest(f"params must be SamplingParams, not {type(chosen).__name__}")
        check_params(chosen, self.info.vocab)
        outputs = [self._output(None if single else i, p, chosen) for i, p in enumerate(todo)]
        feeder = Feeder(self.client, (Work(o.prompt_ids, chosen, o.add) for o in outputs))
        with Uninterrupted() as interrupts:
            try:
                while feeder.fill():
                    self.client.pump(0.0)
                    interrupts.let()
            except BaseException:  # nothing of this call may run on in the next
                feeder.cancel()
                while not self.client.idle:
                    self.client.pump(0.0)
                raise
        ends = {c.finish_reason for o in outputs for c in o.completions}
        for reason, why in _BROKEN.items():
            if reason in ends:
                raise EngineFailed(why)
        return outputs

    def chat(self, messages: Messages, params: SamplingParams | None = None, **template: Any) -> Output:
        """Answer a conversation, rendered by the model's chat template."""
        return self.generate([self.chat_prompt(messages, **template)], params)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[Delta, None, None]:
        """Deltas of one prompt as they come."""
        deltas: list[Delta] = []
        id = self.client.submit(self._ids(prompt), params or SamplingParams(), deltas.append)
        try:
            while deltas or not self.client.idle:
                while deltas:
                    yield deltas.pop(0)
                with Uninterrupted():
                    self.client.pump(0.0)
        finally:
            self.client.cancel(id)

    def chat_prompt(self, messages: Messages, **template: Any) -> list[int]:
        """Token ids of a conversation. TemplateError if the model has no template or it refuses."""
        rendered = self._template.render(messages, **template)
        return self.tokenizer.encode(rendered, add_special=False)

    @cached_property
    def _template(self) -> ChatTemplate:
        from ridgeline.text.template import require_template  # a tenth of the time to a first token

        return require_template(self.tokenizer)

    def close(self) -> None:
        """End what still runs."""
        self.client.close()

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt, add_special=True) if isinstance(prompt, str) else list(prompt)

    def _output(self, index: int | None, prompt: Prompt, params: SamplingParams) -> Output:
        """An empty output for a prompt that was found good; `index` is its place in a list of several."""
        try:
            if not isinstance(prompt, (str, list, tuple)) or not all(isinstance(t, (str, int)) for t in prompt):
                raise InvalidRequest("a prompt is a string or a list of token ids", "prompt")
            ids = self._ids(prompt)
            check_prompt(self.info, ids, params)
            check_grammar(self.client.compiler, self.info, ids, params)
        except InvalidRequest as wrong:
            if index is None:
                raise
            raise InvalidRequest(f"prompt {index}: {wrong}", wrong.param) from None
        return Output(prompt, ids, [Completion() for _ in range(params.n)])

    def _observe(self, flight: Flight, result: StepResult) -> None:
        for observer in self.observers:
            observer(flight, result)
