"""The peer comparison: ours and other CPU engines on the same work, interleaved in one run (`cpu.py`).

Knows our engine only by its public API and commands, as it knows the others.
"""
