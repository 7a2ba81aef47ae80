"""What a run is, as typed data: a recipe is a tree of frozen dataclasses, read from TOML and overridden by options.

A section's class stands beside the code that owns it where that code needs no more than the section; the others are
here. ``recipes/*.toml`` hold the published configurations; nothing in a recipe is ever executed.
"""

from __future__ import annotations

import functools
import typing
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from app.backbones.config import ModelConfig
from app.checkpoint.config import CheckpointConfig
from app.data.config import DataConfig
from app.errors import AppError
from app.head.config import HeadConfig
from app.settings import Setting, first_problem, setting, settings_of


class RecipeError(AppError):
    """A recipe, field or value that does not exist or does not fit; names the field and the nearest name."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate schedule, counted in samples seen."""

    name: str = setting("sgd", "optimizer of backbone and centres", choices=("sgd", "adamw"))
    lr: float = setting(0.1, "learning rate after the warm-up", above=0)
    momentum: float = setting(0.9, "of sgd", minimum=0, below=1)
    weight_decay: float = setting(5e-4, "decay of the weights", minimum=0)
    schedule: str = setting("poly", "how the rate falls after the warm-up", choices=("poly", "cosine", "steps"))
    milestones: tuple[str, ...] = setting((), "of steps: epochs after which the rate falls by gamma")
    gamma: float = setting(0.1, "of steps: factor of the rate at each milestone", above=0, maximum=1)
    power: float = setting(1.0, "of poly: 1 as insightface, 2 as the Ascend port", minimum=0)
    head_lr_factor: float = setting(1.0, "rate of the class centres over that of the backbone", minimum=0)
    head_weight_decay: float = setting(
        -1.0, "decay of the class centres; -1: as the backbone's", minimum=0, besides=(-1,)
    )
    warmup_epochs: float = setting(0.0, "epochs in which the rate rises from 0", minimum=0)
    clip_norm: float = setting(5.0, "largest norm of the backbone's gradients; 0: no clipping", minimum=0)


@dataclass(frozen=True)
class TrainConfig:
    """The loop. Global batch = batch_size x logical_workers, whatever the number of processes."""

    epochs: int = setting(20, "passes over the dataset", minimum=1)
    batch_size: int = setting(128, "micro-batch: samples of one logical worker in a step", minimum=1)
    logical_workers: int = setting(
        0,
        "sample streams of the run, fixed at its first start; 0: processes (of the largest world, where max_processes "
        "says it) x gradient_accumulation",
        minimum=0,
    )
    max_processes: int = setting(
        0, "processes of an elastic job at its largest; 0: as many as start it first", minimum=0
    )
    gradient_accumulation: int = setting(1, "micro-batches a process adds up in a step", minimum=1)
    accumulate: str = setting(
        "mean",
        "what is made of the gradients of a process's micro-batches: sum as insightface",
        choices=("mean", "sum"),
    )
    precision: str = setting("fp32", "autocast of the backbone", choices=("fp32", "bf16", "fp16"))
    loss_scale: float = setting(
        0.0, "of fp16: a fixed factor, as the Ascend port's 256; 0: one that follows the gradients", minimum=0
    )
    sync_bn: bool = setting(False, "BatchNorm over all processes (accelerators only)")
    reproducible: bool = setting(
        False, "the same bits from any number of processes, also when it changes: slower, see docs/training.md"
    )
    gradient_compression: str = setting(
        "none", "type in which gradients travel between processes", choices=("none", "fp16", "bf16")
    )
    seed: int = setting(2048, "of every random number of the run", minimum=0)
    first_step: int = setting(
        -1, "go on as if so many steps were done; -1: where the checkpoint says", minimum=0, besides=(-1,)
    )
    last_step: int = setting(-1, "step to stop after; -1: the last of the last epoch", minimum=0, besides=(-1,))
    perf_steps: int = setting(0, "above 0: stop after this many steps and report the speed only", minimum=0)
    log_every: int = setting(10, "steps between two lines of progress", minimum=1)
    verify_every: int = setting(2000, "steps between two verifications; 0: only at the end", minimum=0)
    profiling: bool = setting(False, "write a trace of the steps profile_start to profile_stop to <run>/profile")
    profile_start: int = setting(90, "first step of the trace", minimum=0)
    profile_stop: int = setting(100, "step after the last one of the trace", minimum=1)
    max_starts: int = setting(10, "starts in a row from one checkpoint before an elastic job gives up", minimum=1)
    step_timeout: float = setting(1800.0, "seconds a step may take before the watchdog calls it a hang", above=0)


@dataclass(frozen=True)
class VerifyConfig:
    """The verification sets: ``<url>/<name>.bin``."""

    sets: tuple[str, ...] = setting(("lfw", "cfp_fp", "agedb_30"), "names of the sets")
    url: str = setting("", "folder of the sets; empty: data.url")
    batch_size: int = setting(128, "images embedded at once", minimum=1)


@dataclass(frozen=True)
class DistillConfig:
    """A trained model that a smaller one learns from; see docs/distillation.md."""

    teacher: str = setting("", "URL of a run folder, its /checkpoints, a .pt, .pth or .onnx; empty: no teacher")
    weight: float = setting(1.0, "factor of the distance to the teacher, beside the head's loss", minimum=0)
    loss: str = setting(
        "cosine",
        "1 - cosine between both embeddings, or their squared distance over the number of features",
        choices=("cosine", "distance"),
    )
    teacher_backbone: str = setting("", "architecture of a teacher that is a bare state dict")
    teacher_embedding_size: int = setting(512, "its embedding size", minimum=1)
    teacher_colours: str = setting(
        "RGB",
        "order of colours that it was trained on (AdaFace: BGR), where its file does not say",
        choices=("RGB", "BGR"),
    )
    teacher_names: str = setting("", "of a bare state dict: as model.init_names")


@dataclass(frozen=True)
class OutputConfig:
    """Where results go: the run folder is ``<url>/<recipe name>``."""

    url: str = setting("runs", "folder of the runs, a path or URL")
    tensorboard: bool = setting(True, "write TensorBoard's files to <run>/tensorboard")
    onnx: bool = setting(True, "write model.onnx beside model.pt, where the extra [export] is installed")
    model_every: int = setting(1, "epochs after which model.pt is written anew; 0: at the end only", minimum=0)
    log_style: str = setting(
        "bar",
        "lines of progress: a bar, or insightface's lines and TensorBoard tags, which scripts take apart",
        choices=("bar", "insightface"),
    )
    wandb: bool = setting(False, "log to Weights & Biases too (extra [wandb]; its environment variables apply)")
    mlflow: bool = setting(False, "log to MLflow too (extra [mlflow]; its environment variables apply)")
    prometheus_port: int = setting(0, "rank 0 serves /metrics there; 0: no endpoint", minimum=0, maximum=65535)


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a run."""

    name: str = "custom"  # of the run
    origin: str = field(default="custom", compare=False)  # the recipe it began from; says nothing of what is run
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@functools.cache
def sections() -> dict[str, type]:
    """The configuration classes by the name of their section, in the recipe's order."""
    kinds = typing.get_type_hints(Recipe)
    return {field.name: kinds[field.name] for field in fields(Recipe) if field.name not in ("name", "origin")}


def all_settings() -> Iterator[tuple[str, Setting]]:
    """Every field of a recipe as ``section.field`` and what it takes."""
    for section, kind in sections().items():
        for name, about in settings_of(kind).items():
            yield f"{section}.{name}", about


def validate(recipe: Recipe) -> Recipe:
    """Return the recipe when all its values are possible.

    Raises:
        RecipeError: names the first field that is not, and what it takes.
    """
    for section in sections():
        if problem := first_problem(getattr(recipe, section)):
            raise RecipeError(f"{section}.{problem}")
    try:
        rising = [float(epoch) for epoch in recipe.optim.milestones]
    except ValueError:
        rising = [-1.0]
    if rising != sorted(rising) or any(not 0 <= epoch < float("inf") for epoch in rising):
        raise RecipeError(
            f"optim.milestones must be rising numbers of epochs; got {', '.join(recipe.optim.milestones)}"
        )
    train = recipe.train
    if recipe.optim.warmup_epochs >= train.epochs:
        warnings.warn(
            f"optim.warmup_epochs {recipe.optim.warmup_epochs:g} is no less than train.epochs {train.epochs}: the rate "
            "rises to the end, and never falls",
            stacklevel=2,
        )
    if recipe.optim.schedule == "steps" and rising and rising[0] >= train.epochs:
        warnings.warn(
            f"optim.milestones begin at epoch {rising[0]:g}, train.epochs is {train.epochs}: the rate never falls",
            stacklevel=2,
        )
    if train.reproducible and (train.sync_bn or train.gradient_compression != "none"):
        raise RecipeError(
            "train.reproducible sums in the order of logical workers, which train.sync_bn and "
            "train.gradient_compression do not: leave them off"
        )
    if train.profiling and train.profile_start >= train.profile_stop:
        raise RecipeError(
            f"train.profile_stop must be above train.profile_start; got {train.profile_start} to {train.profile_stop}"
        )
    head = recipe.head
    if head.margin == "magface" and head.magface_lower >= head.magface_upper:
        raise RecipeError(
            f"head.magface_upper must be above head.magface_lower; got {head.magface_lower:g} to {head.magface_upper:g}"
        )
    parts = recipe.name.split("/")
    if not recipe.name.isprintable() or any(part.strip() != part or part in ("", ".", "..") for part in parts):
        raise RecipeError(f"a run cannot be called {recipe.name!r}: --name is a folder below output.url")
    return recipe
