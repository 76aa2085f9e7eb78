"""Vocabularies from a Hugging Face folder: tokenizer.json and the files beside it.

Owns which shapes of tokenizer.json are taken: BPE that spells bytes by GPT-2's alphabet, or SentencePiece's pieces
with byte fallback. What a shape does is the `tokenizers` package's business; what is not known is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.text import spm
from ridgeline.text.pipeline import BYTE_FALLBACK, BYTE_LEVEL, Pipeline, Spelling, raising
from ridgeline.text.vocab import Backend, SpecialTokens, turn_ends

if TYPE_CHECKING:
    import tokenizers

_MAX_FILE_BYTES = 64 << 20  # the largest real tokenizer.json have some 35 MB
_MAX_SETTINGS_BYTES = 16 << 20  # of the files beside it; Python objects cost up to 32 bytes per byte of JSON
_MAX_ID = 1 << 20
_MAX_TAIL = 1  # tokens that a tokenizer puts behind a text
_TO_SPACE = {"type": "Replace", "pattern": {"String": spm.SPACE}, "content": " "}
_FROM_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": spm.SPACE}
_PREFIX = {"type": "Prepend", "prepend": spm.SPACE}
_BYTES = [_TO_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}]
# The decoders of SentencePiece conversions. A prefix space that they would strip stays: bytes are exact here.
_DECODERS = [_BYTES, [*_BYTES, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]]
# Ways to turn spaces into U+2581, with or without one in front, as (normalizer, pre-tokenizer).
_BY_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_SPACES = [
    *(([_FROM_SPACE], pre) for pre in (None, _BY_SPLIT)),
    *(([_PREFIX, _FROM_SPACE], pre) for pre in (None, _BY_SPLIT)),
    *(
        ([], {"type": "Metaspace", "replacement": spm.SPACE, "prepend_scheme": scheme, "split": split})
        for scheme in ("always", "first", "never")
        for split in (True, False)
    ),
]


def read(folder: Path) -> tuple[Backend, SpecialTokens]:
    """Backend and special tokens of the folder. Errors as `tokenizer.from_dir` says."""
    import tokenizers

    source = _read(folder / "tokenizer.json")
    if source is None:
        raise ModelFileError(f"{folder.name} has no tokenizer.json")
    _check_ids(source)
    with raising(ModelFileError, "tokenizer.json cannot be read"):
        backend = tokenizers.Tokenizer.from_str(source)
    spelling = _spelling(backend)
    backend.no_truncation()
    backend.no_padding()
    config = _json(folder / "tokenizer_config.json")
    special = _special(backend, config, _ends(folder, backend.get_vocab_size()), _template(folder, config))
    # BOS is added above this layer and offsets must tile the text, so nothing is left for a post-processor.
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    return Pipeline(backend, spelling), special


def _check_ids(source: str) -> None:
    """The package allocates a place for each id up to the largest, and cannot copy a vocabulary with an id twice."""
    try:
        whole = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"tokenizer.json is not JSON: {error}") from error
    model = whole.get("model") if isinstance(whole, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    added = whole.get("added_tokens") if isinstance(whole, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    extra = [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    if not all(type(i) is int and 0 <= i < _MAX_ID for i in (*ids, *extra)):
        raise ModelFileError(f"tokenizer.json: an id is not an integer from 0 to {_MAX_ID - 1}")
    if len(set(ids)) != len(ids):
        raise ModelFileError("tokenizer.json: two tokens of model.vocab have the same id")


def _ends(folder: Path, size: int) -> list[int]:
    """The ids that generation_config.json says end a text, or config.json where the other file is silent."""
    declared = _json(folder / "generation_config.json").get("eos_token_id")
    if declared is not None:
        ends = declared if isinstance(declared, list) else [declared]
        if not all(type(token_id) is int and 0 <= token_id < size for token_id in ends):
            raise ModelFileError(f"generation_config.json: eos_token_id is not in the vocabulary of {size}")
        return ends
    declared = _json(folder / "config.json").get("eos_token_id")
    ends = declared if isinstance(declared, list) else [declared]
    # Often a default that this vocabulary does not reach: then it cannot come up.
    return [token_id for token_id in ends if type(token_id) is int and 0 <= token_id < size]


def _spelling(backend: tokenizers.Tokenizer) -> Spelling:
    """How this vocabulary spells bytes; Unsupported for a shape that is not known."""
    model = backend.model
    kind = type(model).__name__
    if kind != "BPE":
        raise Unsupported(f"tokenizer.json: model {kind} is not built; BPE is")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(model, name):
            raise Unsupported(f"tokenizer.json: model.{name} = {getattr(model, name)!r:.80} is not built")
    decoder = _part(backend.decoder)
    if decoder and decoder["type"] == "ByteLevel":
        return BYTE_LEVEL
    if _steps(decoder, "decoders") not in _DECODERS:
        raise Unsupported(
            f"tokenizer.json: decoder {_shown(decoder)} is not built; ByteLevel is, and the sequence Replace, "
            "ByteFallback, Fuse(, Strip) of SentencePiece"
        )
    normalizer, pre = _part(backend.normalizer), _part(backend.pre_tokenizer)
    if (_steps(normalizer, "normalizers"), pre) not in _SPACES:
        raise Unsupported(
            f"tokenizer.json: normalizer {_shown(normalizer)} with pre_tokenizer {_shown(pre)} is not built for "
            "SentencePiece's pieces"
        )
    missing = [piece for piece in spm.BYTE_PIECES if backend.token_to_id(piece) is None]
    if missing or not model.byte_fallback:
        raise Unsupported(f"tokenizer.json: byte_fallback = {model.byte_fallback}, {len(missing)} byte tokens missing")
    return BYTE_FALLBACK


def _part(component: Any) -> dict[str, Any] | None:
    """A component of the pipeline as the JSON object that the file holds."""
    state = None if component is None else json.loads(component.__getstate__())
    return state if isinstance(state, dict) else None


def _steps(part: dict[str, Any] | None, key: str) -> list[Any]:
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _shown(part: dict[str, Any] | None) -> str:
    return f"{json.dumps(part, ensure_ascii=False):.200}"


def _special(
    backend: tokenizers.Tokenizer, config: dict[str, Any], ends: list[int], template: str | None
) -> SpecialTokens:
    bos_token, eos_token = (_content(config.get(name)) for name in ("bos_token", "eos_token"))
    bos_id, eos_id = _declared(backend, "bos_token", bos_token), _declared(backend, "eos_token", eos_token)
    with raising(ModelFileError, "tokenizer.json cannot encode even an empty text"):
        habit = backend.encode("", add_special_tokens=True).ids
    begins = habit[:1] == [bos_id]
    tail = habit[1:] if begins else habit
    if len(tail) > _MAX_TAIL:
        raise Unsupported(f"tokenizer.json: post_processor adds tokens {habit[:8]} beyond a BOS and an end")
    add_bos, add_eos = config.get("add_bos_token", begins), config.get("add_eos_token", False)
    if add_bos not in (True, False) or add_eos not in (True, False, None):
        raise ModelFileError("tokenizer_config.json: add_bos_token or add_eos_token is not a boolean")
    if add_eos and not tail and eos_id is not None:
        tail = [eos_id]
    added = backend.get_added_tokens_decoder()
    named, plain = ({t.content: key for key, t in added.items() if t.special is kind} for kind in (True, False))
    return SpecialTokens(
        bos_id=bos_id,
        eos_ids=turn_ends([*ends, eos_id], named, plain, template is not None),
        add_bos=add_bos,
        tail=tuple(tail),
        bos_token=bos_token,
        eos_token=eos_token,
        chat_template=template,
    )


def _declared(backend: tokenizers.Tokenizer, name: str, text: str) -> int | None:
    """The id of a token that tokenizer_config.json names, None if it names none."""
    token_id: int | None = backend.token_to_id(text) if text else None
    if text and token_id is None:
        raise ModelFileError(f"tokenizer_config.json: {name} {text!r:.80} is not in the vocabulary")
    return token_id


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    separate = _read(folder / "chat_template.jinja")
    template = config.get("chat_template") if separate is None else separate
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
        named = {entry["name"]: entry.get("template") for entry in entries}
        template = named.get("default", next(iter(named.values()), None))
    if template is not None and not isinstance(template, str):
        raise ModelFileError("tokenizer_config.json: chat_template is not a string or a list of named strings")
    return template


def _content(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _read(path: Path, most: int = _MAX_FILE_BYTES) -> str | None:
    if not path.is_file():
        return None
    if path.stat().st_size > most:
        raise ModelFileError(f"{path.name} is larger than {most >> 20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path.name} is not UTF-8") from error


def _json(path: Path) -> dict[str, Any]:
    source = _read(path, _MAX_SETTINGS_BYTES)
    try:
        value = {} if source is None else json.loads(source)
        json.dumps(value, ensure_ascii=False).encode()  # an escaped lone surrogate passes for a character in JSON
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{path.name} holds text that is not valid Unicode (a lone surrogate)") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path.name} is not a JSON object")
    return value
