"""`ridgeline run MODEL PROMPT`: answer one prompt, streaming."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from ridgeline.cli.command import Argument, Option
from ridgeline.cli.options import ENGINE, SAMPLING, takes
from ridgeline.cli.output import say, show
from ridgeline.config import EngineConfig
from ridgeline.engine.params import SamplingParams
from ridgeline.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from ridgeline.llm import LLM


@takes(config=ENGINE, params=SAMPLING)
def run(
    config: EngineConfig,
    prompt: Annotated[str, Argument(metavar="PROMPT", help='The prompt; "-" reads standard input.')],
    params: SamplingParams,
    raw: Annotated[bool, Option("Continue the text as it is, without the chat template.", flag="--raw")] = False,
    system: Annotated[str, Option("System message.", default="none")] = "",
) -> None:
    """Answer a prompt, by the model's chat template if it has one. Speed and attainment go to stderr."""
    from ridgeline.cli import session

    if raw and system:
        raise ConfigError("--system is for the chat template, which --raw leaves out; give only one of them")
    text = read_stdin() if prompt == "-" else prompt
    begin = time.perf_counter()
    llm = session.open_llm(replace(config, max_requests=1))
    load_s = time.perf_counter() - begin
    from ridgeline.tools.timing import timed

    ids = prompt_ids(llm, text, raw, system)
    timing = timed(llm, ids, session.fitted(llm, len(ids), params), show)
    print(flush=True)
    session.report(llm, timing, load_s)


def read_stdin() -> str:
    """All of standard input."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise InvalidRequest(f"standard input is not UTF-8: byte {wrong.start} is invalid", "prompt") from wrong


def prompt_ids(llm: LLM, text: str, raw: bool, system: str) -> list[int]:
    """Ids of a user's message in the model's template, or of the bare text where it has none."""
    if llm.tokenizer.chat_template is None and system:
        raise ConfigError(f"--system needs a chat template, which {llm.config.model} has not; leave it out")
    if llm.tokenizer.chat_template is None and not raw:
        say("no chat template: the text is continued as it is")
    if raw or llm.tokenizer.chat_template is None:
        return llm.tokenizer.encode(text, add_special=True)
    messages = [{"role": "system", "content": system}] if system else []
    return llm.chat_prompt([*messages, {"role": "user", "content": text}])
