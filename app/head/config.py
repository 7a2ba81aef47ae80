"""What a recipe says of the head: its section ``[head]``."""

from __future__ import annotations

from dataclasses import dataclass

from app.settings import setting


@dataclass(frozen=True)
class HeadConfig:
    """The margin softmax over the class centres."""

    margin: str = setting(
        "combined",
        "combined is cos(m1 theta + m2) - m3: ArcFace, CosFace and their mixtures",
        choices=("combined", "adaface", "curricular", "magface", "elastic", "none"),
    )
    m1: float = setting(1.0, "of combined: factor of the angle (ArcFace's paper tries 0.9 too)", above=0)
    m2: float = setting(0.5, "of combined and curricular: added to the angle, radians (ArcFace)", minimum=0)
    m3: float = setting(0.0, "of combined: taken off the cosine (CosFace); of adaface: its m, 0 for 0.4", minimum=0)
    adaface_h: float = setting(0.333, "of adaface: how strongly the margin follows the norm", minimum=0)
    adaface_t_alpha: float = setting(0.01, "of adaface: weight of a step in the norms' statistics", above=0, maximum=1)
    curricular_t_alpha: float = setting(
        0.01, "of curricular: weight of a step in the mean of own cosines, t", above=0, maximum=1
    )
    sub_centres: int = setting(
        1, "centres of each class, of which the nearest counts (sub-centre ArcFace: 3)", minimum=1
    )
    magface_lower: float = setting(10.0, "of magface: smallest norm, l_a", above=0)
    magface_upper: float = setting(110.0, "of magface: largest norm, u_a", above=0)
    magface_lower_margin: float = setting(0.45, "of magface: margin at the smallest norm, radians", minimum=0)
    magface_upper_margin: float = setting(0.8, "of magface: margin at the largest norm, radians", minimum=0)
    magface_weight: float = setting(35.0, "of magface: weight of the regularizer, lambda_g", minimum=0)
    elastic_std: float = setting(
        0.05,
        "of elastic: deviation of the margins, around m2 (angle) or, where m2 is 0, m3 (cosine)",
        minimum=0,
    )
    scale: float = setting(64.0, "factor of the cosines before the softmax", above=0)
    easy_margin: bool = setting(False, "apply the margin to angles below 90 degrees only")
    gradient: str = setting(
        "exact",
        "how the margin's derivative reaches the target logit: straight-through as insightface does today",
        choices=("exact", "straight-through"),
    )
    interclass_filtering: float = setting(
        0.0, "leave out negatives whose cosine is above this; 0: off", minimum=0, maximum=1
    )
    sample_rate: float = setting(
        1.0, "share of the class centres used in a step (Partial FC); 0: the batch's own classes", minimum=0, maximum=1
    )
    update: str = setting(
        "sparse",
        "the optimizer state of centres that a step did not sample: sparse leaves it, dense decays it",
        choices=("sparse", "dense"),
    )
    centre_dtype: str = setting("float32", "type in which centres are stored", choices=("float32", "bfloat16"))
    init: str = setting("", "URL of a checkpoint to take centres from, with {rank} where there is a file a rank")
    precision: str = setting(
        "auto",
        "type of the head's matrix products, sums stay fp32; auto: fp32 on a CPU or when train.precision is, else fp16",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    momentum_dtype: str = setting(
        "float32",
        "type in which the centres' momentum (of adamw: the first moment) is stored",
        choices=("float32", "bfloat16"),
    )
    block_memory_mb: int = setting(
        0, "memory of one block of centres, its momentum and logits, MiB; 0: as the device likes", minimum=0
    )
