"""What reaches a terminal: whole tables, no control bytes, a bar only while bytes flow; and names that are served."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

import toy
from commands import refused, write
from ridgeline.cli import output
from ridgeline.server.service import public_name
from ridgeline.weights.hub import ResolvedModel

ESCAPE = "\x1b]0;owned\x07"


class Terminal(io.StringIO):
    """Text that was written to something that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Put a terminal of some width in place of a stream."""

    def put(stream, columns=80, kind="dumb"):
        made = Terminal()
        monkeypatch.setattr("sys." + stream, made)
        for name, value in (("COLUMNS", str(columns)), ("TERM", kind), ("NO_COLOR", "1")):
            monkeypatch.setenv(name, value)
        return made

    return put


# --- tables


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_numbers_stay_whole_at_any_width_and_names_lose_nothing(terminal, columns):
    shown = terminal("stdout", columns)
    name, layers = "model.layers.{i}.mlp.experts.down_proj.weight", ", ".join(map(str, range(0, 60, 2)))
    row = [name, "49152 x 576", "iq4_nl", layers, "1,234,567,890", "123.4 MB"]
    output.table("t", ["name", "shape", "format", "layers", "parameters", "bytes"], [row], folds=(0, 3))
    lines = shown.getvalue().splitlines()
    for whole in (*row[1:3], *row[4:]):
        assert any(whole in line for line in lines), whole
    assert name in "".join(line.split(" ")[0] for line in lines[3:])
    assert "\u2026" not in shown.getvalue()
    if columns >= 80:
        assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", [["inspect", "{}"], ["roofline", "{}"], ["models"]])
def test_tables_of_commands_fit_a_terminal(cli, model, terminal, columns, command):
    shown = terminal("stdout", columns)
    cli(*(word.format(model) for word in command), *(toy.REFERENCE if "{}" in command else ()))
    text = shown.getvalue()
    assert "\u2026" not in text
    for table in text.split("\n\n"):
        lines = table.splitlines()
        rule = next((i for i, line in enumerate(lines) if line.startswith("\u2500")), len(lines))
        assert all(len(line) <= columns for line in lines[rule:])


def test_a_pipe_gets_whole_lines(capsys):
    output.table("", ["name", "n"], [["x" * 300, "1"]])
    assert "x" * 300 + " 1" in capsys.readouterr().out


# --- control bytes


def test_what_could_steer_a_terminal_is_replaced():
    assert output.printable(f"a{ESCAPE}b\u202e\x9b\nc") == "a\ufffd]0;owned\ufffdb\ufffd\ufffd c"


def test_errors_and_answers_hold_no_escapes(cli, model, tmp_path, terminal, capsys):
    folder = tmp_path / "m"
    folder.mkdir()
    write(folder / "config.json", b'{"model_type": "\\u001b]0;owned\\u0007"}')
    done = cli("run", folder, "hi", *toy.REFERENCE)
    refused(done, "owned")
    assert "\x1b" not in done.err and "\x1b" not in cli("inspect", folder, *toy.REFERENCE).out
    output.show(ESCAPE)
    assert capsys.readouterr().out == ESCAPE  # a pipe gets the answer as it is
    shown = terminal("stdout")
    output.show(f"{ESCAPE}\tzwj \U0001f469\u200d\U0001f680\n")
    assert shown.getvalue() == "\ufffd]0;owned\ufffd\tzwj \U0001f469\u200d\U0001f680\n"


def test_a_template_of_a_model_cannot_write_escapes(cli, tmp_path):
    template = "{{ raise_exception('\x1b]0;owned\x07\nsecond line') }}"
    done = cli("run", toy.write(tmp_path / "m", template=template), "hi", *toy.REFERENCE)
    refused(done, "owned", "second line")
    assert "\x1b" not in done.err


# --- the download bar


def test_the_bar_is_drawn_from_the_first_bytes_on(terminal):
    shown = terminal("stderr", kind="xterm")
    with output.download_bar("some/model") as progress:
        assert shown.getvalue() == ""
        progress(5, 10)
    assert "some/model" in shown.getvalue()


def test_models_that_are_there_draw_nothing(cli, model, terminal):
    shown = terminal("stderr")
    cli("pull", model)
    assert shown.getvalue() == ""


# --- names of served models


def test_a_served_path_is_called_by_its_last_part(tmp_path, monkeypatch):
    def name(path, kind="dir"):
        return public_name(ResolvedModel(Path(path).expanduser(), str(path), kind))

    folder = tmp_path / "my-model"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert [name(x) for x in (".", "./", "..", "sub/..", "sub/", folder, "~")] == [
        "my-model", "my-model", tmp_path.name, "my-model", "sub", "my-model", "my-model",
    ]  # fmt: skip
    assert [name(x, "gguf") for x in ("a.b.gguf", "sub/x.gguf")] == ["a.b", "x"]
    assert name(os.sep) == "model"


def test_other_models_keep_the_name_they_were_asked_for_by(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()  # of the same name, and not what is served
    cached = tmp_path / "cache" / "File.gguf"
    assert public_name(ResolvedModel(cached, "smollm2-135m", "gguf")) == "smollm2-135m"
    assert public_name(ResolvedModel(cached, "random:1b", "random")) == "random:1b"
