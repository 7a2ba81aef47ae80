"""What a run is, as typed data: a recipe is a tree of frozen dataclasses, read from TOML and overridden by options.

``recipes/*.toml`` hold the published configurations; nothing in a recipe is ever executed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.errors import AppError


class RecipeError(AppError):
    """A recipe, field or value that does not exist or does not fit; names the field and the nearest name."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone."""

    backbone: str = "r50"  # a name of app.backbones.registry
    embedding_size: int = 512
    dropout: float = 0.0
    gradient_checkpointing: bool = False  # recompute stages or blocks in the backward pass
    channels_last: bool = True
    compile: bool = False  # torch.compile
    mask_ratio: float = -1.0  # ViT: share of tokens left out in training; -1: as the backbone's name says
    drop_path: float = -1.0  # ViT: stochastic depth of the last block; -1: as the backbone's name says
    init: str = ""  # URL of backbone weights (state dict or model.pt) to start from


@dataclass(frozen=True)
class HeadConfig:
    """The margin softmax over the class centres."""

    margin: str = "combined"  # combined | adaface | magface
    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    scale: float = 64.0
    easy_margin: bool = False
    gradient: str = "exact"  # exact | straight-through (how the margin's derivative reaches the target logit)
    interclass_filtering: float = 0.0
    sample_rate: float = 1.0
    update: str = "sparse"  # sparse | dense: what happens to the optimizer state of centres that a step did not sample
    centre_dtype: str = "float32"  # float32 | bfloat16
    init: str = ""  # URL of a reference's checkpoint to take centres from, with {rank} where there is a file a rank
    block_memory_mb: int = 256  # budget for one block of logits and its gradients


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and in which order they come."""

    url: str = ""  # folder with train.rec and train.idx, or "synthetic"
    num_classes: int = 0  # 0: read from the dataset
    empty_classes: str = "refuse"  # refuse | warn: what to do when a class has no image
    num_images: int = 0  # 0: read from the dataset; else what it should have
    image_size: int = 112
    resize: str = "warn"  # warn | refuse: what to do with images of another size
    shuffle: str = "window"  # full | window | none
    window: int = 0  # records in the shuffle window; 0: sized by memory
    block_mb: float = 8.0  # size of one ranged read, MiB
    augment: str = "flip"  # none | flip | reference (adds downscale, blur, grey) | small (adds rotation, shift, light)
    workers: int = 4  # decoding threads a process
    prefetch: int = 4  # micro-batches decoded ahead
    max_bad_share: float = 0.001  # training stops when more records than this are unreadable


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate schedule, counted in samples seen."""

    name: str = "sgd"  # sgd | adamw
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "poly"  # poly | cosine
    power: float = 1.0  # of poly: 1 as insightface, 2 as the Ascend port
    warmup_epochs: float = 0.0
    clip_norm: float = 5.0  # of the backbone's gradients; 0: off


@dataclass(frozen=True)
class TrainConfig:
    """The loop. Global batch = batch_size x logical_workers, whatever the number of processes."""

    epochs: int = 20
    batch_size: int = 128  # micro-batch: samples of one logical worker
    logical_workers: int = 0  # 0: processes x gradient_accumulation
    max_processes: int = 0  # of an elastic job at its largest; 0: as many as start it first
    gradient_accumulation: int = 1
    precision: str = "fp32"  # fp32 | bf16 | fp16
    sync_bn: bool = False
    gradient_compression: str = "none"  # none | fp16 | bf16
    seed: int = 2048
    start_step: int = -1  # -1: where the checkpoint says
    stop_step: int = -1  # -1: at the end of the last epoch
    perf_steps: int = 0  # > 0: stop after this many steps and report the speed only
    log_every: int = 10  # steps
    verify_every: int = 2000  # steps; 0: only at the end
    profiling: bool = False
    max_starts: int = 10  # starts in a row from one checkpoint before an elastic job gives up
    step_timeout: float = 1800.0  # seconds a step may take before the watchdog calls it a hang


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = 0  # 0: off
    every_minutes: float = 10.0  # 0: off
    keep_last: int = 2


@dataclass(frozen=True)
class VerifyConfig:
    """The verification sets: ``<url>/<name>.bin``."""

    sets: tuple[str, ...] = ("lfw", "cfp_fp", "agedb_30")
    url: str = ""  # empty: data.url
    batch_size: int = 128


@dataclass(frozen=True)
class OutputConfig:
    """Where results go: the run folder is ``<url>/<recipe name>``."""

    url: str = "runs"
    tensorboard: bool = True
    onnx: bool = True  # write model.onnx beside model.pt, where the extra [export] is installed
    wandb: bool = False  # also log to Weights & Biases (extra [wandb]; its own environment variables apply)
    prometheus_port: int = 0  # rank 0 serves /metrics there; 0: no endpoint


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a run."""

    name: str = "custom"
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


_CHOICES = {
    "head.margin": ("combined", "adaface", "magface", "none"),
    "head.gradient": ("exact", "straight-through"),
    "head.update": ("sparse", "dense"),
    "head.centre_dtype": ("float32", "bfloat16"),
    "data.resize": ("warn", "refuse"),
    "data.empty_classes": ("refuse", "warn"),
    "data.shuffle": ("full", "window", "none"),
    "data.augment": ("none", "flip", "reference", "small"),
    "optim.name": ("sgd", "adamw"),
    "optim.schedule": ("poly", "cosine"),
    "train.precision": ("fp32", "bf16", "fp16"),
    "train.gradient_compression": ("none", "fp16", "bf16"),
}
_POSITIVE = (
    "model.embedding_size",
    "head.scale",
    "head.block_memory_mb",
    "data.image_size",
    "data.block_mb",
    "optim.lr",
    "train.epochs",
    "train.batch_size",
    "train.gradient_accumulation",
    "train.log_every",
    "train.max_starts",
    "checkpoint.keep_last",
    "verify.batch_size",
)


def validate(recipe: Recipe) -> Recipe:
    """Return the recipe when all its values are possible.

    Raises:
        RecipeError: names the first field that is not, and what it takes.
    """
    for path, allowed in _CHOICES.items():
        if (value := _value(recipe, path)) not in allowed:
            raise RecipeError(f"{path} must be one of {', '.join(allowed)}; got {value!r}")
    for path in _POSITIVE:
        if (number := _value(recipe, path)) <= 0:
            raise RecipeError(f"{path} must be above 0; got {number}")
    if not 0 <= recipe.head.sample_rate <= 1:
        raise RecipeError(
            f"head.sample_rate must be in [0, 1], 0 for the batch's own classes only; got {recipe.head.sample_rate}"
        )
    if not 0 <= recipe.data.max_bad_share <= 1:
        raise RecipeError(f"data.max_bad_share must be in [0, 1]; got {recipe.data.max_bad_share}")
    return recipe


def _value(recipe: Recipe, path: str) -> Any:
    section, name = path.split(".")
    return getattr(getattr(recipe, section), name)
