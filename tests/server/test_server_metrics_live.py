"""What /metrics counts of known traffic, with the default model in an engine of its own process."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from test_server_metrics import read

from ridgeline.analysis import hardware
from ridgeline.config import CacheConfig

pytestmark = pytest.mark.model
PROMPT = [1000 + 7 * i for i in range(200)]  # of three whole pages
KEY = '{key=""}'


def samples(live) -> Counter[str]:
    with urlopen(f"{live.url}/metrics") as reply:
        return Counter(read(reply.read())[0])


def ask(live, **body) -> bytes:
    parts = urlsplit(live.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    asked = {"ignore_eos": True, "temperature": 0, **body}
    connection.request("POST", "/v1/completions", json.dumps(asked), {"content-type": "application/json"})
    return connection.getresponse().read()


def settled(live) -> Counter[str]:
    """Of a server at rest."""
    while not live.client.idle:
        time.sleep(0.01)
    time.sleep(0.1)  # records are counted when their answers are written
    return samples(live)


def test_known_traffic_is_counted(live):
    before = settled(live)
    for stream in (False, True):
        ask(live, prompt=PROMPT, max_tokens=8, stream=stream)
    ask(live, prompt=PROMPT, max_tokens=-1)
    found = settled(live)
    gained = found - before
    assert gained['ridgeline_requests_total{key="",status="200"}'] == 3  # one of which asked for metrics
    assert gained['ridgeline_requests_total{key="",status="400"}'] == 1
    assert gained[f"ridgeline_prompt_tokens_total{KEY}"] == gained["tgi_request_input_length_sum"] == 400
    assert gained[f"ridgeline_generated_tokens_total{KEY}"] == gained["tgi_request_generated_tokens_sum"] == 16
    assert gained[f"ridgeline_cached_tokens_total{KEY}"] == 192 and gained[f"ridgeline_prefix_hits_total{KEY}"] == 1
    assert gained["tgi_request_count"] == 3 and gained["tgi_request_success"] == 2
    assert gained['tgi_request_failure{err="validation"}'] == 1
    assert gained["ridgeline_time_to_first_token_seconds_count"] == gained["ridgeline_request_seconds_count"] == 2
    assert 10 <= gained["ridgeline_inter_token_seconds_count"] <= 14  # fewer where tokens came at once
    first, whole = (gained[f"ridgeline_{what}_seconds_sum"] for what in ("time_to_first_token", "request"))
    assert 0 < first < whole and gained["ridgeline_inter_token_seconds_sum"] < whole
    assert gained["ridgeline_steps_total"] >= 16 and gained["ridgeline_engine_restarts_total"] == 0


def pages(found: Counter[str]) -> dict[str, float]:
    return {state: found[f'ridgeline_kv_pages{{state="{state}"}}'] for state in ("used", "cached", "withheld", "free")}


def test_what_runs_and_waits_is_shown_while_it_does(live):
    """Three times sixteen choices for thirty-two places; before, a prompt of more than a page, which is kept."""
    ask(live, prompt=PROMPT, max_tokens=1)
    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, live, prompt=[i], n=16, max_tokens=60, temperature=1) for i in (1, 2, 3)]
        seen = []
        while not all(a.done() for a in asking):
            seen.append(samples(live))
            time.sleep(0.01)
    full = max(seen, key=lambda s: s["ridgeline_running"])
    assert full["ridgeline_running"] == live.client.info.max_requests == 32 and full["ridgeline_waiting"] == 16
    assert full["tgi_batch_current_size"] == 32 and full["tgi_queue_size"] == 16
    assert full["ridgeline_healthy"] == 1 and pages(full)["used"] >= 32
    for found in (*seen, settled(live)):
        held = pages(found)
        assert sum(held.values()) == live.client.info.pages and min(held.values()) >= 0
        assert found["ridgeline_kv_use_ratio"] == pytest.approx(held["used"] / live.client.info.pages)
    rest = settled(live)
    assert rest["ridgeline_running"] == rest["ridgeline_waiting"] == rest["ridgeline_paused"] == 0
    assert pages(rest)["used"] == 0 and pages(rest)["cached"] > 0


def test_attainment_is_told_where_this_machine_was_measured(live):
    ask(live, prompt=PROMPT, max_tokens=4)
    found = settled(live)
    measured = hardware.stored(CacheConfig.from_env().path) is not None and live.client.info.backend == "cpu"
    assert ("ridgeline_attainment_ratio" in found) == measured
    if measured:
        assert 0.01 < found["ridgeline_attainment_ratio"] < 1.5
