"""The cpu backend: a native loop over the flat program (backend.py compiles, record.py encodes, native/ runs)."""
