"""Dynamic loss scaling for fp16 when the gradients live on several ranks.

``torch.amp.GradScaler`` looks for Inf on its own rank only. Class centres are spread over ranks, so all ranks must
agree whether a step counts; the trainer makes that agreement, this class follows it.
"""

from __future__ import annotations


class LossScale:
    """The factor that keeps fp16 gradients in range; 1 and inert unless ``enabled``.

    It doubles after ``growth_interval`` good steps and halves after a bad one, as the reference's scaler does.
    """

    def __init__(self, *, enabled: bool, initial: float = 65536.0, growth_interval: int = 100) -> None:
        self.enabled = enabled
        self.scale = initial if enabled else 1.0
        self.growth_interval = growth_interval
        self.good_steps = 0

    def update(self, *, finite: bool) -> None:
        """Take note of a step whose gradients were finite on all ranks, or not on some."""
        if not self.enabled:
            return
        if not finite:
            self.scale, self.good_steps = max(1.0, self.scale / 2), 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale, self.good_steps = self.scale * 2, 0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        if self.enabled:
            self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
