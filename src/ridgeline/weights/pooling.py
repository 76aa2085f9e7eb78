"""How a model's own files say that vectors are made of hidden states: sentence-transformers' folder, or a GGUF key.

Public files: what is not as expected is refused by name. It must not know how vectors are made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ridgeline.errors import ModelFileError, Unsupported

MODULES_FILE, POOLING_FILE = "modules.json", "1_Pooling/config.json"
_MAX_BYTES = 1 << 20
_MODES = {"mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}  # sentence-transformers' names
_TYPES = {0: None, 1: "mean", 3: "last"}  # GGUF's numbers
_INSTEAD = "say what to do instead with --pooling mean or last"


def pooling_of_folder(folder: Path) -> str | None:
    """ "mean" or "last"; None where the folder says nothing.

    Unsupported for another kind, or a further module that would change vectors; ModelFileError for broken files.
    """
    modules = _read(folder / MODULES_FILE, list)
    if modules is None:
        return None
    kinds = [str(m.get("type")).rsplit(".", maxsplit=1)[-1] if isinstance(m, dict) else "" for m in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise Unsupported(f"{MODULES_FILE}: module {kind!r:.40} is not built; {_INSTEAD}")
    path = next((m.get("path") for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
    if not isinstance(path, str) or not re.fullmatch(r"\w[\w.-]*", path):
        raise ModelFileError(f"{MODULES_FILE} names no folder of a module Pooling")
    config = _read(folder / path / "config.json", dict)
    if config is None:
        raise ModelFileError(f"{MODULES_FILE} names {path}/config.json, which is not there")
    chosen = [key.removeprefix("pooling_mode_") for key, on in config.items() if on is True and "pooling_mode_" in key]
    chosen = chosen or [str(config.get("pooling_mode"))]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise Unsupported(f"{path}/config.json: pooling of {' and '.join(chosen)!r:.80} is not built; {_INSTEAD}")
    return _MODES[chosen[0]]


def pooling_of_gguf(metadata: Mapping[str, Any]) -> str | None:
    """The same of a GGUF file."""
    key = f"{metadata.get('general.architecture')}.pooling_type"
    kind = metadata.get(key, 0)
    if not isinstance(kind, int) or kind not in _TYPES:
        raise Unsupported(f"{key} = {kind!r:.40} is not built; {_INSTEAD}")
    return _TYPES[kind]


def _read(path: Path, kind: type) -> Any:
    """The JSON of a file, None without one."""
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_BYTES:
        raise ModelFileError(f"{path.name} is larger than {_MAX_BYTES >> 20} MiB")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as wrong:
        raise ModelFileError(f"{path.name} is not JSON: {wrong}") from wrong
    if not isinstance(found, kind):
        raise ModelFileError(f"{path.name} is not a JSON {'object' if kind is dict else 'list'}")
    return found
