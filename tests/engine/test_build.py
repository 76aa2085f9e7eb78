"""The builder: every number of every step of mixed traffic, against the sequences that it is for."""

from __future__ import annotations

import math

import pytest
from fake import VOCAB, fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import PAGE
from ridgeline.engine.watermark import Watermark
from ridgeline.ops.green import LEFT_HASH, MIN_HASH, SELF_HASH
from ridgeline.ops.sample import COUNT_PROMPT, PROCESSED, REPEAT_PROMPT
from ridgeline.program.batch import WANT_IDS, WANT_LOGPROBS

REQUESTS = [
    (70, SamplingParams(seed=1, max_tokens=80)),
    (3, SamplingParams(seed=2, max_tokens=90, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, n=2)),
    (90, SamplingParams(seed=3, max_tokens=9, prompt_logprobs=True, logprobs=2, processed_logprobs=True)),
    (20, SamplingParams(seed=1 << 63, max_tokens=30, logit_bias={5: 1.5, 9: -2.0})),
    (8, SamplingParams(seed=5, max_tokens=40, repetition_penalty=1.5, presence_penalty=0.25, count_prompt=True)),
    (8, SamplingParams(seed=6, max_tokens=25, frequency_penalty=0.5, repetition_prompt=False, logit_bias={7: 3.0})),
    (9, SamplingParams(seed=7, max_tokens=30, typical_p=0.5, min_tokens=9, stop_token_ids=(4, 2), bad_words=((6,),))),
    (
        9,
        SamplingParams(seed=8, max_tokens=12, forced=(5, 6, 7), logprobs=1, processed_logprobs=True, bad_words=((6,),)),
    ),
]

REQUESTS += [
    (70, SamplingParams(seed=9, max_tokens=20, n=2, watermark=Watermark(), logprobs=1, prompt_logprobs=True)),
    (2, SamplingParams(seed=10, max_tokens=9, forced=(5, 6), watermark=Watermark("minhash", 0.25, 1.5, 1 << 63))),
    (9, SamplingParams(seed=11, max_tokens=20, watermark=Watermark("selfhash"))),
]


def check_tokens(batch, chunks) -> None:
    assert (batch.size("R"), batch.size("T")) == (len(chunks), sum(c.count for c in chunks))
    expected = [(r, c.sequence, p) for r, c in enumerate(chunks) for p in range(c.start, c.start + c.count)]
    for t, (r, s, p) in enumerate(expected):
        assert batch["request"][t] == r and batch["kv_len"][t] == p + 1 and (batch["positions"][:, t] == p).all()
        if p < len(s.tokens):
            assert batch["ids"][t] == s.tokens[p] and batch["source_step"][t] == -1
        else:
            source = s.sources[p - len(s.tokens)]
            assert (batch["source_step"][t], batch["source_row"][t]) == source
        for group, table in zip(s.groups, s.tables, strict=True):
            assert batch[f"page_table.{group.name}"][r, : len(table)].tolist() == list(table)
            assert batch[f"kv_slot.{group.name}"][t] == table[p // PAGE] * PAGE + p % PAGE


def green_numbers(w: Watermark | None, before: list[int]) -> dict[str, float]:
    past = [*before[::-1][:4], -1, -1, -1, -1] if w else [-1] * 4
    numbers = {f"green_{i}": past[i - 1] for i in range(1, 5)}
    numbers |= {"green_key": 0, "green_below": 0, "green_delta": 0, "green_scheme": 0, "green_top": 0}
    if w is not None:
        schemes = {"lefthash": LEFT_HASH, "minhash": MIN_HASH, "selfhash": SELF_HASH}
        numbers |= {"green_key": w.key, "green_below": int(w.gamma * 2**32), "green_delta": w.delta}
        numbers |= {"green_scheme": schemes[w.scheme], "green_top": 40 if w.scheme == "selfhash" else 0}
    return numbers


def check_row(batch, i: int, row, chunks) -> None:
    s, p, record, given = row.sequence, row.sequence.params, batch["sampler"][i], row.target >= 0
    (r,) = [r for r, c in enumerate(chunks) if s in (c.sequence, *c.forks)]
    at = batch["out_rows"][i]
    assert at == row.token and batch["request"][at] == r and batch["positions"][0, at] == row.position - 1
    assert not given or row.target == s.tokens[row.position]
    assert batch["want"][i] == (WANT_IDS | WANT_LOGPROBS if given or p.logprobs is not None else WANT_IDS)
    said = row.position - s.prompt_len
    target = row.target if given else p.forced[said] if said < len(p.forced) else -1
    flags = REPEAT_PROMPT * p.repetition_prompt | COUNT_PROMPT * p.count_prompt
    numbers = {
        "seed": s.seed, "temperature": p.temperature, "top_p": p.top_p, "min_p": p.min_p, "choice": s.choice,
        "repetition": p.repetition_penalty, "frequency": p.frequency_penalty, "presence": p.presence_penalty,
        "top_k": p.top_k, "n_top": p.logprobs or 0, "position": row.position, "mask_row": -1, "typical_p": p.typical_p,
        "target": target, "flags": flags | PROCESSED * (p.processed_logprobs and target < 0),
        **green_numbers(p.watermark, s.tokens[: row.position] if target < 0 else []),
    }  # fmt: skip
    for name, value in numbers.items():
        assert record[name] == record.dtype[name].type(value), name
    bias, history = (slice(record[f"{name}_start"], record[f"{name}_stop"]) for name in ("bias", "history"))
    found = dict(zip(batch["bias_ids"][bias].tolist(), batch["bias_values"][bias].tolist(), strict=True))
    banned = {word[0] for word in p.bad_words} | set(p.stop_token_ids if said < p.min_tokens else ())
    assert found == ({} if target >= 0 else p.logit_bias | dict.fromkeys(banned, -math.inf))
    counts = zip(batch["history_prompt"][history].tolist(), batch["history_output"][history].tolist(), strict=True)
    seen = dict(zip(batch["history_ids"][history].tolist(), map(list, counts), strict=True))
    assert seen == ({} if given else s.history or {})


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("windows", [(0,), (40, 0)])
def test_every_number_of_a_step(depth, windows):
    engine = fake_engine(depth=depth, windows=windows, pages=40, step_tokens=24, context=256)
    fill, sizes = engine._builder.fill, []

    def checked(batch, chunks, step, copies):
        rows = fill(batch, chunks, step, copies)
        assert batch.size("step") == step and batch.size("L") == len(rows)
        check_tokens(batch, chunks)
        for i, row in enumerate(rows):
            check_row(batch, i, row, chunks)
        sizes.append((batch.size("T"), batch.size("L"), batch.size("E"), batch.size("H")))
        return rows

    engine._builder.fill = checked
    client = LocalClient(engine)
    for length, params in REQUESTS:
        client.submit([(7 * i + length) % VOCAB for i in range(length)], params, lambda delta: None)
    while not client.idle:
        client.pump()
    assert max(sizes)[0] == 24 and min(sizes)[0] <= 2 and any(e for _, _, e, _ in sizes) and sizes[-1][2:] == (0, 0)
