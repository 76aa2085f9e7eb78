"""Guidance: answers that a grammar allows, on llguidance, and that are complete within their tokens."""
