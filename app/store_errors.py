"""What a store's answer means: one table from error codes to a sentence for the user and whether it may pass.

Stores name their errors by a code (``NoSuchKey``) in the body; the answer to a HEAD has no body, so there the HTTP
status is all there is. Drivers wrap both in exceptions of many kinds and keep the original as the cause; what decides
is found along that chain, never in the words of a message.

Source of the codes: the S3 API reference, "Error responses"; Alibaba OSS and Huawei OBS add a few, Azure's are those of
its "Blob Storage error codes", Google's stores have HTTP's statuses alone.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_STYLE = "the store wants virtual-hosted addresses: set AWS_S3_ADDRESSING_STYLE=virtual"
_DENIED = (
    "access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy (without ListBucket "
    "a missing object is answered like this too)"
)
_BUSY = "the store is overloaded or out of order for now"


@dataclass(frozen=True)
class Meaning:
    """``sentence``: what it means and what to do; ``{bucket}`` is filled in. ``kind``: absent, denied... or empty."""

    sentence: str
    transient: bool = False
    kind: str = ""


# Codes and, as text, HTTP statuses.
MEANINGS: dict[str, Meaning] = {
    "NoSuchKey": Meaning("it does not exist; check the URL", kind="absent"),
    "NoSuchVersion": Meaning("this version of it does not exist any more; check the URL", kind="absent"),
    "404": Meaning("it does not exist; check the URL", kind="absent"),
    "NotFound": Meaning("it does not exist; check the URL", kind="absent"),
    "410": Meaning("it does not exist any more; check the URL", kind="absent"),
    "NoSuchBucket": Meaning("the bucket {bucket!r} does not exist; create it or correct the URL"),
    "AccessDenied": Meaning(_DENIED, kind="denied"),
    "AllAccessDisabled": Meaning(_DENIED, kind="denied"),
    "403": Meaning(_DENIED, kind="denied"),
    "Forbidden": Meaning(_DENIED, kind="denied"),
    "401": Meaning(f"the store wants credentials; {_KEYS}"),
    "InvalidAccessKeyId": Meaning(f"the store does not know these credentials; {_KEYS}"),
    "SignatureDoesNotMatch": Meaning(f"the store does not know these credentials; {_KEYS}"),
    "ExpiredToken": Meaning("the session token has expired; renew AWS_SESSION_TOKEN and its keys", transient=True),
    "InvalidToken": Meaning("the session token is not valid; renew AWS_SESSION_TOKEN and its keys"),
    # Another node may have the right time: one that has not must not end the job for all.
    "RequestTimeTooSkewed": Meaning("this machine's clock differs from the store's; set it (NTP)", transient=True),
    "RequestExpired": Meaning("this machine's clock differs from the store's; set it (NTP)", transient=True),
    "InvalidObjectState": Meaning("the object is archived; restore it to a class that can be read at once"),
    "SecondLevelDomainForbidden": Meaning(_STYLE),
    "VirtualHostDomainRequired": Meaning(_STYLE),
    "PermanentRedirect": Meaning("the bucket lies elsewhere; set AWS_ENDPOINT_URL or AWS_DEFAULT_REGION to its place"),
    "AuthorizationHeaderMalformed": Meaning("the bucket lies in another region; set AWS_DEFAULT_REGION"),
    "301": Meaning("the bucket lies elsewhere; set AWS_ENDPOINT_URL or AWS_DEFAULT_REGION to its place"),
    "PreconditionFailed": Meaning("it was replaced while it was in use", kind="precondition"),
    "ConditionalRequestConflict": Meaning("somebody else is writing it", kind="precondition"),
    "412": Meaning("it was replaced while it was in use", kind="precondition"),
    "InvalidRange": Meaning("it ends before the bytes that were asked for: it is truncated or was replaced"),
    "416": Meaning("it ends before the bytes that were asked for: it is truncated or was replaced"),
    "NotImplemented": Meaning("the store does not know how to do this", kind="unsupported"),
    "501": Meaning("the store does not know how to do this", kind="unsupported"),
    "QuotaExceeded": Meaning("the store is full or over its quota; make room and start again"),
    "InternalError": Meaning(_BUSY, transient=True),
    "ServiceUnavailable": Meaning(_BUSY, transient=True),
    "SlowDown": Meaning(_BUSY, transient=True),
    "Throttling": Meaning(_BUSY, transient=True),
    "ThrottlingException": Meaning(_BUSY, transient=True),
    "TooManyRequests": Meaning(_BUSY, transient=True),
    "RequestLimitExceeded": Meaning(_BUSY, transient=True),
    "BandwidthLimitExceeded": Meaning(_BUSY, transient=True),
    "OperationAborted": Meaning("another request on the same object is under way", transient=True),
    "RequestTimeout": Meaning("the connection was idle for too long", transient=True),
    "IncompleteBody": Meaning("the store received only a part", transient=True),
    "BadDigest": Meaning("what the store received is not what was sent", transient=True),
    "XAmzContentSHA256Mismatch": Meaning("what the store received is not what was sent", transient=True),
    # Azure
    "ServerBusy": Meaning(_BUSY, transient=True),
    "OperationTimedOut": Meaning("the store did not answer in time", transient=True),
    "Md5Mismatch": Meaning("what the store received is not what was sent", transient=True),
    "BlobNotFound": Meaning("it does not exist; check the URL", kind="absent"),
    "ResourceNotFound": Meaning("it does not exist; check the URL", kind="absent"),
    "ContainerNotFound": Meaning("the container {bucket!r} does not exist; create it or correct the URL"),
    "ContainerBeingDeleted": Meaning("the container {bucket!r} is being deleted; take another"),
    "BlobArchived": Meaning("the object is archived; restore it to a class that can be read at once"),
    "BlobBeingRehydrated": Meaning("the object is archived, and on its way back", transient=True),
    "BlobAlreadyExists": Meaning("somebody else is writing it", kind="precondition"),
    "ConditionNotMet": Meaning("it was replaced while it was in use", kind="precondition"),
    "TargetConditionNotMet": Meaning("it was replaced while it was in use", kind="precondition"),
    "AuthenticationFailed": Meaning("the store does not accept these credentials, or this machine's clock; check both"),
    "AuthorizationFailure": Meaning(_DENIED, kind="denied"),
    "AuthorizationPermissionMismatch": Meaning(_DENIED, kind="denied"),
    "InsufficientAccountPermissions": Meaning(_DENIED, kind="denied"),
    "408": Meaning("the store waited too long for the request", transient=True),
    "409": Meaning("another request on the same object is under way", transient=True),
    "423": Meaning("somebody else has it locked for now", transient=True),
    "425": Meaning(_BUSY, transient=True),
    "429": Meaning(_BUSY, transient=True),
}

# Of the host's own files; a network's file system answers like this while its server is away.
_AWAY = Meaning("the file system's server does not answer as it should", transient=True)
_ERRNOS: dict[int, Meaning] = {
    errno.ENOSPC: Meaning("the disk is full; make room and start again"),
    errno.EDQUOT: Meaning("the quota of this disk is used up; make room and start again"),
    errno.EFBIG: Meaning("the file is larger than this process may write; raise its limit (ulimit -f)"),
    errno.EROFS: Meaning("the file system is read-only; take another place, or mount it for writing", kind="denied"),
    errno.EMFILE: Meaning("this process has too many open files; raise its limit (ulimit -n)", transient=True),
    errno.ENETUNREACH: Meaning("the store's network cannot be reached", transient=True, kind="unreachable"),
    errno.EHOSTUNREACH: Meaning("the store's host cannot be reached", transient=True, kind="unreachable"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.EREMOTEIO), _AWAY),
}

_NO_FOLDER = Meaning("a part of this path is a file, not a folder; correct the path", kind="absent")
_NO_RIGHTS = Meaning("this user may not; check the rights of the file and its folder", kind="denied")

# Exceptions of drivers, by the name of their class (or of a base): these libraries need not be installed.
_CONNECTION = Meaning(
    "the store does not answer; check the URL's host, or AWS_ENDPOINT_URL", transient=True, kind="unreachable"
)
_BROKEN = Meaning("the connection to the store broke off", transient=True)
_SLOW = Meaning("the store did not answer in time", transient=True)
_CLASSES: dict[str, Meaning] = {
    "NoCredentialsError": Meaning("no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "PartialCredentialsError": Meaning(
        "one of the two keys is missing; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ),
    "SSLError": Meaning("the store's certificate is not trusted; name its authority's PEM file in AWS_CA_BUNDLE"),
    "SSLCertVerificationError": Meaning(
        "the store's certificate is not trusted; name its authority's PEM file in AWS_CA_BUNDLE"
    ),
    "ClientConnectorCertificateError": Meaning(
        "the store's certificate is not trusted; name its authority's PEM file in AWS_CA_BUNDLE"
    ),
    "ConnectTimeoutError": _CONNECTION,
    "ReadTimeoutError": _SLOW,
    "FSTimeoutError": _SLOW,
    "EndpointConnectionError": _CONNECTION,
    "ClientConnectorError": _CONNECTION,
    "ConnectionClosedError": _BROKEN,
    "IncompleteReadError": _BROKEN,
    "IncompleteRead": _BROKEN,
    "ResponseStreamingError": _BROKEN,
    "ResponseParserError": _BROKEN,
    "ClientPayloadError": _BROKEN,
    "ServerDisconnectedError": _BROKEN,
    "ClientOSError": _BROKEN,
    # requests, urllib3 and httpx, which the drivers of other stores use
    "ConnectTimeout": _CONNECTION,
    "NewConnectionError": _CONNECTION,
    "ConnectError": _CONNECTION,
    "ServiceRequestError": _CONNECTION,  # azure.core
    "TransportError": _BROKEN,  # google.auth, httpx
    "ReadTimeout": _SLOW,
    "ChunkedEncodingError": _BROKEN,
    "ProtocolError": _BROKEN,
    "ServiceResponseError": _BROKEN,
    "DefaultCredentialsError": Meaning("no credentials; set GOOGLE_APPLICATION_CREDENTIALS"),
    "RefreshError": Meaning("the credentials cannot be renewed; look at GOOGLE_APPLICATION_CREDENTIALS"),
    "NoRangesError": Meaning(
        "the server does not know ranges; serve the files with one that does (nginx, S3), or copy them"
    ),
    "EncodedError": Meaning("the server compresses what it sends; have it send these files as they are"),
    "TooManyRedirects": Meaning("its server redirects in a ring; correct the URL or the server"),
    "StrangeAnswerError": Meaning("what answers is not the store, but something before it", transient=True),
    "WrongRangeError": Meaning(
        "the server, or a cache before it, sent another range than was asked for", transient=True
    ),
    "ChecksumError": Meaning("what arrived is not what the store sent", transient=True),
    "FlexibleChecksumError": Meaning("what arrived is not what the store sent", transient=True),
}
# Wrappers that say little: what they wrap is asked first.
_WRAPPERS: dict[str, Meaning] = {
    **dict.fromkeys(("HTTPClientError", "ClientConnectionError"), _BROKEN),
    "ConnectionError": _BROKEN,  # of requests, too
    "RequestError": _BROKEN,  # oss2, httpx
}


def explain(error: BaseException) -> tuple[Meaning, str]:
    """What an exception of a storage driver means, and the store's own words (empty where they add nothing).

    The chain of causes is asked from the outside in, each link first for its code, then for its class.
    """
    unknown = ""
    for link in _chain(error):
        code, status, words = _answer(link)
        for key in (code, str(status or "")):
            if key in MEANINGS:
                return MEANINGS[key], words
        if status and status >= 500:
            return Meaning(_BUSY, transient=True), words or f"HTTP {status}"
        unknown = unknown or (f"{code}: {words}" if code else "")
    links = list(_chain(error))
    for classes in (_CLASSES, _WRAPPERS):
        for link in links:
            # fsspec's driver for http calls everything that goes wrong "not found": what it wraps knows better.
            if isinstance(link, FileNotFoundError) and link.__cause__ is not None and link is not links[-1]:
                continue
            if found := _meaning_of_class(link, classes):
                return found, " ".join(str(link).split())
    if any(isinstance(link, FileNotFoundError) for link in links):
        return MEANINGS["NoSuchKey"], ""
    text = unknown or f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    return Meaning(text), ""


def is_broken(error: BaseException) -> bool:
    """Whether the connection broke off, and nothing else."""
    return explain(error)[0] is _BROKEN


def _meaning_of_class(error: BaseException, classes: dict[str, Meaning]) -> Meaning | None:
    bundle = os.environ.get("AWS_CA_BUNDLE", "")
    if bundle and not os.path.isfile(bundle):
        return Meaning(f"AWS_CA_BUNDLE is {bundle}, which is not a file; correct it or unset it")
    for kind in type(error).__mro__:
        if kind.__name__ in classes:
            return classes[kind.__name__]
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return _ERRNOS[error.errno]
    if isinstance(error, ConnectionRefusedError):
        return _CONNECTION
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return _SLOW
    if isinstance(error, ConnectionError | HTTPException | asyncio.IncompleteReadError):
        return _BROKEN
    if isinstance(error, FileNotFoundError):
        return MEANINGS["NoSuchKey"]
    if isinstance(error, FileExistsError) and error.filename:
        return Meaning("a file stands where a folder must be; take it away, or take another place")
    if isinstance(error, NotADirectoryError):
        return _NO_FOLDER
    if isinstance(error, IsADirectoryError):
        return Meaning("it is a folder, where a file is expected; correct the path")
    if isinstance(error, PermissionError):
        # The system's own names the path; what drivers make of an answer does not.
        return _NO_RIGHTS if error.filename else MEANINGS["AccessDenied"]
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _answer(error: BaseException) -> tuple[str, int, str]:
    """Code, HTTP status and sentence of the store's answer, where the exception carries one.

    botocore has a dictionary, aiohttp ``status``, azure ``status_code`` and ``error_code``, google, gcsfs and urllib
    ``code``, which is the status, oss2 ``code`` and ``status``, requests and httpx a ``response``.
    """
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        about, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        return str(about.get("Code", "")), int(meta.get("HTTPStatusCode") or 0), str(about.get("Message", ""))
    code = getattr(error, "error_code", None) or inspect.getattr_static(error, "code", None)  # aiohttp warns of its own
    places = (getattr(error, "status", None), getattr(error, "status_code", None), code)
    status = next(filter(None, map(_status, (*places, getattr(response, "status_code", None)))), 0)
    if not status:
        return "", 0, ""
    text = getattr(error, "message", None)
    name = code if isinstance(code, str) and not code.isdecimal() else ""
    return name, status, " ".join(text.split()) if isinstance(text, str) else ""


def _status(value: object) -> int:
    """An HTTP status, also where it is a text; 0 for what is none."""
    if isinstance(value, str) and value.isdecimal() and len(value) == 3:
        value = int(value)
    return int(value) if isinstance(value, int) and 100 <= value < 600 else 0
