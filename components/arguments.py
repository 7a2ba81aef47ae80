"""What a component's arguments must look like; everything here refuses before a job exists."""

from __future__ import annotations

import difflib
import itertools
import re
import sys

from fsspec import available_protocols

from app.errors import holds_credentials, printable, redact
from components.image_registry import split_reference

_NODES = re.compile(r"([0-9]+)(?::([0-9]+))?")
_MOST_NODES = 256  # TorchX writes a task of some 5 KB a node, and the API server takes objects of 1.5 MB
_SPEAK_S3 = ("obs", "cos", "ks3", "minio", "ceph")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SWALLOWED = re.compile(r"""["'].*[,;]\s*[A-Za-z_][A-Za-z0-9_]*=""", re.DOTALL)
# A DNS subdomain, as Kubernetes names Secrets and accounts, with room for what is appended ("-rdzv").
_OBJECT = re.compile(r"(?=.{1,240}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# As the registries' reference grammar has it (github.com/distribution/reference): a domain may have capitals and a
# port, the path may not have capitals, then a tag, a digest, or both.
_IMAGE = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::\d+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?"
)
_SECRET_WORDS = {
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "TOKEN",
    "CREDENTIAL",
    "CREDENTIALS",
    "APIKEY",
    "ACCESSKEY",
    "SECRETKEY",
    "PRIVATEKEY",
}
_LAST_WORDS = {"PASS", "PWD", "PAT", "SAS", "SIGNATURE"}  # secrets where a name ends so
_KEY_KINDS = {"API", "ACCESS", "PRIVATE", "SECRET", "ACCOUNT", "STORAGE", "ENCRYPTION", "SIGNING", "AUTH"}
_PLACE_WORDS = {"FILE", "PATH", "DIR", "FOLDER", "URI", "ENDPOINT"}  # where a secret is, not what it is


class ComponentError(ValueError):
    """An argument of a component that does not fit; says what it takes, and repeats no credential of a URL."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(redact(str(message))))


def note(text: str) -> None:
    """Tell the submitter, beside what is printed for programs."""
    print(printable(redact(f"note: {text}")), file=sys.stderr)


def parse_nodes(text: str) -> tuple[int, int]:
    """``"4"`` -> (4, 4), ``"2:4"`` -> (2, 4).

    Raises:
        ComponentError: it is neither.
    """
    match = _NODES.fullmatch(text)
    if match is None:
        raise ComponentError(f"--nnodes must be N or MIN:MAX, as in 4 or 2:4; got {text!r}")
    least = int(match[1])
    most = int(match[2]) if match[2] else least
    if not 1 <= least <= most:
        raise ComponentError(f"--nnodes {text}: the least number must be at least 1 and not above the most")
    if most > _MOST_NODES:
        raise ComponentError(f"--nnodes {text[:40]}: more than {_MOST_NODES}, which is what fits into one Volcano job")
    return least, most


def parse_switch(option: str, text: str) -> bool:
    """True or False, in any case; TorchX takes whatever is not "true" for False.

    Raises:
        ComponentError: it is neither.
    """
    if text.lower() not in ("true", "false"):
        raise ComponentError(f"{option} must be True or False; got {text!r}")
    return text.lower() == "true"


def check_number(option: str, value: float, least: int, most: int | None = None) -> None:
    """Refuse a number out of its range.

    Raises:
        ComponentError: names the option and the range.
    """
    if not least <= value or (most is not None and value > most):  # NaN is out of every range
        span = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ComponentError(f"{option} must be {span}; got {value}")


def check_object_name(option: str, name: str) -> None:
    """Refuse what cannot be the name of a Kubernetes object; empty means none.

    Raises:
        ComponentError: names the option.
    """
    if name and not _OBJECT.fullmatch(name):
        raise ComponentError(
            f"{option} {name[:60]!r} is no name of an object: small letters and digits, '-' and '.' inside, at most 240"
        )


def check_run_name(name: str) -> None:
    """Refuse what is not one folder's name below the output.

    Raises:
        ComponentError: it is more than that, too long, cannot be seen, or would be taken for an option.
    """
    odd = name.strip() != name or name.startswith("--") or "/" in name or not name.isprintable()
    if odd or name in ("", ".", "..") or len(name) > 200:
        raise ComponentError(
            f"--name {name[:60]!r} is no name of a folder: up to 200 characters on one line, without a slash, "
            "two dashes in front or spaces around it"
        )


def check_url(option: str, text: str) -> None:
    """Refuse a URL of a kind that no storage driver knows; several stand between commas.

    Raises:
        ComponentError: names the scheme, and the nearest that is known.
    """
    known = set(available_protocols())
    for url in text.split(","):
        scheme, found, rest = url.strip().partition("://")
        if found and scheme.partition("::")[0] not in known:
            near = difflib.get_close_matches(scheme, known, 1, 0.5)
            hint = f"did you mean {near[0]}://? " if near else ""
            if scheme in _SPEAK_S3:
                hint = f"that store speaks S3: s3://{rest} with its endpoint as AWS_ENDPOINT_URL in the Secret; "
            raise ComponentError(
                f"{option} {url}: no storage is known as {scheme}://; {hint}s3://, gs://, oss:// and https:// are"
            )
        if found and not rest.strip("/") and scheme != "memory":
            raise ComponentError(f"{option} {url}: no bucket behind {scheme}://")
        if not url.isprintable():
            raise ComponentError(f"{option} {url!r}: characters that cannot be seen")


def verbatim(text: str) -> str:
    """What the user wrote, such that TorchX hands it on so: it would fill in ``${app_id}`` and make ``$$`` a ``$``."""
    return text.replace("$", "$$")


def as_handed_on(text: str) -> str:
    """What TorchX makes of ``verbatim``."""
    return text.replace("$$", "$")


def job_name(text: str) -> str:
    """A name that Kubernetes takes and that leaves room for what TorchX and Volcano append to it (63 characters).

    It begins with a letter: Volcano makes a Service of the job's name, and Services must (RFC 1035).
    """
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "arcface"
    if not cleaned[0].isalpha():
        cleaned = f"run-{cleaned}"
    return cleaned[:30].rstrip("-")


def is_path(image: str) -> bool:
    """Whether an image is a folder or file, as schedulers without containers take it."""
    return image.startswith(("/", "./", "../", "~")) or image in (".", "..")


def check_image(image: str) -> None:
    """Refuse an image that is not set, that no registry can have, or that moves under a running job.

    Raises:
        ComponentError: it is empty, not a reference, or of the tag latest, which no tag means too.
    """
    if not image:
        raise ComponentError("no image: pass --image, or set it in .torchxconfig under [component:components.py:...]")
    if is_path(image):
        return
    if not _IMAGE.fullmatch(image):
        hint = f"; did you mean {image.lower()!r}?" if _IMAGE.fullmatch(image.lower()) else ""
        raise ComponentError(
            f"image {image!r} is no image reference: REGISTRY/NAME:TAG in small letters, without spaces{hint}"
        )
    if split_reference(image)[2] == "latest":
        raise ComponentError(
            f"image {image!r}: a tag that moves gives nodes different code; name a version or a digest"
        )


# Options of the app that the component itself gives, and what is meant instead.
_GIVEN = {
    "recipe": "give --recipe before the --",
    "name": "give --name before the --",
    "data.url": "give --data before the --",
    "output.url": "give --output before the --",
    "train.max_processes": "it follows from --nnodes and --nproc_per_node",
    "output.prometheus_port": "the cluster looks for metrics at the component's",
}
_QUESTIONS = ("help", "version", "list_recipes", "print_config")  # a job would answer them and train nothing


def check_app_options(words: tuple[str, ...]) -> None:
    """Refuse, behind ``--``, what the component gives the app itself, and questions.

    Raises:
        ComponentError: names the option and what to do.
    """
    for word in words:
        option = word.partition("=")[0]
        key = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--"):
            continue
        if key in _GIVEN:
            raise ComponentError(f"{option} behind the -- would contradict the component: {_GIVEN[key]}")
        if key in _QUESTIONS:
            raise ComponentError(f"{option} is answered here, not by a job: python -m app.train {option}")


_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_environment(env: dict[str, str]) -> None:
    """Refuse secrets among environment variables: whoever may read the job could read them.

    Raises:
        ComponentError: a variable's name is that of a secret or of one that torchrun sets, or its value a URL with a
            password.
    """
    for name, value in env.items():
        if _names_a_secret(name) and value:
            raise ComponentError(
                f"--env {name}: the value would stand in the job for all to read; put it into the Secret that --secret "
                "names, all of whose keys become environment variables"
            )
        if not _VARIABLE.fullmatch(name):
            raise ComponentError(f"--env {name!r} is no name of a variable: letters, digits and _, no digit first")
        if name in _OF_TORCHRUN or name.startswith("TORCHELASTIC_"):
            raise ComponentError(f"--env {name}: torchrun sets it for each process; leave it out")
        if _SWALLOWED.search(value):
            # TorchX pairs a quote with the next one, wherever that is.
            raise ComponentError(f"--env {name}: a quote in its value swallows the variables behind it: give it last")
        check_no_password(f"--env {name}", value)


def _names_a_secret(name: str) -> bool:
    words = [word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word]
    if not words or words[-1] in _PLACE_WORDS or name == "GOOGLE_APPLICATION_CREDENTIALS":
        return False
    keys = any(kind in _KEY_KINDS and word in ("KEY", "KEYS") for kind, word in itertools.pairwise(words))
    keys = keys or (words[0] == "FSSPEC" and words[-1] == "KEY") or (len(words) > 1 and words[-1] in _LAST_WORDS)
    return keys or bool(_SECRET_WORDS.intersection(words)) or words[-2:] == ["CONNECTION", "STRING"]


def check_no_password(what: str, value: str) -> None:
    """Refuse ``scheme://user:password@host``, ``scheme://token@host``, signed URLs, and JSON with a secret in it.

    Raises:
        ComponentError: the value is such a one; the message does not repeat it.
    """
    if holds_credentials(value):
        raise ComponentError(
            f"{what}: a URL with a password, token or signature would stand in the job for all to read; put keys into "
            "the Secret that --secret names"
        )
