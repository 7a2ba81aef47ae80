"""What a store's answer means: codes and statuses decide, wherever the driver keeps them; a proxy that misbehaves."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from http import HTTPStatus

import aiohttp
import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, IncompleteReadError
from s3fs.errors import translate_boto_error

from app import storage
from app.errors import AppError
from app.storage import StorageError
from app.store_errors import MEANINGS, explain


def answer(code: str, status: int, message: str = "") -> Exception:
    error = ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "GetObject",
    )
    translated: Exception = translate_boto_error(error)
    return translated


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("SlowDown", 503),
        ("ServiceUnavailable", 503),
        ("InternalError", 500),
        ("", 502),
        ("502", 502),
        ("504", 504),
        ("SomethingNew", 599),
        ("429", 429),
        ("TooManyRequests", 429),
        ("OperationAborted", 409),
        ("RequestTimeout", 400),
        ("BadDigest", 400),
        ("RequestTimeTooSkewed", 403),
        ("ExpiredToken", 400),
    ],
)
def test_what_may_pass_is_transient(code: str, status: int) -> None:
    assert explain(answer(code, status))[0].transient


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("NoSuchKey", 404, "does not exist"),
        ("404", 404, "does not exist"),
        ("AccessDenied", 403, "access denied"),
        ("InvalidAccessKeyId", 403, "does not know these credentials"),
        ("InvalidObjectState", 403, "archived"),
        ("SecondLevelDomainForbidden", 403, "AWS_S3_ADDRESSING_STYLE=virtual"),
        ("NotImplemented", 501, "does not know how"),
    ],
)
def test_what_stays_says_what_to_do(code: str, status: int, says: str) -> None:
    meaning, _ = explain(answer(code, status))
    assert says in meaning.sentence
    assert not meaning.transient


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        EndpointConnectionError(endpoint_url="http://x"),
        ConnectTimeoutError(endpoint_url="http://x"),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("cut"),
        aiohttp.ClientResponseError(None, (), status=503),  # type: ignore[arg-type]
    ],
)
def test_connections_that_break_are_transient(error: Exception) -> None:
    wrapped = OSError("driver's own")
    wrapped.__cause__ = error
    assert explain(error)[0].transient
    assert explain(wrapped)[0].transient


def test_words_of_a_message_decide_nothing() -> None:
    assert not explain(ValueError("403 timeout slowdown nosuchkey forbidden"))[0].transient
    assert explain(ValueError("403 timeout"))[0].kind == ""


def test_the_stores_own_sentence_is_kept() -> None:
    with pytest.raises(StorageError, match=r"clock.*15 minutes apart") as caught, storage.explained("s3://b/x", "read"):
        raise answer("RequestTimeTooSkewed", 403, "the times are 15 minutes apart")
    assert caught.value.transient


def test_whoever_wraps_an_error_keeps_that_it_may_pass() -> None:
    class Other(AppError):
        pass

    def wrap(inner: AppError) -> AppError:
        try:
            try:
                raise inner
            except AppError as error:
                raise Other("more words") from error
        except AppError as outer:
            return outer

    assert wrap(StorageError("x", transient=True)).transient
    assert not wrap(StorageError("x")).transient
    assert Other("x", transient=True).transient


def test_the_table_knows_every_status_of_a_head_request() -> None:
    assert {"404", "403", "401", "412", "416", "429"} <= MEANINGS.keys()


@pytest.mark.parametrize("ask", [storage.info, storage.exists, storage.read_bytes, storage.list_names])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_web_server_that_is_not_there_cannot_be_reached_rather_than_does_not_hold_the_file(
    scheme: str, ask: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "0")
    with socket.socket() as probe:  # bound and not listening: nobody else gets the port
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(StorageError, match="does not answer; check the URL's host") as caught:
            ask(f"{scheme}://127.0.0.1:{probe.getsockname()[1]}/model.pt")
    assert caught.value.transient
    assert caught.value.kind == "unreachable"


class HttpError(Exception):
    """As drivers of other stores carry an answer: in attributes of these names."""

    def __init__(self, **attributes: object) -> None:
        super().__init__("500 <?xml version='1.0'?><Error><Code>words decide nothing</Code></Error>")
        self.__dict__.update(attributes)


class Response:
    """Of requests and httpx."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


@pytest.mark.parametrize(
    ("error", "transient", "kind"),
    [
        (HttpError(code=HTTPStatus.TOO_MANY_REQUESTS, message="slower"), True, ""),  # google.api_core
        (HttpError(code=408), True, ""),
        (HttpError(code="503"), True, ""),  # gcsfs
        (HttpError(code=423), True, ""),
        (HttpError(code=403), False, "denied"),
        (HttpError(code=404), False, "absent"),
        (HttpError(code=412), False, "precondition"),
        (HttpError(status_code=503, error_code="ServerBusy"), True, ""),  # azure.core
        (HttpError(status_code=500, error_code="OperationTimedOut"), True, ""),
        (HttpError(status_code=404, error_code="BlobNotFound"), False, "absent"),
        (HttpError(status_code=404, error_code="ContainerNotFound"), False, ""),
        (HttpError(status_code=409, error_code="BlobAlreadyExists"), False, "precondition"),
        (HttpError(status_code=403, error_code="AuthorizationPermissionMismatch"), False, "denied"),
        (HttpError(status=503, code="ServiceUnavailable"), True, ""),  # oss2
        (HttpError(status=404, code="NoSuchKey"), False, "absent"),
        (HttpError(response=Response(504)), True, ""),  # requests, httpx
        (HttpError(response=Response(401)), False, ""),
        (HttpError(code=7, status=None, status_code="x"), False, ""),
        (OSError(errno.ESTALE, "Stale file handle", "/mnt/x"), True, ""),
        (OSError(errno.EIO, "Input/output error", "/mnt/x"), True, ""),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True, "unreachable"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), False, ""),
        (FileExistsError(errno.EEXIST, "File exists", "/x/checkpoints"), False, ""),
        (OSError(errno.EROFS, "Read-only file system", "/x"), False, "denied"),
    ],
)
def test_answers_of_other_stores_drivers_and_of_file_systems(error: Exception, transient: bool, kind: str) -> None:
    wrapped = OSError("what fsspec makes of it")
    wrapped.__cause__ = error
    for shown in (error, wrapped):
        meaning, _ = explain(shown)
        assert (meaning.transient, meaning.kind) == (transient, kind), meaning


def test_a_connection_of_requests_that_broke_is_transient_and_a_refused_one_is_unreachable() -> None:
    kind = type("ConnectionError", (OSError,), {})
    assert explain(kind("('Connection aborted.', RemoteDisconnected())"))[0].transient
    assert explain(ConnectionRefusedError())[0].kind == "unreachable"
