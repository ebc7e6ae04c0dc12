"""A chat endpoint on this machine: real HTTP, with the faults that such endpoints have."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the server does about one request."""

    content: str | None = '{"score": 1}'
    status: int = 200
    raw: bytes | None = None
    """The whole body, instead of a chat completion."""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    """Seconds before it answers."""
    close: bool = False
    """Close the connection without an answer."""
    finish_reason: str = "stop"


Respond = Callable[[dict[str, Any]], Answer]
"""A function from the JSON that the request's user message holds to what the server does."""


class ChatServer:
    """The server, and all that was asked of it."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.requests: list[dict[str, Any]] = []
        """The bodies, in order of arrival."""
        self.headers: list[dict[str, str]] = []
        self.at_once = 0
        """The largest number of requests at the same time."""
        self._now = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server._serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(body)
            self.headers.append(dict(handler.headers) | {"path": handler.path})
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        try:
            answer = self.respond(json.loads(body["messages"][-1]["content"]))
            time.sleep(answer.wait)
            if answer.close:
                return
            content = answer.raw
            if content is None:
                content = json.dumps(_completion(answer)).encode()
            handler.send_response(answer.status)
            for name, value in answer.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            pass  # the other side did not wait
        finally:
            with self._lock:
                self._now -= 1


def _completion(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.content}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


@contextmanager
def chat_server(respond: Respond) -> Iterator[ChatServer]:
    """A server that runs until the context ends."""
    server = ChatServer(respond)
    try:
        yield server
    finally:
        server.close()
