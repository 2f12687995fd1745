"""手元の機械だけで動く、パッケージ索引のまねごと。"""

import gzip
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class LocalIndex(ThreadingHTTPServer):
    """demo 1.0 だけがある索引。`trouble` で、通信の事故を選ぶ。"""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.filename = "demo-1.0.tar.gz"
        self.content = gzip.compress(bytes(range(256)) * 5000, compresslevel=0, mtime=0)  # 1.3 MB
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.trouble = ""
        self.requests: list[str] = []
        self.passwords: list[str | None] = []
        self.together: threading.Barrier | None = None  # この数の要求が揃うまで待って答える

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple/"


class _Handler(BaseHTTPRequestHandler):
    server: LocalIndex

    def do_GET(self) -> None:
        index = self.server
        path = self.path.removeprefix("http://index.invalid")  # プロキシーとして呼ばれたとき
        index.requests.append(path)
        index.passwords.append(self.headers["Authorization"])
        if path == "/simple/demo/" and index.trouble != "no project":
            name = "other.tar.gz" if index.trouble == "no file" else index.filename
            self._answer(f'<a href="../../files/{name}">{name}</a>'.encode(), "text/html")
        elif path == f"/files/{index.filename}":
            self._send_file()
        else:
            self.send_error(404)

    def _send_file(self) -> None:
        index = self.server
        if index.together:
            index.together.wait(timeout=30)
        if index.trouble == "error":
            self.send_error(503)
        elif index.trouble == "silent":
            time.sleep(1)
        elif index.trouble == "swapped":
            self._answer(b"x" * len(index.content))
        elif index.trouble in ("truncated", "stuck"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(index.content)))
            self.end_headers()
            self.wfile.write(index.content[:-1])
            self.wfile.flush()
            time.sleep(30 if index.trouble == "stuck" else 0)
        else:
            self._answer(index.content)

    def _answer(self, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if "gzip" in (self.headers["Accept-Encoding"] or "") and kind != "text/html":
            # .tar.gz をこう名乗るサーバーがあり、requests は伸長してしまう。
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalIndex]:
    """動いている LocalIndex。pip の設定はこの索引だけを指し、利用者の設定は見えない。"""
    names = ["INDEX_URL", "EXTRA_INDEX_URL", "CERT", "PROXY", "CONFIG_FILE"]
    for name in [*(f"PIP_{name}" for name in names), "HTTP_PROXY", "http_proxy", "ALL_PROXY"]:
        monkeypatch.delenv(name, raising=False)
    server = LocalIndex()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
