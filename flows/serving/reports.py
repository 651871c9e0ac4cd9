"""Shows reports in the browser: an HTTP server on 127.0.0.1 beside Prefect's.

A report is named by its md5 and read from DVC's cache, so that the link on a run's page leads to
the report of that run whatever ran since.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

HOST = "127.0.0.1"
PATH = re.compile(r"^/([0-9a-f]{2})([0-9a-f]{30})/report\.html$")


@contextmanager
def serving_reports(cache: Path, port: int) -> Iterator[None]:
    """Serve the reports in a folder of DVC's cache, `<cache>/files/md5`, while the block runs."""
    handler = partial(_Handler, cache)
    with ThreadingHTTPServer((HOST, port), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, cache: Path, *arguments: Any) -> None:
        self._cache = cache
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with a report, and with nothing else that is in the cache."""
        found = PATH.match(self.path)
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if found is None or host not in {HOST, "localhost"}:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            content = (self._cache / "files/md5" / found[1] / found[2]).read_bytes()
        except OSError:
            words = "this report is not in DVC's cache any more; run the stage `report` again"
            self.send_error(HTTPStatus.NOT_FOUND, explain=words)
            return
        if not content[:200].lstrip().lower().startswith(b"<!doctype html"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of requests."""
