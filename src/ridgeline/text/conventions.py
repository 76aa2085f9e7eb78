"""Conventions of tool calls: how a model's calls are spelled, told from its chat template.

A template that has no place for tools, or spells calls in a way unknown here, gets them in the system message, and
Hermes's convention. It must not know requests, nor any API's objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ridgeline.text.calls import Syntax, read_fenced, read_listed, read_mistral, read_object
from ridgeline.text.tagged import Tags, read_headed, read_tagged

MARK = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")  # what may be a special token within a convention's text


class Convention(msgspec.Struct, frozen=True):
    """`signs` are what templates of such models say, `unlike` what those of others say that resemble them.

    In a grammar a call is `before`, NAME, `between`, its arguments, `after`, within the marks of `fence`; `several`
    joins calls, "" where a model makes one at a time. Arguments are JSON, or Gemma's spelling of it with a `quote` at
    both ends of strings, or tagged text (`tags`). `results`: what such a model writes on behind its calls, though it is
    not for it to say.
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
    tags: Tags | None = None
    results: str = ""

    def is_in(self, template: str) -> bool:
        return any(sign in template for sign in self.signs) and not any(other in template for other in self.unlike)

    @property
    def marks(self) -> list[str]:
        """What must be seen of an answer, be it special tokens or not."""
        s = self.syntax
        texts = (s.opens, *s.closes, s.more, *s.silent, *self.fence, self.before, self.between, self.after, self.quote)
        return list(dict.fromkeys(mark for text in texts for mark in MARK.findall(text)))


HERMES = Convention(
    "hermes", ("<tool_call>",), Syntax("<tool_call>", read_object, closes=("</tool_call>",)),
    ("<tool_call>", "</tool_call>"), '\n{"name": "', '", "arguments": ', "}\n", several="\n",
    unlike=("<function=", "<arg_key>"),
)  # fmt: skip
LLAMA = Convention(
    "llama", ("<|python_tag|>", '{"name": function name, "parameters": '),
    Syntax("<|python_tag|>", read_object, more=";", bare=True),
    ("", ""), '{"name": "', '", "parameters": ', "}", unlike=("<function=",),
)  # fmt: skip
_LISTED = Syntax("[TOOL_CALLS]", read_mistral, closes=("]",), more=",")
MISTRAL = Convention(
    "mistral", ("[TOOL_CALLS]",), _LISTED, ("[TOOL_CALLS]", ""), '[{"name": "', '", "arguments": ', "}]",
    unlike=("[ARGS]",),
)  # fmt: skip
MISTRAL_ARGS = Convention(
    "mistral-args", ("[ARGS]",), _LISTED, ("[TOOL_CALLS]", ""), "", "[ARGS]", "", several=" ",
)  # fmt: skip
GEMMA = Convention(
    "gemma", ("<start_function_call>",),
    Syntax("<start_function_call>", read_fenced("<escape>"), closes=("<end_function_call>",)),
    ("<start_function_call>", "<end_function_call>"), "call:", "", "", several=" ", quote="<escape>",
    results="<start_function_response>",
)  # fmt: skip
GEMMA4 = Convention(
    "gemma4", ("<|tool_call>",), Syntax("<|tool_call>", read_fenced('<|"|>'), closes=("<tool_call|>",)),
    ("<|tool_call>", "<tool_call|>"), "call:", "", "", several=" ", quote='<|"|>',
    results="<|tool_response>",
)  # fmt: skip
_LINES = Tags(("<function=", ">"), ("<parameter=", ">"), ("", "</parameter>"), "</function>", lines=True)
QWEN_CODER = Convention(
    "qwen-coder", ("<parameter=",),
    Syntax("<tool_call>", read_tagged(_LINES), closes=("</tool_call>",), more="<function="),
    ("<tool_call>", "</tool_call>"), "\n<function=", ">\n", "</function>\n", several="\n", tags=_LINES,
    unlike=("<seed:tool_call>",),
)  # fmt: skip
_INLINE = Tags(("<function=", ">"), ("<parameter=", ">"), ("", "</parameter>"), "</function>")
SEED = Convention(
    "seed", ("<seed:tool_call>",),
    Syntax("<seed:tool_call>", read_tagged(_INLINE), closes=("</seed:tool_call>",), more="<function="),
    ("<seed:tool_call>", "</seed:tool_call>"), "\n<function=", ">\n", "</function>\n", several="\n", tags=_INLINE,
)  # fmt: skip
_PAIRS = Tags(("", ""), ("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>"), "</tool_call>")
GLM = Convention(
    "glm", ("<arg_key>",), Syntax("<tool_call>", read_tagged(_PAIRS)), ("<tool_call>", "</tool_call>"),
    "", "\n", "", several="\n", tags=_PAIRS,
)  # fmt: skip
_INVOKED = Tags(('<invoke name="', '">'), ('<parameter name="', '">'), ("", "</parameter>"), "</invoke>")
MINIMAX = Convention(
    "minimax", ("<minimax:tool_call>",),
    Syntax("<minimax:tool_call>", read_tagged(_INVOKED), closes=("</minimax:tool_call>",), more='<invoke name="'),
    ("<minimax:tool_call>", "</minimax:tool_call>"), '\n<invoke name="', '">\n', "</invoke>\n", tags=_INVOKED,
)  # fmt: skip
_BEGIN, _END, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_ALL = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
DEEPSEEK = Convention(  # V3 and R1
    "deepseek", (_ALL[0],), Syntax(
        _ALL[0], read_headed(_BEGIN, rf"function{_SEPARATOR}(?P<name>\S+)\s*```json", ("```", _END)),
        closes=_ALL[1:], more=_BEGIN,
    ),
    _ALL, f"{_BEGIN}function{_SEPARATOR}", "\n```json\n", f"\n```{_END}",
)  # fmt: skip
DEEPSEEK31 = Convention(
    "deepseek-3.1", (_ALL[0],), Syntax(
        _ALL[0], read_headed(_BEGIN, rf"(?P<name>[^\s<]+){_SEPARATOR}", (_END,)), closes=_ALL[1:], more=_BEGIN,
    ),
    _ALL, _BEGIN, _SEPARATOR, _END, unlike=("```json",),
)  # fmt: skip
GRANITE = Convention(  # 3.x; later ones are as Hermes's
    "granite", ("<|tool_call|>",), Syntax("<|tool_call|>", read_listed, closes=("]",), more=","),
    ("<|tool_call|>", ""), '[{"name": "', '", "arguments": ', "}]", unlike=("<|/tool_call|>",),
)  # fmt: skip
PHI4 = Convention(
    "phi4", ("functools[",), Syntax("functools", read_listed, closes=("]",), more=","),
    ("functools", ""), '[{"name": "', '", "arguments": ', "}]",
)  # fmt: skip
PHI4_TAGS = Convention(
    "phi4-tags", ("<|/tool_call|>",), Syntax("<|tool_call|>", read_listed, closes=("]", "<|/tool_call|>"), more=","),
    ("<|tool_call|>", "<|/tool_call|>"), '{"name": "', '", "arguments": ', "}",
)  # fmt: skip
NEMOTRON = Convention(
    "nemotron", ("<TOOLCALL>",), Syntax("<TOOLCALL>", read_listed, closes=("]", "</TOOLCALL>"), more=","),
    ("<TOOLCALL>", "</TOOLCALL>"), '[{"name": "', '", "arguments": ', "}]",
)  # fmt: skip
COMMAND = Convention(  # R7B and A
    "command", ("<|START_ACTION|>",), Syntax(
        "<|START_ACTION|>", read_listed, closes=("]", "<|END_ACTION|>"), more=",",
        silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    ("<|START_ACTION|>", "<|END_ACTION|>"), '[\n    {"tool_call_id": "0", "tool_name": "', '", "parameters": ', "}\n]",
)  # fmt: skip
CONVENTIONS = (
    GEMMA4, GEMMA, MISTRAL_ARGS, MISTRAL, MINIMAX, SEED, QWEN_CODER, GLM, DEEPSEEK31, DEEPSEEK, GRANITE, PHI4,
    PHI4_TAGS, NEMOTRON, COMMAND, HERMES, LLAMA,
)  # fmt: skip


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
