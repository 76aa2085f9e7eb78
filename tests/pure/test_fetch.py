"""One download against a local HTTP server: resumed, bounded, atomic."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from hubsite import serve_site
from ridgeline.errors import ModelFileError, ModelNotFound
from ridgeline.weights import fetch
from ridgeline.weights.fetch import download

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several pieces


@pytest.fixture
def site():
    with serve_site() as site:
        yield site


def test_download_reports_progress_and_leaves_only_the_target(site, tmp_path):
    site.files["/f"] = CONTENT
    seen = []
    download(site.url + "/f", tmp_path / "f", limit=1 << 30, progress=lambda *p: seen.append(p))
    assert (tmp_path / "f").read_bytes() == CONTENT and os.listdir(tmp_path) == ["f"]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [p[0] for p in seen] == sorted(p[0] for p in seen)


def test_broken_transfers_resume_where_they_stopped(site, tmp_path):
    site.files["/f"] = CONTENT
    site.cut = [3_000_000, 1_500_000]
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [r for _, r in site.requests] == [None, "bytes=3000000-", "bytes=4500000-"]


def test_a_later_call_resumes_the_part_of_an_earlier_one(site, tmp_path):
    site.files["/f"] = CONTENT
    site.cut = [2_000_000] + [0] * fetch.ATTEMPTS
    with pytest.raises(ModelFileError, match="ended after 2000000 of 5120000"):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f.part").stat().st_size == 2_000_000 and not (tmp_path / "f").exists()
    site.cut = []
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT and site.requests[-1][1] == "bytes=2000000-"
    assert os.listdir(tmp_path) == ["f"]


def test_a_file_that_changed_between_calls_starts_over(site, tmp_path):
    site.files["/f"] = b"old" * 500_000
    site.cut = [1_000_000] + [0] * fetch.ATTEMPTS
    with pytest.raises(ModelFileError):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    site.files["/f"], site.etag, site.cut = CONTENT, '"two"', []
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_etag_nothing_is_resumed(site, tmp_path, etag):
    site.files["/f"], site.etag, site.cut = CONTENT, etag, [3_000_000]
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT and [r for _, r in site.requests] == [None, None]


def test_an_answer_for_another_range_starts_over(site, tmp_path):
    site.files["/f"], site.wrong_range, site.cut = CONTENT, True, [1_000_000]
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT and site.requests[-1][1] is None


def test_a_part_longer_than_the_file_starts_over(site, tmp_path):
    site.files["/f"] = CONTENT
    (tmp_path / "f.part").write_bytes(b"x" * (len(CONTENT) + 5))
    (tmp_path / "f.part.etag").write_text(site.etag)
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_sizes_are_bounded_announced_or_not(site, tmp_path):
    site.files["/f"] = CONTENT
    with pytest.raises(ModelFileError, match="5120000 bytes; the limit is 1000"):
        download(site.url + "/f", tmp_path / "f", limit=1000)
    site.lengths = False
    with pytest.raises(ModelFileError, match="more than the 1000 bytes"):
        download(site.url + "/f", tmp_path / "f", limit=1000)
    assert os.listdir(tmp_path) == []
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_full_disk_is_refused_before_the_transfer(site, tmp_path, monkeypatch):
    site.files["/f"] = CONTENT
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ModelFileError, match=r"needs 5120000 more bytes.*100 free"):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_absent_files(site, tmp_path, code):
    site.status["/f"] = code
    with pytest.raises(ModelNotFound, match=f"HTTP {code}"):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert len(site.requests) == 1


@pytest.mark.parametrize(("code", "requests"), [(500, fetch.ATTEMPTS), (503, fetch.ATTEMPTS), (400, 1)])
def test_server_errors(site, tmp_path, code, requests):
    site.files["/f"], site.status["/f"] = CONTENT, code
    with pytest.raises(ModelFileError, match=str(code)):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert len(site.requests) == requests


def test_unreachable_server(tmp_path):
    with pytest.raises(ModelFileError, match="could not be reached"):
        download("http://127.0.0.1:9/f", tmp_path / "f", limit=1 << 30)


def test_a_token_is_for_the_one_server(site, tmp_path):
    site.files, site.redirect, site.status = {"/g": CONTENT, "/no": b""}, {"/f": "/g"}, {"/no": 403}
    download(site.url + "/f", tmp_path / "f", limit=1 << 30, token="hf_x")
    assert site.tokens == [("/f", "Bearer hf_x"), ("/g", None)]
    with pytest.raises(ModelNotFound, match="not open to this HF_TOKEN"):
        download(site.url + "/no", tmp_path / "no", limit=1 << 30, token="hf_x")


def test_redirects_stay_on_their_scheme(site, tmp_path):
    site.files["/g"] = CONTENT
    site.redirect = {"/f": "/g", "/file": "file:///etc/hostname", "/ftp": "ftp://127.0.0.1/x"}
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT
    for path in ("/file", "/ftp"):
        with pytest.raises(ModelFileError):
            download(site.url + path, tmp_path / "x", limit=1 << 30)
    assert not (tmp_path / "x").exists()
