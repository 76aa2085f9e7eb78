"""Seeded lines of mixed text for comparing tokenizers: code, prose, many scripts, and what breaks tokenizers."""

from __future__ import annotations

import random
import sysconfig
import unicodedata
from collections.abc import Callable
from pathlib import Path

PROSE = Path(__file__).parent / "data" / "prose.txt"
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>", "<eos>", "<pad>", "<unk>", "<s>", "</s>", "<start_of_turn>",
    "<end_of_turn>", "<unused7>", "<0x41>", "<0x0A>", "<table>", "<0x", "<end_of", "[INST]", "<<SYS>>", "\u2581",
]  # fmt: skip
_RANGES = {
    "latin": [(0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x250), (0x20, 0x21)],
    "cjk": [
        (0x4E00, 0x9FA6),
        (0x3400, 0x4DB6),
        (0x3000, 0x3010),
        (0x3041, 0x3097),
        (0x30A1, 0x30FB),
        (0x20000, 0x2A000),
    ],
    "hangul": [(0xAC00, 0xD7A4), (0x1100, 0x1200), (0x20, 0x21)],
    "rtl": [
        (0x5D0, 0x5EB),
        (0x591, 0x5C8),
        (0x621, 0x64B),
        (0x64B, 0x66A),
        (0x6F0, 0x6FA),
        (0x200E, 0x2010),
        (0x20, 0x21),
    ],
    "indic": [(0x905, 0x940), (0x93E, 0x950), (0x966, 0x970), (0xE01, 0xE3B), (0x1780, 0x17B4), (0x20, 0x21)],
    "marks": [(0x61, 0x7B), (0x300, 0x370), (0x1AB0, 0x1AC0), (0xFE00, 0xFE10), (0x20, 0x21)],
    "control": [(0x00, 0x21), (0x7F, 0xA1), (0x2000, 0x2070), (0xFEFF, 0xFF00), (0xE0000, 0xE0080), (0x61, 0x65)],
    "symbols": [
        (0x21, 0x30),
        (0x3A, 0x41),
        (0x5B, 0x61),
        (0x7B, 0x7F),
        (0x2190, 0x2400),
        (0x2500, 0x2600),
        (0x20, 0x21),
    ],
    "numbers": [
        (0x30, 0x3A),
        (0x2150, 0x2190),
        (0x2460, 0x2474),
        (0x660, 0x66A),
        (0xB2, 0xB4),
        (0xBC, 0xBF),
        (0x20, 0x21),
    ],
    "private": [(0xE000, 0xE100), (0xF0000, 0xF0100), (0x10FF00, 0x10FFFE), (0xFFF0, 0xFFFE), (0x20, 0x21)],
    "rare": [(0x10000, 0x10100), (0x12000, 0x12100), (0x13000, 0x13100), (0x1D400, 0x1D7FF), (0x10330, 0x1034B)],
}
_EMOJI = [
    "😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵", "👨🏿‍💻", "❤️", "🫠", "1️⃣", "🧑‍🚀", "☎", "✂️", "🦙🦙", "😶‍🌫️",
]  # fmt: skip
_BLANKS = [" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\u3000", "\xa0", "\u2028", " \n ", "\u2581", "\u200b"]


def lines(count: int, seed: int = 0) -> list[str]:
    """`count` lines: a quarter code of the standard library, some prose, the rest made."""
    rng = random.Random(seed)
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = [line for path in library for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    found = rng.sample(code, min(count // 4, len(code))) + PROSE.read_text("utf-8").splitlines()[: count // 8]
    makers = [*(_in_range(name) for name in _RANGES), _emoji, _blanks, _run, _word, _mixed, _named]
    return [*found, *(makers[i % len(makers)](rng) for i in range(count - len(found)))]


def _in_range(name: str) -> Callable[[random.Random], str]:
    return lambda rng: "".join(_char(rng, name) for _ in range(rng.randint(1, 40)))


def _char(rng: random.Random, name: str) -> str:
    # Assigned characters only: regex engines differ in their Unicode version, and so in what is a letter.
    while unicodedata.category(char := chr(rng.randrange(*rng.choice(_RANGES[name])))) in ("Cn", "Cs"):
        continue
    return char


def _emoji(rng: random.Random) -> str:
    return "".join(rng.choice([*_EMOJI, " ", "ok"]) for _ in range(rng.randint(1, 12)))


def _blanks(rng: random.Random) -> str:
    return "".join(
        rng.choice(_BLANKS) * rng.choice([1, 1, 2, 9, 40]) + rng.choice(["", "x", "12", "-"]) for _ in range(6)
    )


def _run(rng: random.Random) -> str:
    """One character, or a short period, again and again: where equally good merges overlap."""
    period = "".join(
        _char(rng, rng.choice(["latin", "symbols", "numbers", "cjk"])) for _ in range(rng.choice([1, 1, 2, 3]))
    )
    return period * rng.randint(2, 120) + rng.choice(["", " ", "x"])


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABC019_+/=") for _ in range(rng.choice([30, 100, 600])))


def _mixed(rng: random.Random) -> str:
    return "".join(_char(rng, rng.choice([*_RANGES])) for _ in range(rng.randint(1, 60)))


def _named(rng: random.Random) -> str:
    return "".join(rng.choice([*SPECIAL, " ", "x", "hello ", "\n"]) for _ in range(rng.randint(1, 10)))
