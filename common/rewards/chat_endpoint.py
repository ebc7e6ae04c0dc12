"""Requests to an OpenAI-compatible chat endpoint, with time limits and retries.

It speaks the one call that servers of many makers understand, `POST <url>/chat/completions`, and
needs the standard library alone. Redirects are not followed, since they would take the key along.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from common.console import clean

# The standard library's HTTP client is imported when it is used: it takes longer to load than all
# rules that scan a text, and every worker process imports them all.
if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.error import HTTPError
    from urllib.request import OpenerDirector

MAX_REPLY_BYTES = 4 << 20
FIRST_PAUSE = 0.5
"""Seconds before the second try; each further pause is twice as long."""
LONGEST_PAUSE = 60.0
"""Seconds; an endpoint that asks for more (`Retry-After`) is asked again after this."""
WORTH_RETRYING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that may be gone at the next try."""

Parsed = TypeVar("Parsed")


class EndpointError(Exception):
    """The endpoint gave no usable reply; the message says why, without the key."""

    def __init__(self, reason: str, *, may_pass: bool, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        """Whether another try may succeed."""
        self.pause = pause
        """Seconds that the endpoint asks to wait."""


@dataclass(frozen=True)
class Reply:
    """What a model said, and what it cost."""

    content: str
    finish_reason: str | None
    input_tokens: int
    output_tokens: int


@cache
def _opener() -> OpenerDirector:
    import urllib.request

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> None:
            return None

    return urllib.request.build_opener(NoRedirects)


@dataclass(frozen=True)
class ChatEndpoint:
    """One endpoint; may be used by several threads at once."""

    url: str
    """Without `/chat/completions`."""
    key: str
    """Sent as a bearer token; empty for none."""
    seconds: float
    """Longest time for one try."""
    retries: int
    """How often a failed try is repeated."""

    def ask(
        self, body: dict[str, Any], parse: Callable[[Reply], Parsed], on_try: Callable[[], None]
    ) -> Parsed:
        """Send a request, and return what `parse` makes of the reply.

        Args:
            body: of the request, as JSON.
            parse: raises `EndpointError` for a reply that cannot be used.
            on_try: called before each try.

        Raises:
            EndpointError: no try gave a usable reply; it is that of the last.
        """
        for attempt in range(self.retries + 1):
            on_try()
            try:
                return parse(self._try(body))
            except EndpointError as error:
                if not error.may_pass or attempt == self.retries:
                    raise
                time.sleep(min(max(FIRST_PAUSE * 2**attempt, error.pause), LONGEST_PAUSE))
        raise AssertionError

    def _try(self, body: dict[str, Any]) -> Reply:
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        deadline = time.monotonic() + self.seconds
        try:
            with _opener().open(request, timeout=self.seconds) as response:
                content = _read(response, deadline)
        except HTTPError as error:
            raise self._refusal(error) from None
        except TimeoutError:
            raise self._failure(f"no reply within {self.seconds:g} s") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise self._failure(f"{type(reason).__name__}: {reason}") from None
        return self._reply(content)

    def _refusal(self, error: HTTPError) -> EndpointError:
        from http.client import HTTPException

        try:
            said = " ".join(error.read(2000).decode(errors="replace").split())
        except (OSError, HTTPException):
            said = ""
        pause = error.headers.get("Retry-After", "") if error.headers else ""
        return self._failure(
            f"HTTP {error.code} {said:.200}".strip(),
            may_pass=error.code in WORTH_RETRYING,
            pause=float(pause) if pause.isascii() and pause.isdigit() else 0.0,
        )

    def _failure(self, reason: str, *, may_pass: bool = True, pause: float = 0.0) -> EndpointError:
        hidden = reason.replace(self.key, "***") if self.key else reason
        return EndpointError(clean(f"{self.url}: {hidden}"), may_pass=may_pass, pause=pause)

    def _reply(self, content: bytes) -> Reply:
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            usage = answer.get("usage") or {}
            if not isinstance(text, str) or not isinstance(usage, dict):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            shown = content[:100].decode(errors="replace")
            raise self._failure(f"the reply is no chat completion: {shown!r}") from None
        return Reply(
            text,
            choice.get("finish_reason"),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )


def _read(response: HTTPResponse, deadline: float) -> bytes:
    """Return the whole of a reply that ends in time."""
    content = b""
    while part := response.read1(1 << 16):
        content += part
        if len(content) > MAX_REPLY_BYTES:
            raise ValueError("the reply is longer than 4 MiB")
        if time.monotonic() > deadline:
            raise TimeoutError
    return content


def _count(tokens: Any) -> int:
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0 else 0
