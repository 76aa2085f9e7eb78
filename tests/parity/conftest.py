"""One thread for torch: the other cores run other tests, and threads that spin beside them only wait for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    try:
        import torch
    except ImportError:  # not all tests here need it
        return
    torch.set_num_threads(1)
