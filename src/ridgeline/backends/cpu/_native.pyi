from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RECORD_MAGIC: int
RECORD_VERSION: int

def op_signatures() -> list[tuple[str, str, str, str, str, str]]: ...
def isa(isa: str = "") -> str: ...
def packed_bytes(format: str, rows: int, cols: int) -> int: ...

class Pool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Memory:
    def __init__(self, nbytes: int) -> None: ...
    def array(self) -> NDArray[np.uint8]: ...

class PackedWeight:
    def __init__(
        self, pool: Pool, format: str, raw: NDArray[np.uint8], rows: int, cols: int, memory: Memory, offset: int
    ) -> None: ...
    def unpack(self, row: int, out: NDArray[np.float32]) -> None: ...

class Step:
    def __init__(
        self,
        pool: Pool,
        isa: str,
        record: NDArray[np.int64],
        weights: Sequence[PackedWeight],
        vectors: Sequence[NDArray[np.float32]],
        kv: Memory,
        arena: Memory,
    ) -> None: ...
    def run(self, batch: NDArray[np.uint8]) -> None: ...
