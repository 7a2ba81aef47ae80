"""What a run is, beside its tensors; and what a second start may change.

A run is defined by its recipe, its dataset and the number of its logical workers. ``RunState`` stands in every
checkpoint's manifest. When a run is started again, its recipe is compared with the one that wrote the checkpoint,
field by field: a field may be *fixed* (another value makes it another run: refused), *free* (it changes no result:
listed in the start line) or, everything else, *applied* from here on and said in a warning.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from app.checkpoint.manifest import CheckpointError
from app.config.recipe import Recipe, RecipeError, all_settings
from app.errors import redact_urls

# Shapes, the order of samples and the formula that is trained.
FIXED = frozenset(
    [
        *("model.backbone", "model.embedding_size"),
        *("head.margin", "head.m1", "head.m2", "head.m3", "head.scale", "head.easy_margin", "head.gradient"),
        *("head.adaface_h", "head.adaface_t_alpha", "head.magface_lower", "head.magface_upper"),
        *("head.magface_lower_margin", "head.magface_upper_margin", "head.magface_weight", "head.elastic_std"),
        *("head.centre_dtype", "head.momentum_dtype", "head.sub_centres", "head.curricular_t_alpha"),
        *("data.image_size", "data.shuffle", "data.window", "data.window_mb", "data.block_mb"),
        *("optim.name", "train.seed", "train.batch_size"),
    ]
)
# Where and how often things are written, how fast and with how much memory; what only the first start reads.
FREE_SECTIONS = frozenset({"output", "checkpoint", "verify"})
FREE = frozenset(
    [
        *(
            "model.init",
            "model.init_names",
            "model.init_colours",
            "model.compile",
            "model.channels_last",
            "model.gradient_checkpointing",
        ),
        *("head.init", "head.block_memory_mb"),
        *("data.url", "data.num_classes", "data.num_images", "data.empty_classes", "data.workers", "data.prefetch"),
        *("data.cache", "data.cache_gb", "data.max_bad_share", "data.resize"),
        *("train.epochs", "train.logical_workers", "train.max_processes"),
        *("train.log_every", "train.verify_every", "train.max_starts", "train.step_timeout"),
        *("train.perf_steps", "train.first_step", "train.last_step"),
        *("train.profiling", "train.profile_start", "train.profile_stop"),
    ]
)
# Settings that give the same files other samples or classes.
_MAKE_CONTENT = ("data.labels:", "data.people:", "data.weights:")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


@dataclass(frozen=True)
class RunState:
    """A run at one step, as plain JSON.

    ``recipe`` holds every field as ``section.field``; ``num_classes`` and ``data_tag`` are those of the dataset that
    was opened, ``highest`` the best accuracy of each set, ``best_mean`` the best mean over the sets, ``trackers`` the
    run's ids in experiment trackers.
    """

    recipe: dict[str, Any]
    logical_workers: int
    num_classes: int
    data_tag: str
    highest: dict[str, float] = field(default_factory=dict)
    best_mean: float = 0.0
    bad_records: int = 0  # samples in whose place another was trained, since their record is unreadable
    versions: dict[str, str] = field(default_factory=versions)
    trackers: dict[str, str] = field(default_factory=dict)

    def to_meta(self) -> dict[str, Any]:
        """For ``Manifest.meta``."""
        return asdict(self)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], url: str) -> RunState:
        """Read it back.

        Raises:
            CheckpointError: another version of this program wrote it.
        """
        try:
            return cls(
                dict(meta["recipe"]),
                int(meta["logical_workers"]),
                int(meta["num_classes"]),
                str(meta["data_tag"]),
                {str(name): float(value) for name, value in meta["highest"].items()},
                float(meta["best_mean"]),
                int(meta.get("bad_records", 0)),
                {str(name): str(value) for name, value in meta["versions"].items()},
                {str(name): str(value) for name, value in meta.get("trackers", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{url}: these checkpoints were written by another version ({type(error).__name__}: {error}): go on "
                "with that version, or start anew with another --name or --output.url"
            ) from error


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """All fields of a recipe as ``section.field``, as JSON would give them back, without the credentials of URLs."""
    found = {}
    for path, _ in all_settings():
        section, name = path.split(".")
        value = getattr(getattr(recipe, section), name)
        value = redact_urls(value) if isinstance(value, str) else value
        found[path] = [redact_urls(str(part)) for part in value] if isinstance(value, tuple) else value
    return found


def kind_of_change(path: str) -> str:
    """``fixed``, ``free`` or ``applied``: what happens to a field that a second start changes."""
    if path in FIXED:
        return "fixed"
    return "free" if path in FREE or path.split(".", maxsplit=1)[0] in FREE_SECTIONS else "applied"


def compare(
    before: RunState, recipe: Recipe, num_classes: int, data_tag: str, where: str
) -> tuple[list[str], list[str]]:
    """Which fields a second start changes: the free ones and the applied ones, each as ``field: old -> new``.

    Args:
        where: URL of the run, for the message.

    Raises:
        RecipeError: a fixed field differs, or the dataset does; names all of them with old and new value.
    """
    changed: dict[str, list[str]] = {"fixed": [], "free": [], "applied": []}
    for path, value in recipe_fields(recipe).items():
        if path in before.recipe and (old := before.recipe[path]) != value:
            words = f"{path} {old!r}, this one has {value!r}" if path in FIXED else f"{path}: {old!r} -> {value!r}"
            changed[kind_of_change(path)].append(words)
    wanted = recipe.train.logical_workers
    for name, old, now in [
        ("data.num_classes", before.num_classes, num_classes),
        ("train.logical_workers", before.logical_workers, wanted or before.logical_workers),
    ]:
        if old != now:
            changed["fixed"].append(f"{name} {old!r}, this one has {now!r}")
    if before.data_tag != data_tag:
        reasons = [words for words in changed["applied"] if words.startswith(_MAKE_CONTENT)]
        changed["fixed"] += reasons or [_other_content(before.data_tag, data_tag, recipe.data.url)]
    if changed["fixed"]:
        raise RecipeError(
            f"{where} holds a run with {'; '.join(changed['fixed'])}: take another --name or --output.url, or the same "
            "settings and dataset as before"
        )
    return changed["free"], changed["applied"]


def _other_content(before: str, now: str, url: str) -> str:
    """Which of a run's datasets is another than it was; where nobody could tell, all of them are."""
    if sorted(before.split("+")) == sorted(now.split("+")):
        return "the same datasets in another order of data.url, which numbers their classes"
    names = [name.strip() for name in redact_urls(url).split(",") if name.strip()]
    old, new = before.split("+"), now.split("+")
    if len(names) < 2 or len(old) != len(new) or len(old) - len(names) not in (0, 1):
        return f"data_tag (the dataset's content) {before!r}, this one has {now!r}"
    parts = zip([*names, "the classes that people.json shares"], old, new, strict=False)
    others = [f"{name} {was!r}, now {present!r}" for name, was, present in parts if was != present]
    return f"data_tag (the dataset's content) of {', of '.join(others)}"
