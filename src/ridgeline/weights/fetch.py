"""One https download: resumed, bounded, atomic. Also the SHA-256 of a file.

A transfer lives in `<target>.part` (with its ETag beside it) until it is complete, then replaces the target
in one rename; an interrupted one resumes with a Range request. Must not know what is being fetched, nor where
it is kept.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ridgeline.errors import ModelFileError, ModelNotFound

CONNECT_S = 5.0
READ_S = 30.0
ATTEMPTS = 4  # in a row without a single new byte
PIECE = 1 << 20

Progress = Callable[[int, "int | None"], None]  # (bytes done, bytes in total if known), per file


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def download(url: str, target: Path, *, limit: int, progress: Progress | None = None, token: str = "") -> None:
    """Fetch `url` into `target`, which appears only when complete; refuses more than `limit` bytes. `token` is for the
    server of `url` alone: it is not sent to where that leads.

    ModelNotFound when the server says there is no such file for us; ModelFileError when it cannot be reached,
    stalls or stops early (what arrived is kept for the next call).
    """
    part = target.with_name(target.name + ".part")
    failures = 0
    while failures < ATTEMPTS:
        before = _size(part)
        try:
            _transfer(_request(url, part, token), part, limit, progress)
        except urllib.error.HTTPError as e:
            if e.code in (401, 403, 404, 410):
                whose = "open to this HF_TOKEN" if token else "public"
                raise ModelNotFound(f"{url} is not there, or not {whose} (HTTP {e.code})") from e
            if e.code == 416:  # our part is not a prefix of what the server has now
                _discard(part)
            elif e.code < 500:
                raise ModelFileError(f"{url} could not be fetched: {e}") from e
            error: Exception = e
        except urllib.error.URLError as e:
            raise ModelFileError(f"{url} could not be reached: {e.reason}") from e
        except (OSError, ValueError, http.client.HTTPException) as e:
            error = e
        else:
            os.replace(part, target)
            _etag_path(part).unlink(missing_ok=True)
            return
        failures = 0 if _size(part) > before else failures + 1
    raise ModelFileError(f"{url} could not be fetched: {error!r}") from error


def _transfer(request: urllib.request.Request, part: Path, limit: int, progress: Progress | None) -> None:
    """One request that appends to `part`; OSError when it ends before the announced length."""
    url, have = request.full_url, _resumed(part)
    with _opener(url).open(request, timeout=CONNECT_S) as response:
        have, total = _place(response, part, have)
        _check_room(url, part, have, total, limit)
        with part.open("r+b" if have else "wb") as f:
            f.seek(have)
            while have <= (limit if total is None else total) and (piece := response.read(PIECE)):
                have += f.write(piece)
                if progress:
                    progress(have, total)
    if have > (limit if total is None else total):
        _discard(part)
        raise ModelFileError(f"{url} sent more than the {total or limit} bytes announced or allowed")
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have} of {total} bytes")


def _resumed(part: Path) -> int:
    """Bytes there are already, of a file that can be told from others."""
    return _size(part) if _etag_path(part).exists() else 0


def _request(url: str, part: Path, token: str) -> urllib.request.Request:
    """Ask for what is missing, if it still belongs to the same file: only a strong ETag proves that."""
    headers = {"User-Agent": "ridgeline"}
    if have := _resumed(part):
        headers |= {"Range": f"bytes={have}-", "If-Range": _etag_path(part).read_text()}
    request = urllib.request.Request(url, headers=headers)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


def _place(response: Any, part: Path, have: int) -> tuple[int, int | None]:
    """Where the body starts in `part`, and the file's length if announced; notes a new start's ETag."""
    if response.status == 206:
        match = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", response.headers.get("Content-Range", "")
        )
        if match is None or int(match[1]) != have:
            _discard(part)
            raise OSError(f"the server answered another range than bytes {have}-")
        return have, int(match[2])
    _discard(part)
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        _etag_path(part).write_text(etag)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _check_room(url: str, part: Path, have: int, total: int | None, limit: int) -> None:
    if total is None:
        return
    if total > limit:
        raise ModelFileError(f"{url} has {total} bytes; the limit is {limit}")
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise ModelFileError(f"{url} needs {total - have} more bytes; {part.parent} has {free} free")


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Handlers for the URL's own scheme only, so https is never redirected down to http or to a file."""
    opener = urllib.request.OpenerDirector()
    transport = _HttpsHandler() if url.startswith("https:") else _HttpHandler()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        transport,
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _Https(http.client.HTTPSConnection):
    """Connects under the short limit, then reads under the longer one (urllib has a single timeout)."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_S)


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_S)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req)


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, req)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _etag_path(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_path(part).unlink(missing_ok=True)
