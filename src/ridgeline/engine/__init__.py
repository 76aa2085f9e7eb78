"""The engine: requests become steps. Knows programs and backends through Step and Batch, never HTTP."""
