"""The soak: seeded scenarios of settings, requests, departures and crashes, held against each request alone.

`draw` (scenario.py) makes a scenario of a seed; `play.py` and `crash.py` play it, in this process or over a child that
is killed; `judge.py` says what must hold. `python -m soak` runs many of them, or replays one.
"""
