"""`text-generation-launcher`: TGI's command, which starts `ridgeline serve`.

Its flags, and the environment variables of the same names, are turned into `serve`'s words by one table: mapped to a
flag of ours, or accepted with a note where there is nothing to set any more, or refused where an answer would differ.
What follows `--` is `serve`'s own. TGI's command listens for everybody, and so does this one, which `serve` warns of.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from ridgeline.cli.output import say
from ridgeline.config import LOG_LEVELS, set_variables
from ridgeline.errors import ConfigError

_OFF = ("false", "0", "off", "no", "n", "f")
_ON = ("true", "1", "on", "yes")
_DEFAULTS = {"model-id": "bigscience/bloom-560m", "hostname": "0.0.0.0", "port": "3000"}


class Flag(msgspec.Struct, frozen=True):
    """What becomes of one of TGI's: `to` is `serve`'s flag, with `values` ours for TGI's ("": ours is a bare word);
    `note` says what there is instead of an obsolete one, or of a value not among them; `refused` what to do instead of
    one that is not built, unless it has a `neutral` value. `several`: it may be given more than once.
    """

    to: str = ""
    values: Mapping[str, str] = {}
    note: str = ""
    refused: str = ""
    neutral: tuple[str, ...] = ()
    switch: bool = False
    several: bool = False
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
    "disable-grammar-support": Flag("--disable-grammar-support", {"true": ""}, switch=True),
    "max-image-fetch-size": Flag(note="no images are fetched"),
    "watermark-gamma": Flag("--watermark-gamma"),
    "watermark-delta": Flag("--watermark-delta"),
    "hostname": Flag("--hostname"),
    "port": Flag("--port"),
    "api-key": Flag("--api-key"),
    "cors-allow-origin": Flag("--cors-allow-origin", several=True),
    "graceful-termination-timeout": Flag("--drain-timeout"),
    "prometheus-port": Flag(note="/metrics is on the server's own port"),
    "json-output": Flag("--log-format", {"true": "json"}, switch=True),
    "otlp-endpoint": Flag("--otlp-endpoint"),
    "otlp-service-name": Flag("--otlp-service-name"),
    "usage-stats": Flag(note="nothing is ever sent home", neutral=("off",)),
    "env": Flag(note="see `ridgeline hardware`", switch=True),
    "huggingface-hub-cache": Flag(note=_CACHE),
    "weights-cache-override": Flag(note=_CACHE),
    "validation-workers": Flag(note="the number of threads that read prompts is fixed"),
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
_LEVELS = {**{level: level for level in LOG_LEVELS}, "trace": "debug", "warning": "warn", "off": "error"}
_KERNELS = "there is one set of kernels, which serves every model"
VARIABLES: dict[str, Flag] = {  # that have no flag
    "AIP_HTTP_PORT": Flag("--port"),
    "AIP_PREDICT_ROUTE": Flag("--predict-route"),
    "AIP_HEALTH_ROUTE": Flag("--health-route"),
    "LOG_LEVEL": Flag("--log-level", _LEVELS, note=f"it is one of {', '.join(_LEVELS)}"),
    "PREFIX_CACHING": Flag(note="prefixes are cached; `-- --prefix-sharing` says between whom", neutral=_ON),
    "PREFILL_CHUNKING": Flag(note=f"prompts are read in parts: {_STEP}", neutral=_ON),
    "TGI_WIGGLE_ROOM": Flag(note="`-- --kv-memory` says how much memory to use"),
    "REQUEST_LOGPROBS": Flag(note="they are there for who asks"),
    "COMPUTE_TYPE": Flag(note="x-compute-type says what computes: cpu", neutral=("cpu",)),
    "HF_HUB_OFFLINE": Flag(note="what is in the cache is never asked for again", neutral=_OFF),
    **{
        name: Flag(note=_KERNELS)
        for name in (
            "ATTENTION", "USE_FLASH_ATTENTION", "EXLLAMA_VERSION", "ROCM_USE_CUSTOM_PAGED_ATTN", "ROCM_USE_SKINNY_GEMM",
            "PYTORCH_TUNABLEOP_ENABLED", "PYTORCH_TUNABLEOP_TUNING",
        )
    },
}  # fmt: skip


def translate(words: Sequence[str]) -> list[str]:
    """`ridgeline`'s words for the launcher's, and for the environment's, which give way. Notes go to stderr."""
    split = words.index("--") if "--" in words else len(words)
    given = {name: [value] for name, value in {**_DEFAULTS, **_environment()}.items()} | _parse(words[:split])
    made: dict[str, list[str]] = {}
    for name, values in given.items():
        if ours := [v for value in values if (v := _translated(f"--{name}", _flag(name, value), value)) is not None]:
            made[FLAGS[name].to] = ours
    for name, value in set_variables(VARIABLES).items():
        ours = _translated(name, VARIABLES[name], value.lower() if name == "LOG_LEVEL" else value)
        if ours is not None:
            made[VARIABLES[name].to] = [ours]
    if "--log-level" in made:  # TGI writes its log anyway; here there is one where it is asked for
        made.setdefault("--log-format", ["text"])
    own = words[split + 1 :]
    if "--api-key" not in made and not {"--api-key", "--api-keys"} & set(own):
        own = ["--open", *own]
    flags = [word for flag, values in made.items() for value in values for word in (flag, value) if word]
    return ["serve", *given["model-id"], *flags, *own]


def _parse(words: Sequence[str]) -> dict[str, list[str]]:
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
        kind = {"action": "store_const", "const": ["true"]} if flag.switch else {"metavar": "VALUE", "action": "append"}
        parser.add_argument(*names, dest=name, help=help or None, **kind)
    found = {name: values for name, values in vars(parser.parse_args(words)).items() if values is not None}
    return {name: values if FLAGS[name].several else values[-1:] for name, values in found.items()}


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


def _flag(name: str, value: str) -> Flag:
    return FLAGS.get(f"{name} {value}") or FLAGS[name]


def _translated(shown: str, flag: Flag, value: str) -> str | None:
    """The value of `serve`'s flag; None where there is nothing to set. ConfigError for what is not built."""
    if flag.switch:
        value = "false" if value.lower() in _OFF else "true"
    if value in flag.neutral or (flag.switch and value == "false"):
        return None
    if flag.note and value not in flag.values:
        say(f"text-generation-launcher: {shown} has no effect here: {flag.note}")
        return None
    if flag.refused and value not in flag.values:
        raise ConfigError(f"{shown} {value} is not built: {flag.refused}")
    return flag.values.get(value, value) if flag.to else None
