"""`text-generation-launcher`: TGI's command, which starts `ridgeline serve`.

Its flags, and the environment variables of the same names, are turned into `serve`'s words by one table: mapped to a
flag of ours, or accepted with a note where there is nothing to set any more, or refused where an answer would differ.
What follows `--` is `serve`'s own.
"""

from __future__ import annotations

import argparse
import inspect
import ipaddress
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from ridgeline.cli.output import say
from ridgeline.config import set_variables
from ridgeline.errors import ConfigError

_OFF = ("false", "0", "off", "no")
_DEFAULTS = {"model-id": "bigscience/bloom-560m", "hostname": "0.0.0.0", "port": "3000"}


class Flag(msgspec.Struct, frozen=True):
    """What becomes of one of TGI's: `to` is `serve`'s flag, with `values` ours for TGI's; `note` says what there is
    instead of an obsolete one; `refused` what to do instead of one that is not built, unless it has a `neutral` value.
    """

    to: str = ""
    values: Mapping[str, str] = {}
    note: str = ""
    refused: str = ""
    neutral: tuple[str, ...] = ()
    switch: bool = False
    alias: str = ""


_INT8 = "serve with the words `-- --format int8`, or give a GGUF file as the model"
_INT4 = "serve with the words `-- --format int4`, or give a GGUF file as the model"
_STEP = "steps read prompts and answer together; `-- --step-ms` says how long one may take"
_ONE = "there is one engine process, and nothing to connect"
_CACHE = "models are kept in XDG_CACHE_HOME/ridgeline"
_TUNNEL = "run a tunnel of your own to the server's port"
_ROPE = "rope settings come from the model's config.json; change them there"
FLAGS: dict[str, Flag] = {
    "model-id": Flag(),
    "revision": Flag(refused="fetch that revision and give its directory as the model", neutral=("main",)),
    "tokenizer-config-path": Flag(refused="put the file into the model's directory and give that as the model"),
    "trust-remote-code": Flag(note="code of models is never run", switch=True),
    "dtype": Flag("--format", {"bfloat16": "bf16"}, refused="leave it out, and weights are as stored; or bfloat16"),
    "kv-cache-dtype": Flag(refused="serve with the words `-- --kv-format int8`"),
    "lora-adapters": Flag(refused="merge the adapter into the model, and serve that"),
    "rope-scaling": Flag(refused=_ROPE),
    "rope-factor": Flag(refused=_ROPE),
    "speculate": Flag(refused="leave it out; answers are the same without it", neutral=("0",)),
    "sharded": Flag(refused="leave it out; the model runs in one process", neutral=_OFF),
    "num-shard": Flag(refused="leave it out, or set 1; start more servers for more load", neutral=("1",)),
    "max-concurrent-requests": Flag("--max-concurrent-requests"),
    "max-best-of": Flag("--max-best-of"),
    "max-stop-sequences": Flag("--max-stop-sequences"),
    "max-top-n-tokens": Flag("--max-top-n-tokens"),
    "max-input-tokens": Flag("--max-input-tokens", alias="max-input-length"),
    "max-total-tokens": Flag("--max-total-tokens"),
    "max-client-batch-size": Flag("--max-client-batch-size"),
    "payload-limit": Flag("--payload-limit"),
    "max-batch-prefill-tokens": Flag("--step-tokens"),
    "max-batch-size": Flag("--max-requests"),
    "max-batch-total-tokens": Flag(note="`-- --kv-memory` bounds what requests hold at once, in bytes"),
    "waiting-served-ratio": Flag(note=_STEP),
    "max-waiting-tokens": Flag(note=_STEP),
    "enable-prefill-logprobs": Flag(note="they are always there for who asks", switch=True),
    "disable-grammar-support": Flag(note="grammars stay allowed; they do not hold others up", switch=True),
    "watermark-gamma": Flag("--watermark-gamma"),
    "watermark-delta": Flag("--watermark-delta"),
    "hostname": Flag("--hostname"),
    "port": Flag("--port"),
    "api-key": Flag("--api-key"),
    "cors-allow-origin": Flag("--cors-allow-origin"),
    "graceful-termination-timeout": Flag("--drain-timeout"),
    "prometheus-port": Flag(note="/metrics is on the server's own port"),
    "json-output": Flag("--log-format", {"true": "json"}, switch=True),
    "otlp-endpoint": Flag("--otlp-endpoint"),
    "otlp-service-name": Flag("--otlp-service-name"),
    "usage-stats": Flag(note="nothing is ever sent home", neutral=("off",)),
    "env": Flag(note="see `ridgeline hardware`", switch=True),
    "huggingface-hub-cache": Flag(note=_CACHE),
    "weights-cache-override": Flag(note=_CACHE),
    "validation-workers": Flag(note="prompts are read by as many threads as it takes"),
    "master-addr": Flag(note=_ONE),
    "master-port": Flag(note=_ONE),
    "shard-uds-path": Flag(note=_ONE),
    "cuda-graphs": Flag(note="there is nothing to set", neutral=("0",)),
    "cuda-memory-fraction": Flag(note="`-- --kv-memory` says how much of it to use", neutral=("1", "1.0")),
    "disable-custom-kernels": Flag(note="there is one set of kernels", switch=True),
    "ngrok": Flag(refused=_TUNNEL, neutral=_OFF, switch=True),
    "ngrok-authtoken": Flag(refused=_TUNNEL),
    "ngrok-edge": Flag(refused=_TUNNEL),
    **{f"quantize {q}": Flag(refused=_INT4) for q in ("awq", "exl2", "gptq", "marlin", "bitsandbytes-nf4")},
    "quantize": Flag(refused=_INT8),
}
_VARIABLES = {  # that have no flag: `serve`'s flag, or "" where there is nothing to set any more
    "AIP_HTTP_PORT": "--port", "AIP_PREDICT_ROUTE": "--predict-route", "AIP_HEALTH_ROUTE": "--health-route",
    "ATTENTION": "", "PREFIX_CACHING": "", "PREFILL_CHUNKING": "", "TGI_WIGGLE_ROOM": "", "REQUEST_LOGPROBS": "",
    "USE_FLASH_ATTENTION": "", "EXLLAMA_VERSION": "", "COMPUTE_TYPE": "",
}  # fmt: skip


def translate(words: Sequence[str]) -> list[str]:
    """`ridgeline`'s words for the launcher's, and for the environment's, which give way. Notes go to stderr."""
    split = words.index("--") if "--" in words else len(words)
    given = {**_DEFAULTS, **_environment(), **_parse(words[:split])}
    made = {}
    for name, value in given.items():
        if (ours := _translated(name, value)) is not None:
            made[FLAGS[name].to] = ours
    for name, value in set_variables(_VARIABLES).items():
        if flag := _VARIABLES[name]:
            made[flag] = value
        else:
            say(f"text-generation-launcher: {name} has no effect here")
    own = words[split + 1 :]
    _check_known(made)
    if "--api-key" not in made and not {"--api-key", "--api-keys"} & set(own):
        if "open" in _serve_names():
            own = ["--open", *own]
        else:
            say(f"text-generation-launcher: warning: whoever reaches {given['hostname']} is served, without a key")
    return ["serve", given["model-id"], *(w for flag, value in made.items() for w in (flag, value)), *own]


def _parse(words: Sequence[str]) -> dict[str, str]:
    parser = argparse.ArgumentParser(
        "text-generation-launcher",
        usage="text-generation-launcher [OPTIONS] [-- OPTIONS OF `ridgeline serve`]",
        description="Serve a model as Hugging Face's TGI does: the same flags and environment variables.",
        formatter_class=partial(argparse.HelpFormatter, width=100),
        allow_abbrev=False,
    )
    short = {"port": ["-p"], "env": ["-e"]}
    for name, flag in FLAGS.items():
        if " " in name:
            continue
        names = [*short.get(name, ()), f"--{name}", *([f"--{flag.alias}"] if flag.alias else ())]
        refused = f"not built: {flag.refused}" if flag.refused and not flag.to else ""
        help = (flag.note and f"no effect: {flag.note}") or refused or (flag.to and f"`ridgeline serve {flag.to}`")
        kind = {"action": "store_const", "const": "true"} if flag.switch else {"metavar": "VALUE"}
        parser.add_argument(*names, dest=name, help=help or None, **kind)
    return {name: value for name, value in vars(parser.parse_args(words)).items() if value is not None}


def _environment() -> dict[str, str]:
    """The flags that environment variables set."""
    named = {_variable(name): name for name in FLAGS if " " not in name and name != "env"}
    named |= {_variable(flag.alias): name for name, flag in FLAGS.items() if flag.alias}
    found = {named[variable]: value for variable, value in set_variables(named).items()}
    if not _is_address(found.get("hostname", "")):
        found.pop("hostname", None)  # shells and containers set it to the machine's name; TGI ignores it likewise
    return found


def _variable(name: str) -> str:
    return name.replace("-", "_").upper()


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _translated(name: str, value: str) -> str | None:
    """The value of `serve`'s flag; None where there is nothing to set. ConfigError for what is not built."""
    flag = FLAGS.get(f"{name} {value}") or FLAGS[name]
    if value in flag.neutral or (flag.switch and value.lower() in _OFF):
        return None
    if flag.note:
        say(f"text-generation-launcher: --{name} has no effect here: {flag.note}")
        return None
    if flag.refused and value not in flag.values:
        raise ConfigError(f"--{name} {value} is not built: {flag.refused}")
    return flag.values.get(value, value) if flag.to else None


def _serve_names() -> set[str]:
    from ridgeline.cli.serve import serve

    return set(inspect.signature(serve).parameters)


def _check_known(made: Mapping[str, str]) -> None:
    names = _serve_names() | {"max_total_tokens"}
    for flag in made:
        if flag.removeprefix("--").replace("-", "_") not in names:
            raise ConfigError(f"{flag} is not built yet in this server; leave it out")
