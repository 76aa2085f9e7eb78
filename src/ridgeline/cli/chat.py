"""`ridgeline chat MODEL`: a conversation at the terminal."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from ridgeline.cli.command import Option
from ridgeline.cli.options import ENGINE, SAMPLING, takes
from ridgeline.cli.output import say, show
from ridgeline.config import EngineConfig
from ridgeline.engine.params import SamplingParams
from ridgeline.errors import InvalidRequest, RidgelineError, TemplateError

if TYPE_CHECKING:
    from ridgeline.llm import LLM


@takes(config=ENGINE, params=SAMPLING)
def chat(
    config: EngineConfig,
    params: SamplingParams,
    system: Annotated[str, Option("System message.", default="none")] = "",
) -> None:
    """Talk with a model. /reset forgets, /exit or the end of input leaves, Ctrl-C stops an answer."""
    from ridgeline.cli import session
    from ridgeline.text.template import require_template

    llm = session.open_llm(replace(config, max_requests=1))
    if llm.tokenizer.chat_template is None:
        name = config.model
        raise TemplateError(f'`ridgeline run --raw {name} "..."` continues a text; {name} has no chat template')
    require_template(llm.tokenizer)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    while (line := ask()) not in (None, "/exit"):
        if line == "/reset":
            messages = list(start)
        elif line:
            messages = turn(llm, [*messages, {"role": "user", "content": line}], params)


def ask() -> str | None:
    """The user's next line, None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    except UnicodeDecodeError as wrong:
        raise InvalidRequest("standard input is not UTF-8", "messages") from wrong


def turn(llm: LLM, messages: list[dict[str, str]], params: SamplingParams) -> list[dict[str, str]]:
    """Answer the last message; the messages to go on with, without the last one if it was refused."""
    from ridgeline.cli import session
    from ridgeline.tools.timing import timed

    pieces: list[str] = []

    def both(text: str) -> None:
        pieces.append(text)
        show(text)

    try:
        ids = llm.chat_prompt(messages)
        timed(llm, ids, session.fitted(llm, len(ids), params), both)
    except KeyboardInterrupt:
        pass
    except RidgelineError as wrong:
        say(f"ridgeline: {wrong}")
        return messages[:-1]
    print(flush=True)
    return [*messages, {"role": "assistant", "content": "".join(pieces)}]
