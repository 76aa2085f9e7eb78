"""`ridgeline eval MODEL --text FILE`: perplexity, and what one configuration loses against another."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ridgeline.cli.command import Option
from ridgeline.cli.options import ENGINE, AsJson, Group, takes
from ridgeline.cli.output import emit_json, tell, token_bar
from ridgeline.config import CacheConfig, EngineConfig
from ridgeline.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from ridgeline.engine.load import Loaded

BYTES_PER_TOKEN = 64  # far above any tokenizer's mean: enough text for the tokens asked for, and no more
WINDOW = 1024  # where the context allows
_SAME = "as the model"
_Window = Option(
    "Tokens per window, BOS included; windows do not overlap.", minimum=2, default=f"{WINDOW}, or the context"
)


def _changes(against: str, **settings: str) -> dict[str, str]:
    """Settings of the reference that differ from the model's."""
    named = {"model": against, **{name.removeprefix("against_"): value for name, value in settings.items()}}
    return {name: value for name, value in named.items() if value}


AGAINST = Group(
    {
        "against": (Annotated[str, Option("Reference model.", default="none, or the same")], ""),
        "against_backend": (Annotated[str, Option("Its backend.", default=_SAME)], ""),
        "against_format": (Annotated[str, Option("Its format, as --format.", default="as stored")], ""),
        "against_activations": (Annotated[str, Option("Its activations.", default=_SAME)], ""),
        "against_kv_format": (Annotated[str, Option("Its KV format.", default=_SAME)], ""),
    },
    _changes,
)


@takes(config=ENGINE, against=AGAINST)
def evaluate(
    config: EngineConfig,
    text: Annotated[Path, Option("A UTF-8 text.")],
    against: dict[str, Any],
    window: Annotated[int | None, _Window] = None,
    tokens: Annotated[int, Option("Tokens of the text to use.", minimum=2)] = 4096,
    json: AsJson = False,
) -> None:
    """Perplexity on a text; with a reference also KL divergence and top-1 agreement.

    Each window starts with the tokenizer's BOS where the tokenizer adds one; it is given, not predicted. What a model
    loses against itself as stored with float32 activations is kept, and shown whenever it is loaded like this again.
    """
    from ridgeline.tools import evaluate as tool

    content = read_text(text, tokens * BYTES_PER_TOKEN)
    configs = [config, _reference(config, against)] if against else [config]
    window = _choose_window(configs, window)
    model, *others = (_load(c, window) for c in configs)
    reference = others[0] if others else None
    tokenizer = model.opened.tokenizer
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    texts = tool.windows(_encode(model, reference, content), window, tokens, bos)
    with token_bar("eval", sum(map(len, texts))) as advance:
        done = tool.evaluate(_stepped(model), texts, _stepped(reference) if reference else None, advance)
    kept = reference is not None and _keep(model, reference, done, window, content)
    head = {
        "model": config.model, "backend": config.backend, "activations": model.engine.info.activations,
        "kv_format": config.kv_format, "format": config.format or None, "smoothing": config.smoothing,
        "sparsity": config.sparsity,
        "text": str(text), "window": window, "kept": kept,
        "bos": None if bos is None else tokenizer.bos_token, "against": against or None,
    }  # fmt: skip
    _show(head, done, json)


def _reference(config: EngineConfig, against: dict[str, Any]) -> EngineConfig:
    """The model's config with what `against` changes; as stored, unless that says otherwise."""
    stored = {} if config.model.startswith("random:") else {"format": ""}
    return replace(config, smoothing=0.0, sparsity=0.0, calibration="", **{**stored, **against})


def _keep(model: Loaded, reference: Loaded, done: Any, window: int, text: str) -> bool:
    """Keep what the model lost, if the reference is the same one, exact. Whether it was."""
    from ridgeline.engine import losses
    from ridgeline.program.approximations import approximations
    from ridgeline.weights.fingerprint import fingerprint

    ours, theirs = model.opened, reference.opened
    same = (
        fingerprint(ours.checkpoint) == fingerprint(theirs.checkpoint) and ours.program.states == theirs.program.states
    )
    if not same or approximations(theirs.program) or not approximations(ours.program):
        return False
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    loss = losses.Loss(done.kl, done.top1_agreement, done.perplexity_ratio, done.tokens, window, digest)
    losses.keep(CacheConfig.from_env().path, ours.checkpoint, ours.program, loss)
    return True


def read_text(path: Path, limit: int) -> str:
    """The beginning of a text file, at most `limit` bytes of it."""
    try:
        with path.open("rb") as f:
            data = f.read(limit)
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < limit)
    except OSError as wrong:
        raise InvalidRequest(f"{path} cannot be read: {wrong.strerror}", "text") from wrong
    except UnicodeDecodeError as wrong:
        raise InvalidRequest(f"{path} is not UTF-8: byte {wrong.start} is invalid", "text") from wrong


def _choose_window(configs: Sequence[EngineConfig], asked: int | None) -> int:
    """The window asked for, else the default one; no model's context may be shorter."""
    from ridgeline.cli.session import fetch
    from ridgeline.engine.load import batch_limits, open_model

    contexts = []
    for config in configs:
        fetch(config.model)
        own = open_model(config).config
        batch_limits(own, config)  # refuses a --context over the model's own
        contexts.append(config.context or own.context)
    longest = min(contexts)
    if (asked or 0) > longest:
        raise ConfigError(f"--window {asked} is over the context of {longest}")
    return asked or min(WINDOW, longest)


def _load(config: EngineConfig, window: int) -> Loaded:
    """A model with just enough state for one window."""
    from ridgeline.engine.load import load
    from ridgeline.tools.evaluate import ROWS

    return load(replace(config, context=window, max_requests=1, step_tokens=ROWS))


def _stepped(loaded: Loaded) -> tuple[Any, Any]:
    info, layout = loaded.engine.info, loaded.step.layout
    if info.pages < layout.limits.pages * len(layout.groups):
        raise ConfigError(f"a window of {info.context} tokens does not fit {info.pages} KV pages; raise --kv-memory")
    return loaded.step, layout


def _encode(model: Loaded, reference: Loaded | None, text: str) -> list[int]:
    if reference is not None and reference.opened.config.vocab != model.opened.config.vocab:
        sizes = f"{model.opened.config.vocab} and {reference.opened.config.vocab}"
        raise InvalidRequest(f"the two models have vocabularies of {sizes}; compare models that share one", "against")
    return model.opened.tokenizer.encode(text, add_special=False, parse_special=False)


def _show(head: dict[str, Any], done: Any, as_json: bool) -> None:
    record = {**head, "tokens": done.tokens, "perplexity": done.perplexity}
    if done.kl is not None:
        names = ("reference_perplexity", "perplexity_ratio", "kl", "top1_agreement")
        record |= {name: getattr(done, name) for name in names}
    if as_json:
        return emit_json(record)
    first = f", each after {head['bos']}" if head["bos"] else ""
    tell(f"perplexity {done.perplexity:.4f} over {done.tokens} tokens, in windows of {head['window']}{first}")
    if done.kl is not None:
        tell(
            f"reference {done.reference_perplexity:.4f} (ratio {done.perplexity_ratio:.5f}), "
            f"KL {done.kl:.3e} nats, top-1 agreement {100 * done.top1_agreement:.2f} %"
        )
    if head["kept"]:
        tell("kept: shown whenever the model is loaded like this")
