"""Conventions of tool calls: how a model's calls are spelled, told from its chat template.

A template that has no place for tools, or spells calls in a way unknown here, gets them in the system message, and
Hermes's convention. It must not know requests, nor any API's objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ridgeline.text.calls import Syntax, read_fenced, read_listed, read_object


class Convention(msgspec.Struct, frozen=True):
    """`signs` are what templates of such models say, `unlike` what those of others say that resemble them.

    In a grammar a call is `before`, NAME, `between`, its arguments, `after`, within the marks of `fence`; `several`
    joins calls, "" where a model makes one at a time. `quote`: arguments are not JSON but Gemma's, with such marks
    around strings. `results`: what such a model writes on behind its calls, though it is not for it to say.
    """

    name: str
    signs: tuple[str, ...]
    syntax: Syntax
    fence: tuple[str, str]
    before: str
    between: str
    after: str
    several: str = ""
    unlike: tuple[str, ...] = ()
    quote: str = ""
    results: str = ""

    def is_in(self, template: str) -> bool:
        return any(sign in template for sign in self.signs) and not any(other in template for other in self.unlike)

    @property
    def marks(self) -> list[str]:
        """What must be seen of an answer, be it special tokens or not."""
        marks = (self.syntax.opens, self.fence[1], self.quote, self.between)
        return [mark for mark in marks if mark and mark[0] in "<["]


HERMES = Convention(
    "hermes", ("<tool_call>",), Syntax("<tool_call>", read_object, closes="</tool_call>"),
    ("<tool_call>", "</tool_call>"), '\n{"name": "', '", "arguments": ', "}\n", several="\n",
    unlike=("<function=", "<arg_key>"),
)  # fmt: skip
LLAMA = Convention(
    "llama", ("<|python_tag|>", '{"name": function name, "parameters": '),
    Syntax("<|python_tag|>", read_object, more=";", bare=True),
    ("", ""), '{"name": "', '", "parameters": ', "}", unlike=("<function=",),
)  # fmt: skip
_LISTED = Syntax("[TOOL_CALLS]", read_listed, closes="]", more=",")
MISTRAL = Convention(
    "mistral", ("[TOOL_CALLS]",), _LISTED, ("[TOOL_CALLS]", ""), '[{"name": "', '", "arguments": ', "}]",
    unlike=("[ARGS]",),
)  # fmt: skip
MISTRAL_ARGS = Convention(
    "mistral-args", ("[ARGS]",), _LISTED, ("[TOOL_CALLS]", ""), "", "[ARGS]", "", several=" ",
)  # fmt: skip
GEMMA = Convention(
    "gemma", ("<start_function_call>",),
    Syntax("<start_function_call>", read_fenced("<escape>"), closes="<end_function_call>"),
    ("<start_function_call>", "<end_function_call>"), "call:", "", "", several=" ", quote="<escape>",
    results="<start_function_response>",
)  # fmt: skip
GEMMA4 = Convention(
    "gemma4", ("<|tool_call>",), Syntax("<|tool_call>", read_fenced('<|"|>'), closes="<tool_call|>"),
    ("<|tool_call>", "<tool_call|>"), "call:", "", "", several=" ", quote='<|"|>',
    results="<|tool_response>",
)  # fmt: skip
CONVENTIONS = (GEMMA4, GEMMA, MISTRAL_ARGS, MISTRAL, HERMES, LLAMA)


def convention_of(template: str) -> Convention | None:
    """The convention that a chat template's source shows; None where it shows none that is known."""
    return next((c for c in CONVENTIONS if c.is_in(template)), None)


def described(tools: Sequence[Mapping[str, Any]]) -> str:
    """Tools and how to call them, for a system message: Hermes's convention in words."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You may call these tools, one per line as JSON:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, answer with its name and arguments in this form, and nothing after it:\n"
        '<tool_call>\n{"name": "NAME", "arguments": {...}}\n</tool_call>'
    )


def written(name: str, arguments: str) -> str:
    """A call as Hermes's convention writes it."""
    return f'<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n</tool_call>'


def answered(content: str) -> str:
    """A tool's result as the user's side tells it."""
    return f"<tool_response>\n{content}\n</tool_response>"
