"""A deadline for each request to the API server: one that accepts and stays silent would be waited for without end.

The Kubernetes client has none of its own. A load balancer whose server has died, or a firewall that has forgotten the
connection, looks exactly like this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from urllib3.exceptions import ReadTimeoutError
from urllib3.util.retry import Retry

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 65.0  # an API server gives up on a request after 60 and says so
SILENCE_SECONDS = 600.0  # of a stream: a job may be quiet for minutes while it loads


class _Retry(Retry):
    """Asks again as urllib3 does, but not one who has just let the whole deadline pass."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> Self:
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class _Request:
    """``RESTClientObject.request`` with a deadline where none is given."""

    def __init__(self, request: Callable[..., Any]) -> None:
        self._request = request

    def __call__(self, method: str, url: str, *args: Any, _request_timeout: Any = None, **options: Any) -> Any:
        asked = parse_qs(urlsplit(url).query)
        stream = "true" in (value.lower() for name in ("follow", "watch") for value in asked.get(name, []))
        limit = (CONNECT_SECONDS, SILENCE_SECONDS if stream else ANSWER_SECONDS)
        return self._request(method, url, *args, _request_timeout=_request_timeout or limit, **options)


def bound(client: Any) -> Any:
    """Give each request of a ``kubernetes.client.ApiClient`` a deadline, in place; returns the client."""
    rest = client.rest_client
    if not isinstance(rest.request, _Request):
        rest.request = _Request(rest.request)
        rest.pool_manager.connection_pool_kw.setdefault("retries", _Retry(3))
    return client


def follow(read: Callable[[], Iterable[str]], still_there: Callable[[], object]) -> Iterator[str]:
    """Lines of a log as they come. Where none has come for ``SILENCE_SECONDS``, it is opened anew behind the last one.

    Args:
        read: opens the log at its beginning; its lines hold the API server's time stamps.
        still_there: fails when the server does not answer or the pod is gone.
    """
    last = ""
    while True:
        known = last
        try:
            for line in read():
                stamp = _stamp(line)
                if stamp and stamp <= known:
                    continue  # told before the log was opened anew
                last = stamp or last
                yield line
            return
        except ReadTimeoutError:
            still_there()


def _stamp(line: str) -> str:
    """``2026-01-01T00:00:00.000000000Z`` of ``trainer/0 2026-01-01T00:00:00.000000000Z text``; empty without one."""
    words = line.split(maxsplit=2)[:2]
    return next((word for word in words if word[:1].isdigit() and "T" in word and word.endswith("Z")), "")
