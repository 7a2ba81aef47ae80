"""What a recipe says of the backbone: its section ``[model]``."""

from __future__ import annotations

from dataclasses import dataclass

from app.settings import setting


@dataclass(frozen=True)
class ModelConfig:
    """The backbone."""

    backbone: str = setting("r50", "name of the architecture; docs/training.md lists them")
    embedding_size: int = setting(512, "numbers in an embedding", minimum=1)
    dropout: float = setting(0.0, "share of features dropped before the embedding in training", minimum=0, below=1)
    gradient_checkpointing: bool = setting(
        False, "recompute stages or blocks in the backward pass: less memory, more time"
    )
    channels_last: bool = setting(True, "keep images as NHWC in memory, which convolutions prefer")
    compile: bool = setting(False, "compile the backbone with torch.compile")
    mask_ratio: float = setting(
        -1.0,
        "ViT: share of tokens left out in training; -1: as the backbone's name says",
        minimum=0,
        below=1,
        besides=(-1,),
    )
    drop_path: float = setting(
        -1.0,
        "ViT: stochastic depth of the last block; -1: as the backbone's name says",
        minimum=0,
        below=1,
        besides=(-1,),
    )
    init: str = setting("", "URL of backbone weights (a state dict or model.pt) to start from")
    init_names: str = setting(
        "", "of init: URL of a JSON object, pattern: replacement, which turns the file's key names into the backbone's"
    )
    init_colours: str = setting(
        "RGB", "of init: order of colours that the weights were trained on", choices=("RGB", "BGR")
    )
    freeze: str = setting(
        "none",
        "what of the backbone does not learn: all of it, its stem and first stages, or its BatchNorm",
        choices=("none", "backbone", "stages", "batchnorm"),
    )
    freeze_stages: int = setting(2, "of freeze = stages: how many of the four, with the stem", minimum=0, maximum=4)
    freeze_epochs: float = setting(0.0, "epochs for which freeze holds; 0: the whole run", minimum=0)
