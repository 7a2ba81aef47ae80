"""Parts of the backbone that do not learn for a while: their weights get no gradient, their statistics do not move.

What is frozen is a function of the step, so a run that goes on from a checkpoint is where it would have been.
"""

from __future__ import annotations

from torch import nn

from app.backbones.config import ModelConfig
from app.config.recipe import RecipeError


class Freeze:
    """What of a backbone is frozen, and until when; see ``model.freeze``.

    Args:
        steps_per_epoch: unit of ``model.freeze_epochs``; 0 where it is not known yet: then the freeze holds.

    Raises:
        RecipeError: the backbone has no stages that could be told apart.
    """

    def __init__(self, config: ModelConfig, backbone: nn.Module, steps_per_epoch: int = 0) -> None:
        self.config, self.backbone, self.steps_per_epoch = config, backbone, steps_per_epoch
        self._learns = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        self._frozen = False
        self._parts: tuple[str, ...] = ()  # of the frozen stages
        self._modules = self._frozen_modules()

    def _frozen_modules(self) -> dict[str, nn.Module]:
        """The modules that are frozen, with all that is in them, by name."""
        kind, modules = self.config.freeze, dict(self.backbone.named_modules())
        if kind == "none":
            return {}
        if kind == "backbone":
            return modules
        if kind == "batchnorm":
            return {name: m for name, m in modules.items() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        stages = getattr(self.backbone, "freezable", None)
        if stages is None:
            raise RecipeError("model.freeze stages: this backbone does not name its stages: take backbone or batchnorm")
        self._parts = tuple(part for stage in stages()[: self.config.freeze_stages + 1] for part in stage)
        inside = tuple(f"{part}." for part in self._parts)
        return {name: m for name, m in modules.items() if name in self._parts or name.startswith(inside)}

    def holds(self, step: int) -> bool:
        """Whether anything is frozen in a step."""
        if self.config.freeze == "none":
            return False
        if not (self.config.freeze_epochs and self.steps_per_epoch):
            return True
        return step < int(self.config.freeze_epochs * self.steps_per_epoch)

    def apply(self, step: int) -> bool:
        """Freeze or thaw for a step; True when that changed which parameters learn.

        Modes are set anew in every step, since a verification puts the whole backbone into training mode again.
        """
        frozen = self.holds(step)
        for module in self._modules.values():
            module.training = not frozen
        changed, self._frozen = frozen != self._frozen, frozen
        if changed:
            resting = self._frozen_parameters() if frozen else set()
            for name, parameter in self.backbone.named_parameters():
                parameter.requires_grad_(name in self._learns and name not in resting)
        return changed

    def _frozen_parameters(self) -> set[str]:
        """Names of the frozen modules' parameters, and of a stage's that lie in no module (a position embedding)."""
        names = {
            f"{path}.{name}" if path else name
            for path, module in self._modules.items()
            for name, _ in module.named_parameters(recurse=False)
        }
        return names | set(self._parts)
