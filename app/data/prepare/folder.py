"""A folder of photographs, one subfolder a person, becomes ``train.rec`` and ``train.idx``; it can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Literal

from PIL import Image

from app import storage
from app.data.prepare.alignment import FaceFinder, Several, align_face, read_landmarks
from app.data.prepare.detection import shared_detector
from app.data.prepare.duplicates import Duplicate, difference_hash, find_duplicates
from app.data.prepare.errors import PrepareError
from app.data.prepare.findings import Findings, Skipped, first_of
from app.data.prepare.foreign import describe_ending
from app.data.prepare.parts import Prepared, pack_part, unpack_part
from app.data.prepare.photograph import (
    ENDINGS,
    Fit,
    PhotographError,
    ending,
    fit_square,
    is_ready,
    is_system_file,
    open_photograph,
    same_name,
    to_jpeg,
)
from app.data.prepare.sheet import draw_before_and_after
from app.data.prepare.source import Source, SourceFile, check_size, same_place
from app.data.record_writer import RecordWriter, write_identity_layout

_PART_IMAGES = 512  # what a stop loses at most: half a minute of a detector on a laptop
MAX_FILE_BYTES = 256 << 20
MIN_SIDE = 8  # pixels of a picture's shorter side, and of what is left of it in the square
_FEW_PEOPLE = "too few pictures"
_DATASET = "beside a train.rec"

Align = Literal["none", "detector"]
Report = Callable[[int, int], None]  # photographs done, of how many


@dataclass(frozen=True)
class FaceOptions:
    """How a photograph becomes a training image of ``size`` x ``size`` pixels.

    With ``landmarks`` (URL; see ``alignment.read_landmarks``) or a detector (``align``) the face is aligned; of
    ``several`` faces the largest is taken, or the picture is left out. Without, the whole picture is made to ``fit``.
    """

    size: int = 112
    quality: int = 95
    fit: Fit = "pad"
    align: Align = "none"
    landmarks: str = ""
    several: Several = "largest"

    def find_faces(self) -> FaceFinder | None:
        """What tells where the faces are; None where the whole picture is taken.

        Raises:
            PrepareError: the options do not fit, the landmark file is none, or the detector is not installed.
        """
        check_size(self.size)
        if self.landmarks and self.align == "detector":
            raise PrepareError("--landmarks gives the points already: leave --align detector out")
        if self.landmarks:
            return read_landmarks(self.landmarks)
        return shared_detector() if self.align == "detector" else None


@dataclass(frozen=True)
class FolderOptions:
    """What of a folder becomes a dataset.

    ``person``: which folder of a path names the person, the first below the source or the last. ``min_images``: people
    with fewer are left out. ``duplicates``: ``report`` lists them, ``drop`` keeps the first of each person's.
    ``strict``: refuse to leave any picture out. ``sheet``: pictures on the sheet of before and after; 0: no sheet.
    """

    face: FaceOptions = field(default_factory=FaceOptions)
    person: Literal["first", "last"] = "first"
    min_images: int = 1
    duplicates: Literal["report", "drop"] = "report"
    strict: bool = False
    sheet: int = 24
    workers: int = 8

    def __post_init__(self) -> None:
        for name, value, least in (
            ("min-images", self.min_images, 1),
            ("sheet", self.sheet, 0),
            ("workers", self.workers, 1),
        ):
            if value < least:
                raise PrepareError(f"--{name} must be {least} or more, got {value}")


@dataclass(frozen=True)
class Job:
    """One photograph to prepare."""

    person: str
    file: SourceFile


def list_jobs(
    source: Source, person: Literal["first", "last"], apart: Sequence[str]
) -> tuple[list[Job], list[Skipped]]:
    """Photographs by person, then name; and all that is not taken, with the reason.

    Args:
        apart: paths below the source that are not looked at: the output, where it lies there.

    Raises:
        PrepareError: there is no photograph.
    """
    jobs, skipped, people = [], [], set()
    datasets = {file.name.rpartition("/")[0] for file in source.files if file.name.endswith("/train.rec")}
    for file in source.files:
        if any(name and (file.name == name or file.name.startswith(f"{name}/")) for name in apart):
            continue
        folder, _, _ = file.name.rpartition("/")
        if is_system_file(file.name):
            skipped.append(Skipped(file.name, "system file", ""))
        elif folder in datasets:  # an earlier output, whose sheet.png is no picture of a person
            skipped.append(Skipped(file.name, _DATASET, ""))
        elif ending(file.name) not in ENDINGS and ending(file.name):
            skipped.append(Skipped(file.name, *describe_ending(ending(file.name))))
        elif not file.regular:
            skipped.append(Skipped(file.name, "not a file", "a link to nowhere, a pipe or a device"))
        elif not folder:
            skipped.append(Skipped(file.name, "in no person's folder", ""))
        elif file.size > MAX_FILE_BYTES:
            skipped.append(Skipped(file.name, "too large", f"{file.size} bytes"))
        else:
            name = same_name(folder.split("/", 1)[0] if person == "first" else folder)
            people.add(name)
            jobs.append(Job(name, file))
    for folder in set(source.folders) - datasets:
        plain = same_name(folder)
        known = any(other == plain or other.startswith(f"{plain}/") for other in people)
        top = "/" not in folder and not is_system_file(folder) and folder not in [name.split("/")[0] for name in apart]
        if top and not known:
            skipped.append(Skipped(f"{folder}/", "person without a picture", ""))
    if not jobs and source.is_file:
        raise PrepareError(f"{storage.redact(source.url)}: a file: name the folder with one subfolder a person")
    if not jobs:
        raise PrepareError(
            f"{storage.redact(source.url)}: no images there: expected one subfolder a person, with .jpg, .png or "
            f"another of {len(ENDINGS)} kinds{first_of(skipped)}"
        )
    return sorted(jobs, key=lambda job: (job.person, job.file.name)), skipped


def prepare_folder(source: str, output: str, options: FolderOptions | None = None, report: Report | None = None) -> str:
    """Write a dataset under ``output``; returns lines about it.

    ``train.rec``, ``train.idx``, ``property`` and ``people.json`` (names in class order); ``skipped.csv`` and
    ``duplicates.csv`` where there are such; ``sheet.png``, some pictures before and after. What is prepared goes to
    ``output/.parts/`` first, 512 images an object: a second start with the same files and options takes up what is
    there.

    Args:
        source: folder URL.
        output: folder URL.
        options: see there.
        report: told how far it is.

    Raises:
        PrepareError: there is nothing to take, or with ``strict`` something is left out; nothing is written then.
    """
    options = options or FolderOptions()
    finder = options.face.find_faces()
    folder = Source(source)
    if same_place(source, output):
        raise PrepareError(f"{storage.redact(output)}: the output is the source itself: name another folder")
    _spare_others(output)
    jobs, skipped = list_jobs(folder, options.person, [folder.name_of(output)])
    parts, names = storage.join(output, ".parts"), []
    _begin(parts, jobs, options.face)
    done = set(storage.list_names(parts))
    prepared: list[Prepared] = []
    load = partial(prepare_photograph, folder, options.face, finder)
    with ThreadPoolExecutor(options.workers) as pool:
        for number, chunk in enumerate(_chunks(jobs)):
            name = storage.join(parts, f"{number:06d}.part")
            names.append(name)
            if f"{number:06d}.part" in done:
                prepared += unpack_part(name, storage.read_bytes(name))[0]
            else:
                results = []
                for result in pool.map(load, [job.file.name for job in chunk]):
                    results.append(result)
                    if report is not None:
                        report(len(prepared) + len(results), len(jobs))
                storage.write_bytes(name, pack_part([item for item, _ in results], [image for _, image in results]))
                prepared += [item for item, _ in results]
    kept, findings = _choose(jobs, prepared, skipped, options)
    _refuse(folder, parts, kept, findings, options)
    people = sorted({jobs[number].person for number in kept})
    label_of = {person: label for label, person in enumerate(people)}
    with RecordWriter(storage.join(output, "train.rec")) as writer:
        write_identity_layout(writer, [label_of[jobs[number].person] for number in kept], _images(names, kept))
    size = options.face.size
    storage.write_bytes(storage.join(output, "property"), f"{len(people)},{size},{size}".encode())
    storage.write_bytes(storage.join(output, "people.json"), dump_people(people))
    findings.write(output)
    _draw_sheet(
        output, [jobs[i].file.name for i in kept], options.sheet, lambda name: (folder.read(name), load(name)[1])
    )
    storage.delete_tree(parts)
    remarks = _remarks([jobs[number] for number in kept], options)
    return f"{len(kept)} images of {len(people)} people{findings.summary()}{remarks}"


def _spare_others(output: str) -> None:
    """What this command wrote it may write again; records without names of people are not its own."""
    record, own = storage.join(output, "train.rec"), [storage.join(output, name) for name in ("people.json", ".parts")]
    if storage.exists(record, optional=True) and not any(storage.exists(url, optional=True) for url in own):
        raise PrepareError(
            f"{storage.redact(record)} was not made from photographs, and would be overwritten: name another folder"
        )


def _draw_sheet(output: str, names: Sequence[str], count: int, load: Callable[[str], tuple[bytes, bytes]]) -> None:
    """``sheet.png`` of some of the photographs; without, that of an earlier preparation goes away."""
    url = storage.join(output, "sheet.png")
    if count:
        draw_before_and_after(url, ((name, *load(name)) for name in names[:: -(-len(names) // count)]))
    elif storage.exists(url):
        storage.delete_tree(url)


def prepare_photograph(
    source: Source, options: FaceOptions, finder: FaceFinder | None, name: str
) -> tuple[Prepared, bytes]:
    """Read one photograph and make a training image of it; what cannot be taken says why.

    Raises:
        StorageError: the store does not answer.
    """
    try:
        data = source.read(name)
    except storage.StorageError as error:
        if error.transient:
            raise
        return Prepared(reason="unreadable", detail=str(error)), b""
    try:
        image, picture_hash = make_face(data, options, finder, name)
    except PhotographError as error:
        return Prepared(reason=error.reason, detail=error.detail), b""
    digest = hashlib.sha256(data).hexdigest()
    return Prepared(len(image), digest=digest, picture_hash=picture_hash.hex()), image


def make_face(data: bytes, options: FaceOptions, finder: FaceFinder | None, name: str) -> tuple[bytes, bytes]:
    """A training image (JPEG) of a photograph, and the hash of what the photograph shows.

    A JPEG of the right size stays as it is, unless it has to be turned or aligned.

    Raises:
        PhotographError: it cannot be taken.
    """
    picture = open_photograph(data, least=0 if finder is not None else 2 * options.size)
    picture_hash = difference_hash(picture)
    if finder is not None:
        points = finder.choose(name, picture, options.several)
        return to_jpeg(align_face(picture, points, options.size), options.quality), picture_hash
    _check_shape(picture, options)
    if is_ready(data, options.size):
        return data, picture_hash
    return to_jpeg(fit_square(picture, options.size, options.fit), options.quality), picture_hash


def _check_shape(picture: Image.Image, options: FaceOptions) -> None:
    """Refuse what would be a line or a dot in the square."""
    short, long = sorted(picture.size)
    left = short * options.size // long if options.fit == "pad" else options.size
    if min(short, left) < MIN_SIDE:
        raise PhotographError("too small", f"{picture.width} x {picture.height} pixels: no face to be seen")


def dump_people(people: Sequence[str]) -> bytes:
    """The content of ``people.json``: names in class order."""
    # A name that is no UTF-8 on its disk is escaped, as JSON can: the file itself is UTF-8.
    return json.dumps(list(people), indent=0, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _begin(parts: str, jobs: Sequence[Job], options: FaceOptions) -> None:
    """Keep the parts of a stopped preparation of the very same; remove others."""
    marks = storage.info(options.landmarks).tag if options.landmarks else ""
    plan = {
        "face": {**asdict(options), "landmarks_tag": marks},
        "part": _PART_IMAGES,
        "jobs": [asdict(j) for j in jobs],
    }
    text, url = json.dumps(plan).encode(), storage.join(parts, "jobs.json")
    if storage.exists(url) and storage.read_bytes(url) == text:
        return
    storage.delete_tree(parts)
    storage.write_bytes(url, text)


def _choose(
    jobs: Sequence[Job], prepared: Sequence[Prepared], skipped: list[Skipped], options: FolderOptions
) -> tuple[list[int], Findings]:
    """Numbers of the photographs that are taken, and what is said about the others."""
    kept = []
    for number, (job, item) in enumerate(zip(jobs, prepared, strict=True)):
        if item.reason:
            skipped.append(Skipped(job.file.name, item.reason, item.detail))
        else:
            kept.append(number)
    found = find_duplicates([prepared[i].digest for i in kept], [bytes.fromhex(prepared[i].picture_hash) for i in kept])
    duplicates = [Duplicate(kept[d.number], kept[d.first], d.same_bytes) for d in found]
    if options.duplicates == "drop":
        own = {d.number: d for d in duplicates if jobs[d.number].person == jobs[d.first].person}
        skipped += [Skipped(jobs[i].file.name, "duplicate", f"of {jobs[d.first].file.name}") for i, d in own.items()]
        kept = [number for number in kept if number not in own]
    counts = Counter(jobs[number].person for number in kept)
    for number in kept:
        if (count := counts[jobs[number].person]) < options.min_images:
            skipped.append(Skipped(jobs[number].file.name, _FEW_PEOPLE, f"the person has {count}"))
    had = {job.person for job in jobs}
    skipped += [Skipped(f"{p}/", "person without a picture", "none could be taken") for p in sorted(had - set(counts))]
    kept = [number for number in kept if counts[jobs[number].person] >= options.min_images]
    listed = [(jobs[d.number].file.name, jobs[d.first].file.name, d.same_bytes) for d in duplicates]
    across = sum(jobs[d.number].person != jobs[d.first].person for d in duplicates)
    return kept, Findings(sorted(skipped, key=lambda item: item.name), listed, across)


def _refuse(source: Source, parts: str, kept: list[int], findings: Findings, options: FolderOptions) -> None:
    """Raise where nothing is left, or something is left out that may not be."""
    wrong = [item for item in findings.skipped if item.reason not in ("system file", _DATASET)]
    if kept and not (options.strict and wrong):
        return
    storage.delete_tree(parts)
    what = "no image can be taken" if not kept else f"--strict: {len(wrong)} files would be left out"
    raise PrepareError(f"{storage.redact(source.url)}: {what}{first_of(wrong)}")


def _remarks(jobs: Sequence[Job], options: FolderOptions) -> str:
    """Lines about folders that may not be what was meant: the wrong depth, one person alone, one person twice."""
    people = sorted({job.person for job in jobs})
    deeper = {job.file.name.rpartition("/")[0] for job in jobs}
    lines = []
    if options.person == "first" and len(deeper) > len(people) and all("/" in folder for folder in deeper):
        some = ", ".join(repr(name) for name in people[:3])
        lines.append(
            f"no picture lies in {some} itself, but in {len(deeper)} folders below: --person last, where those are "
            "the people"
        )
    elif len(people) == 1:
        lines.append("one person only: nothing can be learned from it")
    spelled: dict[str, list[str]] = {}
    for name in people:
        spelled.setdefault(" ".join(name.rpartition("/")[2].casefold().split()), []).append(name)
    twice = [" and ".join(map(repr, names)) for names in spelled.values() if len(names) > 1]
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        lines.append(f"names that may be one person: {'; '.join(twice[:5])}{more}")
    return "".join(f"\n{line}" for line in lines)


def _chunks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    iterator = iter(jobs)
    while chunk := list(islice(iterator, _PART_IMAGES)):
        yield chunk


def _images(parts: Sequence[str], kept: Sequence[int]) -> Iterator[bytes]:
    """The images with these numbers, in order, a part at a time."""
    wanted, first = set(kept), 0
    for name in parts:
        _, images = unpack_part(name, storage.read_bytes(name))
        yield from (image for number, image in enumerate(images, start=first) if number in wanted)
        first += len(images)
