"""Dynamic loss scaling for fp16 when the gradients live on several ranks.

``torch.amp.GradScaler`` looks for Inf on its own rank only. Class centres are spread over ranks, so all ranks must
agree whether a step counts; the trainer makes that agreement, this class follows it.
"""

from __future__ import annotations

from app.errors import AppError

_MOST_SKIPS_AT_FLOOR = 20


class NotRecoveringError(AppError):
    """Gradients overflow fp16 whatever the scale; every step would be skipped for ever."""


class LossScale:
    """The factor that keeps fp16 gradients in range; 1 and inert unless ``enabled``.

    It doubles after ``growth_interval`` good steps and halves after a bad one, as the reference's scaler does; with
    ``fixed`` above 0 it is that for ever, as the Ascend port's, and a bad step is only skipped.
    """

    def __init__(
        self, *, enabled: bool, initial: float = 65536.0, growth_interval: int = 100, fixed: float = 0.0
    ) -> None:
        self.enabled, self.fixed = enabled, fixed
        self.scale = (fixed or initial) if enabled else 1.0
        self.growth_interval = growth_interval
        self.good_steps = 0
        self.skipped = 0  # steps of this start whose update was left out
        self._at_floor = 0  # of them, in a row with the least scale there is

    def update(self, *, finite: bool) -> None:
        """Take note of a step whose gradients were finite on all ranks, or not on some.

        Raises:
            NotRecoveringError: many in a row were not, with a scale that cannot become less.
        """
        if not self.enabled:
            return
        self._at_floor = self._at_floor + 1 if not finite and (self.fixed or self.scale == 1.0) else 0
        self.skipped += not finite
        if self._at_floor == _MOST_SKIPS_AT_FLOOR:
            raise NotRecoveringError(
                f"{_MOST_SKIPS_AT_FLOOR} steps in a row were skipped: gradients overflow fp16 even with loss scale "
                f"{self.scale:g}; "
                "set train.precision to bf16 or fp32, or lower head.scale or optim.lr; a checkpoint from before may "
                "already hold such weights"
            )
        if self.fixed:
            return
        if not finite:
            self.scale, self.good_steps = max(1.0, self.scale / 2), 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale, self.good_steps = self.scale * 2, 0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps; a run that does not scale knows no scale."""
        return {"scale": self.scale, "good_steps": self.good_steps} if self.enabled else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        if self.enabled and not self.fixed and state:
            self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
