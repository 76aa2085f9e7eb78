"""Batch files below the command: lines and their keys, the output file after a kill, and the order of work."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from ridgeline.errors import ConfigError
from ridgeline.offline import lines as reader
from ridgeline.offline import run
from ridgeline.offline.journal import Journal
from ridgeline.offline.lines import read_lines

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def changed(**fields):
    return {name: value for name, value in (GOOD | fields).items() if value is not None}


def read(path, *given):
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in given))
    return list(read_lines(path))


# --- lines


def test_lines_have_keys_that_last(tmp_path):
    path = tmp_path / "in"
    first = read(path, GOOD, changed(custom_id="b"), b"{", b"{", b"{")
    assert len({x.key for x in first}) == 5
    assert [x.key for x in read(path, GOOD, changed(custom_id="b"), b"{", b"{", b"{", b"more")][:5] == [
        x.key for x in first
    ]
    assert {x.key for x in read(path, b"{", b"{", changed(custom_id="b"), b"", b"{", GOOD, b"")} == {
        x.key for x in first
    }
    assert (first[0].custom_id, first[0].url, json.loads(first[0].body)) == ("a", "/v1/completions", {"prompt": "x"})
    assert first[0].fault is None


@pytest.mark.parametrize(
    ("given", "words", "custom_id"),
    [
        (b"{", "line 2: it is no JSON object", None),
        (b"[1]", "no JSON object", None),
        (b"\xff\xfe", "no JSON object", None),
        (b'{"custom_id": "\xff"}', "no JSON object", None),
        (b'{"custom_id": "\\ud800"}', "no JSON object", None),
        (b"[" * 100_000, "no JSON object", None),
        (changed(custom_id=5), "custom_id must be", None),
        (changed(custom_id=""), "custom_id must be", None),
        (changed(custom_id="x" * 513), "custom_id must be", None),
        (changed(custom_id=None), "custom_id must be", None),
        (GOOD, "'a' was given", "a"),
        (changed(custom_id="b", method="GET"), "method must be 'POST', is 'GET'", "b"),
        (changed(custom_id="b", url=None), "url must be text", "b"),
        (changed(custom_id="b", body=None), "body is missing", "b"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_bad_line_says_what_is_wrong(tmp_path, given, words, custom_id):
    first, bad, last = read(tmp_path / "in", GOOD, given, changed(custom_id="z"))
    assert first.fault is None and last.fault is None
    assert str(bad.fault).startswith("line 2: ") and words in str(bad.fault)
    assert bad.custom_id == custom_id


@pytest.mark.parametrize("over", [1, 2, 99, 100, 101, 12345])
def test_a_long_line_is_refused_and_never_held(tmp_path, monkeypatch, over):
    monkeypatch.setattr(reader, "MAX_LINE", 100)
    long = b'"' + b"x" * (98 + over) + b'"'
    short, bad, also, last = read(tmp_path / "in", b"1".rjust(100), long, long, GOOD)
    assert str(bad.fault) == f"line 2: the line has {100 + over} bytes; at most 100 are allowed"
    assert bad.key != also.key and bad.body == b""
    assert "no JSON object" in str(short.fault) and last.number == 4 and last.fault is None


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_lines(tmp_path))


# --- the output file


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("")
    return path


def opened(source):
    return Journal(source.with_name("out.jsonl"), source)


def test_a_file_cut_anywhere_is_resumed_from_its_whole_lines(source):
    out = source.with_name("out.jsonl")
    journal = opened(source)
    for i in range(3):
        journal.append(f"{i:032x}", f"wörld {i}", {"body": "\n\x00"}, None if i else {"code": 1})
    journal.close()
    whole = out.read_bytes()
    ends = [0] + [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        out.write_bytes(whole[:cut])
        journal = opened(source)
        left = journal.recover({f"{i:032x}" for i in range(5)})
        lines = sum(0 < end <= cut for end in ends)
        assert left.done == {f"{i:032x}" for i in range(lines)} and left.errors == min(lines, 1)
        assert out.read_bytes() == whole[: ends[lines]]
        journal.append(f"{4:032x}", None, None, {})
        journal.close()
        assert out.read_bytes().startswith(whole[: ends[lines]] + b'{"id":"batch_req_' + b"0" * 31 + b"4")


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (b"my notes", "no output file"),
        (b"my notes\n", "no output file"),
        (b'{"id":"batch_req_1","custom_id":"q7","error":null}\n', "out.jsonl:1 answers custom_id 'q7'"),
        (b'{"id":"batch_req_0","custom_id":"q","error":null}\nnotes\n', "out.jsonl:2 is no line of output"),
        (b'{"id":"batch_req_0","custom_id":"q","error":null}\nnotes', "no output file"),
        (b'{"id":"batch_req_0","custom_id":"q","error":null}\n\x00\x00', "no output file"),
        (b'{"id":"batch_req_0"}\n', "out.jsonl:1 is no line of output"),
    ],
)
def test_a_file_that_is_not_ours_is_left_alone(source, held, words):
    out = source.with_name("out.jsonl")
    out.write_bytes(held)
    journal = opened(source)
    with pytest.raises(ConfigError, match=words):
        journal.recover({"0"})
    assert out.read_bytes() == held
    journal.clear()
    assert journal.recover({"0"}).done == frozenset() and out.read_bytes() == b""
    journal.close()


def test_one_process_writes_at_a_time(source):
    first = opened(source)
    with pytest.raises(ConfigError, match="by another process"):
        opened(source)
    first.close()
    opened(source).close()


def test_an_output_that_cannot_be(source):
    for path, words in (
        (source, "is the input"),
        (source.parent, "cannot be written"),
        (source.parent / "no" / "out", "cannot be written"),
        ("/dev/null", "no regular file"),
    ):
        with pytest.raises(ConfigError, match=words):
            Journal(path, source)


def test_a_full_disk_is_an_error(source, monkeypatch):
    journal = opened(source)

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(ConfigError, match="No space left"):
        journal.append("0", "a", None, None)
    journal.close()


# --- order


def asked(length, size=1):
    return SimpleNamespace(length=length, line=SimpleNamespace(body=b"x" * size))


def test_long_ones_go_first_within_the_window(monkeypatch):
    monkeypatch.setattr(run, "WINDOW", 3)
    given = [asked(n) for n in (1, 5, 5, 2, 9, 3, 3, 1)]
    taken = list(run.longest_first(iter(given)))
    assert [a.length for a in taken] == [5, 5, 9, 3, 3, 2, 1, 1]
    assert taken[0] is given[1] and taken[-2] is given[0]  # equals in order of the file


def test_the_window_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(run, "WINDOW_BYTES", 10)
    read = []
    order = run.longest_first(read.append(i) or asked(i, size=4) for i in range(100))
    assert next(order).length == 2 and len(read) == 3
    assert len(list(order)) == 99
