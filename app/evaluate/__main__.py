"""Evaluation tools: ``python -m app.evaluate ijb | embed | similarity | groups | quality | tinyface | flops``."""

from __future__ import annotations

import argparse
import io
import sys

import numpy as np

from app import storage
from app.command_line import CommandLine
from app.data.bin_sets import load_set
from app.data.dataset import open_dataset
from app.data.decode import decode_image, resize
from app.data.prepare.photograph import ENDINGS, ending
from app.data.prepare.tools import read_all
from app.data.recordio import RecordError, class_of
from app.device import detect_device
from app.errors import AppError, printable, run_main
from app.evaluate import flops, groups, identification, ijb, quality, tinyface
from app.evaluate.face_model import FaceModel
from app.evaluate.judgement import judge
from app.evaluate.metrics import check_pairs
from app.evaluate.model_source import OpenedModel, add_model_options, model_options, open_model
from app.evaluate.report_figure import draw_roc
from app.evaluate.verification import embed_pairs, verify_set
from app.observe.progress import Progress
from app.parsing import dump_json
from app.world import join_world


class EvaluateError(AppError):
    """What was asked for makes no sense; says what to give."""


def main(arguments: list[str]) -> int:
    """Do what was asked for and print about it."""
    options = parse(arguments)
    if options.tool == "flops":
        print(flops.table())
        return 0
    options.device = detect_device()
    model = open_model(options.model, options.device, **model_options(options))
    tools = {"groups": run_groups, "quality": run_quality, "tinyface": run_tinyface}
    {"ijb": run_ijb, "embed": run_embed, "similarity": run_similarity, **tools}[options.tool](model, options)
    return 0


def run_ijb(model: OpenedModel, options: argparse.Namespace) -> None:
    """Print TAR at FAR and, where the set has galleries, identification; write both, scores and picture on demand."""
    metadata = ijb.load_metadata(options.data, options.set)
    flags = {"use_flip": not options.no_flip, "use_norm": not options.no_norm, "use_faceness": not options.no_faceness}
    with join_world(options.device, timeout=24 * 3600) as world:
        share = -(-len(metadata.images) // world.size)
        bar = Progress(share, enabled=world.rank == 0)
        plain, flipped = ijb.embed_images(
            options.data,
            metadata,
            model.embed,
            image_size=model.image_size,
            batch_size=options.batch_size,
            world=world,
            progress=lambda done: bar.report(done, f"image {done} of {share}"),
        )
        if world.rank:
            return
    ids, templates = ijb.pool_templates(ijb.combine(plain, flipped, metadata, **flags), metadata)
    scores = ijb.score_pairs(ids, templates, metadata.pairs)
    result = ijb.tar_at_fars(scores, metadata.issame)
    report = {"set": options.set, "tar_at_far": result, **flags}
    bar.say(f"{options.set}: {len(metadata.images)} images, {len(metadata.pairs)} pairs")
    bar.say("  ".join(f"TAR@FAR={far}: {tar:.4f}" for far, tar in result.items()))
    bar.say(format_fars(options.set, result))
    galleries, probes = identification.load_protocol(options.data, options.set)
    if galleries:
        found = identification.identify_templates(ids, templates, galleries, probes)
        report["identification"] = found
        bar.say("1:N  " + "  ".join(f"{name}: {value:.4f}" for name, value in found.items()))
    if options.output:
        storage.write_bytes(options.output, dump_json(report).encode())
    if options.scores:
        buffer = io.BytesIO()
        np.save(buffer, scores)
        storage.write_bytes(options.scores, buffer.getvalue())
    if options.roc:
        storage.write_bytes(options.roc, draw_roc(options.set, scores, metadata.issame))


def format_fars(name: str, result: dict[str, float]) -> str:
    """The table in which papers print it: a column a FAR, per cent."""
    head = " | ".join(["Methods", *result])
    row = " | ".join([name, *(f"{100 * tar:.2f}" for tar in result.values())])
    return f"| {head} |\n|{'|'.join(' --- ' for _ in range(len(result) + 1))}|\n| {row} |"


def run_embed(model: OpenedModel, options: argparse.Namespace) -> None:
    """Write embeddings as .npz: of a dataset, or of pictures."""
    if bool(options.data) == bool(options.images):
        raise EvaluateError("embed: give --data DATASET, or --images with a folder or pictures")
    if options.data and (options.flip or options.align != "none"):
        raise EvaluateError("embed: --flip and --align are for --images; a dataset's images are taken as they are")
    if options.data:
        _embed_dataset(model, options)
    else:
        _embed_pictures(FaceModel(model, options.align), options)


def _embed_pictures(model: FaceModel, options: argparse.Namespace) -> None:
    """``embeddings`` [N, D] of unit length, and ``names`` [N]: below the folder, or as they were given.

    Of several folders each name has its folder before it, as two may hold pictures of one name.
    """
    several = sum(ending(url) not in ENDINGS for url in options.images) > 1
    names: list[str] = []
    rows = []
    for url in options.images:
        if ending(url) in ENDINGS:
            found, embeddings = [url], model.embed(url, flip=options.flip)
        else:
            found, embeddings, left_out = model.embed_folder(url, flip=options.flip, batch_size=options.batch_size)
            if several:
                found = [storage.join(url, name) for name in found]
                left_out = [(storage.redact(storage.join(url, name)), reason) for name, reason in left_out]
            for name, reason in left_out:
                print(printable(f"left out: {name}: {reason}"), file=sys.stderr)
        names += found
        rows.append(embeddings)
    buffer = io.BytesIO()
    np.savez(buffer, embeddings=np.concatenate(rows), names=np.array(names))
    storage.write_bytes(options.output, buffer.getvalue())
    print(f"{storage.redact(options.output)}: {len(names)} embeddings of {rows[0].shape[1]} numbers")


def _embed_dataset(model: OpenedModel, options: argparse.Namespace) -> None:
    """``embeddings`` [N, D] as the model gives them, ``labels`` [N], ``positions`` [N]."""
    images, labels, positions, embeddings = [], [], [], []
    dataset = open_dataset(options.data)
    for position, header, encoded, problem in read_all(dataset):
        if header is None:
            raise RecordError(problem)
        images.append(resize(decode_image(encoded), model.image_size, model.image_size).transpose(2, 0, 1))
        labels.append(class_of(header))
        positions.append(position)
        if len(images) == options.batch_size or position == len(dataset) - 1:
            embeddings.append(model.embed(np.stack(images)))
            images = []
    buffer = io.BytesIO()
    np.savez(buffer, embeddings=np.concatenate(embeddings), labels=np.array(labels), positions=np.array(positions))
    storage.write_bytes(options.output, buffer.getvalue())
    print(f"{storage.redact(options.output)}: {len(labels)} embeddings of {embeddings[0].shape[1]} numbers")


def run_tinyface(model: OpenedModel, options: argparse.Namespace) -> None:
    """Print rank 1 to 50 and mAP; write them on demand."""
    result = tinyface.identify_tinyface(FaceModel(model), options.data, batch_size=options.batch_size)
    print("  ".join(f"{name}: {value:.4g}" for name, value in result.items()))
    if options.output:
        storage.write_bytes(options.output, dump_json(result).encode())


def _find_sets(url: str) -> list[str]:
    """URLs of the ``.bin`` files of a folder, or the file that is named."""
    if url.endswith(".bin"):
        return [url]
    found = [storage.join(url, name) for name in storage.list_names(url) if name.endswith(".bin")]
    if not found:
        raise EvaluateError(f"{storage.redact(url)}: no .bin file there: app.prepare pairs makes them")
    return found


def run_groups(model: OpenedModel, options: argparse.Namespace) -> None:
    """Print what the model does to each group, and how far groups differ; write it on demand."""
    sizes = {"image_size": model.image_size, "batch_size": options.batch_size}
    results = [verify_set(load_set(url), model.embed, **sizes) for url in _find_sets(options.data)]
    report = groups.compare_groups(results, options.fpr)
    print(groups.format_groups(report))
    if options.output:
        storage.write_bytes(options.output, dump_json(report.summary()).encode())


def run_quality(model: OpenedModel, options: argparse.Namespace) -> None:
    """Print error against reject of each set; write it on demand."""
    reports = {}
    for url in _find_sets(options.data):
        pairs = load_set(url)
        check_pairs(pairs.issame, url)
        distances, norms = embed_pairs(pairs, model.embed, image_size=model.image_size, batch_size=options.batch_size)
        reports[pairs.name] = quality.quality_report(distances, pairs.issame, norms.astype(np.float64), options.fpr)
        print(quality.format_quality(pairs.name, reports[pairs.name]))
    if options.output:
        storage.write_bytes(options.output, dump_json(reports).encode())


def run_similarity(model: OpenedModel, options: argparse.Namespace) -> None:
    """Print the cosine between two photographs, and what the model's last verification takes it for."""
    cosine = FaceModel(model, options.align).similarity(*options.images)
    distance = max(0.0, 2 - 2 * cosine)
    print(f"cosine {cosine:.4f}, squared distance {distance:.4f}")
    for line in judge(options.model, distance):
        print(printable(line))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = CommandLine("python -m app.evaluate", description=__doc__)
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    tools.add_parser("flops", help="multiply-adds and parameters of every backbone")
    for name, text in (
        ("ijb", "IJB-B or IJB-C, 1:1 and 1:N; under torchrun on several devices"),
        ("embed", "embeddings of a dataset, of a folder of pictures or of pictures, as .npz"),
        ("similarity", "of two photographs"),
        ("groups", "accuracy, FPR and FNR by group (RFW): a .bin file a group"),
        ("tinyface", "1:N among distractors, in TinyFace's layout"),
        ("quality", "error against reject, by the length of the embeddings"),
    ):
        tool = tools.add_parser(name, help=text, description=text)
        add_model_options(tool)
        tool.add_argument("--batch-size", type=int, default=64)
        if name in ("embed", "similarity"):
            tool.add_argument(
                "--align",
                choices=("none", "detector"),
                default="none",
                help="detector: find and align the largest face (extra [detect]); none: pictures are aligned faces",
            )
        if name == "similarity":
            tool.add_argument("images", nargs=2, help="URLs")
            continue
        tool.add_argument("--data", default="", required=name != "embed", help="URL of the set's folder")
        if name in ("groups", "quality"):
            tool.add_argument("--fpr", type=float, default=0.001, help="share of all impostor pairs that is accepted")
        if name == "embed":
            tool.add_argument("--images", nargs="+", default=[], help="URLs of folders or pictures instead")
            tool.add_argument("--flip", action="store_true", help="of pictures: add the mirrored picture's embedding")
        tool.add_argument("--output", default="", required=name == "embed", help="URL to write to")
        if name == "ijb":
            tool.add_argument("--set", choices=("ijbb", "ijbc"), default="ijbc")
            tool.add_argument("--scores", default="", help="URL of an .npy to write the pairs' cosines to, float32 [P]")
            tool.add_argument("--roc", default="", help="URL of a .png to draw the ROC to")
            tool.add_argument("--no-flip", action="store_true", help="leave the flips out")
            tool.add_argument("--no-norm", action="store_true", help="make embeddings units before pooling")
            tool.add_argument("--no-faceness", action="store_true", help="do not weight by the detector's score")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_main(main)
