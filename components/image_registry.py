"""Is an image in its registry? Asked anonymously, as the OCI distribution specification describes (no pull)."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message

_MANIFEST_TYPES = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)
_TIMEOUT_SECONDS = 10


class RegistryUnknown(Exception):
    """The registry cannot be asked from here: it is out of reach, or wants keys that only the cluster has."""


def split_reference(image: str) -> tuple[str, str, str]:
    """``"ghcr.io/team/arcface:0.1.0"`` -> ("ghcr.io", "team/arcface", "0.1.0"); a digest wins over a tag.

    A first part without a dot, a colon or the name ``localhost`` is not a registry: then it is Docker Hub.
    """
    name, _, digest = image.partition("@")
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, rest
    else:
        registry, path = "docker.io", name
    folder, _, last = path.rpartition("/")
    last, _, tag = last.partition(":")
    repository = f"{folder}/{last}" if folder else last
    if registry == "docker.io":
        registry = "registry-1.docker.io"
        repository = repository if "/" in repository else f"library/{repository}"
    return registry, repository, digest or tag or "latest"


def require_image(image: str) -> str:
    """Return the digest of an image that exists.

    Raises:
        ValueError: the registry says that it has no such image.
        RegistryUnknown: the registry gives no answer to an anonymous question.
    """
    registry, repository, reference = split_reference(image)
    # As container engines do, a registry on this host is spoken to without TLS.
    scheme = "http" if registry.split(":")[0] in ("localhost", "127.0.0.1") else "https"
    url = f"{scheme}://{registry}/v2/{repository}/manifests/{reference}"
    status, headers = _ask(url, token="")
    if status == 401:
        status, headers = _ask(url, token=_anonymous_token(headers.get("WWW-Authenticate", "")))
    if status == 404:
        raise ValueError(f"{registry} has no image {repository}:{reference}: push it, or correct --image")
    if status != 200:
        raise RegistryUnknown(f"{registry} answered {status} to an anonymous question; the cluster may hold the keys")
    return str(headers.get("Docker-Content-Digest", reference))


def _ask(url: str, token: str) -> tuple[int, Message]:
    headers = {"Accept": _MANIFEST_TYPES, **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers, method="HEAD"), timeout=_TIMEOUT_SECONDS
        ) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers
    except OSError as error:
        raise RegistryUnknown(f"{urllib.parse.urlsplit(url).netloc} cannot be reached from here") from error


def _anonymous_token(challenge: str) -> str:
    """A pull token from the place that the registry's challenge names; empty when it gives none."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not challenge.lower().startswith("bearer ") or not fields.get("realm", "").startswith(("https://", "http://")):
        return ""
    query = urllib.parse.urlencode({key: fields[key] for key in ("service", "scope") if key in fields})
    try:
        with urllib.request.urlopen(f"{fields['realm']}?{query}", timeout=_TIMEOUT_SECONDS) as answer:
            found = json.loads(answer.read(1 << 20))
        return str(found.get("token") or found.get("access_token") or "")
    except (OSError, ValueError, AttributeError):
        return ""
