"""A Hugging Face hub on this machine, as far as downloads need one: folders served over HTTP.

The real client libraries talk to it through HF_ENDPOINT, so hub names are tested without a network.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


@contextmanager
def local_hub(
    cache: Path, models: dict[str, Path] | None = None, datasets: dict[str, Path] | None = None
) -> Iterator[dict[str, str]]:
    """Serve folders by hub name and yield the environment variables with which they are found."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.repositories = {"models": models or {}, "datasets": datasets or {}}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        where = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
        yield where | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    finally:
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self._answer(asked)

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, asked: list[str] | None = None) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        is_api = path.startswith("api/")
        path = path.removeprefix("api/")
        kind = "datasets" if path.startswith("datasets/") else "models"
        path = path.removeprefix(f"{kind}/")
        for name, folder in self.server.repositories[kind].items():
            if path == name or path.startswith(f"{name}/"):
                rest = path.removeprefix(name).strip("/").split("/")
                if is_api:
                    self._send_json(self._about(name, folder, rest[0], asked))
                else:
                    self._send_file(folder / "/".join(rest[2:]))
                return
        self.send_error(404)

    def _about(self, name: str, folder: Path, what: str, asked: list[str] | None) -> object:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in files]
        if what in ("tree", "paths-info"):
            return [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": _digest(f)}
                for n, f in zip(names, files, strict=True)
                if asked is None or n in asked
            ]
        return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}

    def _send_json(self, content: object) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, path: Path) -> None:
        if path.is_file():
            self._send(path.read_bytes(), {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
