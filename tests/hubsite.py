"""A local HTTP server that holds files and misbehaves on demand; for the tests of downloads and Hub look-ups."""

from __future__ import annotations

import contextlib
import http.server
import threading
from dataclasses import dataclass, field


@dataclass
class Site:
    """What the test server holds and does. `cut`: after how many body bytes each next answer breaks off."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    status: dict[str, int] = field(default_factory=dict)
    redirect: dict[str, str] = field(default_factory=dict)
    etag: str = '"one"'
    lengths: bool = True
    wrong_range: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *args):
        pass

    def do_GET(self):
        site, asked = self.site, self.headers.get("Range")
        site.requests.append((self.path, asked))
        site.tokens.append((self.path, self.headers.get("Authorization")))
        if self.path in site.redirect:
            self.send_response(302)
            self.send_header("Location", site.redirect[self.path])
            return self.end_headers()
        body = site.files.get(self.path)
        if body is None or self.path in site.status:
            return self.send_error(site.status.get(self.path, 404))
        start = int(asked[6:-1]) if asked and self.headers.get("If-Range") == site.etag else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            first = 0 if site.wrong_range else start
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if site.lengths:
            self.send_header("Content-Length", str(len(body) - start))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        stop = start + site.cut.pop(0) if site.cut else len(body)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[start:stop])


@contextlib.contextmanager
def serve_site():
    """A Site and its server, reachable at `site.url` until the block ends."""
    site = Site()
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
