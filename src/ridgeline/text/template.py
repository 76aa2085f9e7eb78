"""Chat templates: messages to the prompt text a model was trained on.

Owns rendering: which variables a template sees, whose turn is left open, and how a failure reads. What a
template may do is `metered`, what it may spend is `sandbox`. It must not know tokenizers beyond their
template, nor request types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import jinja2

from ridgeline.errors import InvalidRequest, MissingVariable, TemplateError
from ridgeline.text.metered import BUDGET, compile_template, describe
from ridgeline.text.sandbox import Budget, Limits

# Leaving the last message open: a mark goes at its end, and the text is cut where the mark comes out. If the blank
# after the mark is gone, the template trims messages, and what stood before the mark is trimmed too.
_MARK, _BLANK = "\ue000end of message to continue\ue001", " "


class _HasTemplate(Protocol):
    chat_template: str | None
    bos_token: str
    eos_token: str


def require_template(tokenizer: _HasTemplate) -> ChatTemplate:
    """The tokenizer's own chat template, compiled. Raises TemplateError where the model has none."""
    if tokenizer.chat_template is None:
        raise TemplateError(
            "this model has no chat template; use /v1/completions with a plain prompt, or `ridgeline run --raw`"
        )
    return ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)


class ChatTemplate:
    """A compiled chat template. Thread-safe: each render has its own context and budget.

    `clock` gives `strftime_now` its time. Raises TemplateError for a template that does not compile.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        *,
        limits: Limits | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self._limits = limits or Limits()
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        if len(source) > self._limits.source:
            raise TemplateError(f"the chat template is longer than {self._limits.source} characters")
        self._template = compile_template(source, clock)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages`, which are JSON-like. `kwargs` are further template variables.

        `add_generation_prompt` opens the assistant's turn; None means yes, unless `continue_final_message`,
        which leaves the last message open instead. Raises TemplateError for what the template refuses, fails
        at or overspends, naming the roles it was given (MissingVariable where it reads what it was not given);
        InvalidRequest where the two options contradict each other.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other",
                param="add_generation_prompt",
            )
        opens_turn = not continue_final_message if add_generation_prompt is None else add_generation_prompt
        shown = _open_last(messages) if continue_final_message else messages
        variables = {"documents": None, **self._tokens, **kwargs}
        variables |= {
            "messages": [dict(message) for message in shown],
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "add_generation_prompt": opens_turn,
        }
        try:
            text = self._run(variables)
        except TemplateError as error:
            roles = ", ".join(str(message.get("role"))[:20] for message in messages[:20])
            raise type(error)(f"{error} (roles: {roles})") from error
        return _cut_open(text) if continue_final_message else text

    def _run(self, variables: dict[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        try:
            context = self._template.new_context({**variables, BUDGET: Budget(self._limits)})
            for piece in self._template.root_render_func(context):
                if not isinstance(piece, str):  # a filter block ends with whatever its filter makes
                    raise TemplateError(f"the chat template writes a {type(piece).__name__}, not text")
                size += len(piece)
                if size > self._limits.output:
                    raise TemplateError(f"the chat template wrote more than {self._limits.output} characters")
                pieces.append(piece)
        except TemplateError:
            raise
        except jinja2.UndefinedError as error:
            raise MissingVariable(f"the chat template failed: {describe(self._template, error)}") from error
        except Exception as error:  # whatever a template's own code can raise is the template's fault
            raise TemplateError(f"the chat template failed: {describe(self._template, error)}") from error
        return "".join(pieces)


def _open_last(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = dict(messages[-1]) if messages else {}
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _MARK + _BLANK
        return [*messages[:-1], last]
    parts = list(content) if isinstance(content, list) else []
    for i, part in reversed(list(enumerate(parts))):
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            parts[i] = {**part, "text": part["text"] + _MARK + _BLANK}
            last["content"] = parts
            return [*messages[:-1], last]
    raise InvalidRequest("continue_final_message needs a last message with text", param="continue_final_message")


def _cut_open(text: str) -> str:
    before, mark, after = text.rpartition(_MARK)
    if not mark:
        raise TemplateError("the chat template leaves out the last message, so it cannot be continued")
    return before if after.startswith(_BLANK) else before.rstrip()
