"""Limits that TGI has too, under its names."""

from __future__ import annotations

import toy


def test_serve_takes_tgis_limits(cli, model, monkeypatch):
    from ridgeline.server import app

    seen = []
    monkeypatch.setattr(app, "serve", seen.append)
    limits = ["--max-total-tokens", 100, "--max-input-length", 90, "--max-best-of", 3, "--max-stop-sequences", 5]
    limits += ["--max-top-n-tokens", 6, "--max-client-batch-size", 7, "--payload-limit", "1M", "--tgi-strict"]
    cli("serve", model, *limits, "--max-concurrent-requests", 40, *toy.REFERENCE)
    cli("serve", model, "--max-concurrent-requests", 4, *toy.REFERENCE)
    cli("serve", model, "--max-requests", 4, *toy.REFERENCE)
    config, few, usual = seen
    assert (config.engine.context, config.max_input_tokens, config.max_best_of) == (100, 90, 3)
    assert (config.max_stop_sequences, config.max_top_n_tokens, config.max_client_batch_size) == (5, 6, 7)
    assert (config.payload_limit, config.tgi_strict) == (1 << 20, True)
    assert [(c.engine.max_requests, c.engine.queue) for c in (config, few, usual)] == [(32, 8), (4, 0), (4, 512)]
