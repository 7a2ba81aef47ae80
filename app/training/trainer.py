"""The training step: micro-batches of the logical workers, one update for all of them."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from app.checkpoint.manager import TrainingState
from app.config.recipe import Recipe
from app.data.loader import Batch
from app.data.pixels import normalise_
from app.device import dtype_of
from app.elastic import watchdog
from app.errors import AppError
from app.head.optimizer import CentreOptimizer
from app.head.partial_fc import ABSENT, HeadError, PartialFC
from app.seeds import torch_seed
from app.training.batch_statistics import BatchStatistics
from app.training.distillation import Distillation
from app.training.freeze import Freeze
from app.training.gradient_compression import compressed_all_reduce
from app.training.joinable import JoinableBackbone, lay_out_buckets
from app.training.loss_scale import LossScale
from app.training.ordered_sum import OrderedGradients
from app.training.plan import ElasticPlan
from app.world import World


class NotFiniteError(AppError):
    """The loss or a gradient is NaN or Inf; names the step and its samples: ``positions`` of each rank."""

    def __init__(self, message: str, positions: list[list[int]]) -> None:
        super().__init__(message)
        self.positions = positions


@dataclass(frozen=True)
class Notes:
    """What the ranks tell each other with every step, at no further message; of all ranks together, the sums.

    ``stop``: asked to end after this step. ``uploading``: a checkpoint, or the log that its commit
    waits for, is on its way. ``bad_records``: samples of the step in whose place others stand. ``late``: rank 0 finds
    that a checkpoint is due.
    """

    stop: int = 0
    uploading: int = 0
    bad_records: int = 0
    late: int = 0


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    ``loss``: mean over the global batch. ``gradient_norm``: of the backbone, before clipping. ``skipped``: gradients
    overflowed under fp16 and the step changed nothing. ``notes``: those of all ranks together.
    """

    loss: float
    gradient_norm: float
    skipped: bool
    notes: Notes


class Trainer:
    """Model, head and optimizers of one rank.

    Args:
        backbone: on its device already.
        plan: who runs which logical worker.
        distillation: a teacher that the backbone learns from, beside the head.
    """

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        plan: ElasticPlan,
        backbone: nn.Module,
        head: PartialFC,
        distillation: Distillation | None = None,
    ) -> None:
        self.recipe, self.world, self.plan = recipe, world, plan
        self.backbone, self.head, self.distillation = backbone, head, distillation
        self.projection = distillation.projection if distillation else None
        self.device = world.device
        ordered = plan if recipe.train.reproducible else None
        self.statistics = BatchStatistics(backbone, plan.logical_workers, ordered)
        self.sums = OrderedGradients(plan) if ordered else None
        self.parameters = self._learning()
        self.optimizer = self._make_optimizer()  # knows those too that are frozen now: without gradient they rest
        self.freeze = Freeze(recipe.model, backbone)
        self.freeze.apply(0)
        self.model = self._distribute()
        self.summed = recipe.train.gradient_accumulation if recipe.train.accumulate == "sum" else 1
        optim = recipe.optim
        self.centre_optimizer = CentreOptimizer(
            head,
            optim.name,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay if optim.head_weight_decay < 0 else optim.head_weight_decay,
            update=recipe.head.update,
            momentum_dtype=getattr(torch, recipe.head.momentum_dtype),
        )
        self.head_update = self.device.aside()
        self.loss_scale = LossScale(enabled=recipe.train.precision == "fp16", fixed=recipe.train.loss_scale)
        self.memory_format = torch.channels_last if recipe.model.channels_last else torch.contiguous_format

    def _distribute(self) -> nn.Module:
        """The backbone as all ranks train it, and the parameters that learn; anew whenever a freeze begins or ends."""
        if hasattr(self, "model"):  # the last reducer's hooks must be gone before the next one's gradients come
            del self.model
            gc.collect()
        model: nn.Module = JoinableBackbone(
            self.backbone, self.recipe.model.embedding_size, self.projection, alone=self.world.size == 1
        )
        self.parameters = self._learning()
        if self.world.size == 1 or not self.parameters or self.recipe.train.reproducible:
            return model
        model = DistributedDataParallel(
            model, bucket_cap_mb=16, gradient_as_bucket_view=True, forward_sync_buffers=False
        )
        compression = self.recipe.train.gradient_compression
        if compression != "none":
            model.register_comm_hook(dtype_of(compression), compressed_all_reduce)
        lay_out_buckets(model)
        return model

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the backbone, and of the map to a teacher's embeddings, which is in no model.pt."""
        return dict(self.backbone.named_parameters()) | dict(self._projection_items())

    def _projection_items(self) -> Iterator[tuple[str, nn.Parameter]]:
        if self.projection is not None:
            yield from self.projection.named_parameters(prefix="distill")

    def _learning(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._named_parameters().values() if parameter.requires_grad]

    def _make_optimizer(self) -> torch.optim.Optimizer:
        optim = self.recipe.optim
        if optim.name == "sgd":
            return torch.optim.SGD(
                self.parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
            )
        return torch.optim.AdamW(self.parameters, lr=optim.lr, weight_decay=optim.weight_decay)

    def step(self, number: int, batches: Sequence[Batch], lr: float, notes: Notes = Notes()) -> StepResult:
        """Train one global batch; every rank calls it with the batches of its share.

        Args:
            number: of the step, from 0; seeds the choice of classes.
            batches: one for each of this rank's logical workers.
            notes: of this rank; the result has those of all.

        Raises:
            NotFiniteError: the loss, or under fp32 and bf16 a gradient, is NaN or Inf; weights are as before the step.
            HeadError: a label outside the classes; names it and its sample.
        """
        if self.freeze.apply(number):
            self.model = self._distribute()
        # Insightface sums the means of micro-batches: the loss, and with it every gradient, is so many times larger.
        weight = self.recipe.train.batch_size * self.plan.logical_workers / self.summed
        self._check_labels(batches)
        self.optimizer.zero_grad(set_to_none=True)
        self.statistics.begin_step()
        self.device.clear_overflow()
        loss = torch.zeros((), device=self.device.torch_device)
        share = self.plan.share(self.world.rank)
        for turn in range(self.plan.rounds):
            if turn < len(share):
                # Dropout, masking and stochastic depth follow the logical worker, not the process that runs it.
                torch.manual_seed(torch_seed(self.recipe.train.seed, "train.micro_batch", number, share[turn]))
            batch = batches[turn] if turn < len(batches) else None
            last = turn == self.plan.rounds - 1
            with self._synchronized(last):
                watchdog.enter("forward", number)
                embeddings, labels, distance = self._forward(batch)
                watchdog.enter("head")
                if turn == 0:  # classes are sampled on the host, while an accelerator is busy with the backbone
                    self.head.begin_step(number, self._all_labels(batches))
                self.head_update.join()
                micro_loss = self.head(embeddings, labels, weight)
                if self.distillation is not None:
                    micro_loss = micro_loss + self.distillation.share(distance, weight)
                watchdog.enter("backward")
                (micro_loss * self.loss_scale.scale).backward()
            if self.sums is not None:
                self.sums.take(self.parameters, micro_loss, counts=batch is not None)
            else:
                loss += micro_loss.detach()
        if self.sums is not None:
            loss = self.sums.put(self.parameters)
        loss /= self.summed
        watchdog.enter("update")
        unscale = 1.0 / self.loss_scale.scale
        norm = self._gradient_norm(loss) * unscale
        mean_loss, gradient_norm, finite, totals = self._agree(loss, norm, notes)
        self.statistics.end_step(keep=finite)
        if not finite and (not self.loss_scale.enabled or math.isnan(mean_loss)):
            raise self._not_finite(number, mean_loss, gradient_norm, batches)
        if finite:
            self._update(lr, unscale, gradient_norm)
        self.loss_scale.update(finite=finite)
        return StepResult(mean_loss, gradient_norm, not finite, totals)

    def _gradient_norm(self, like: Tensor) -> Tensor:
        """Of the backbone, still scaled, []; parameters that no loss depends on get the gradient 0."""
        if not self.parameters:
            return like.new_zeros(())
        for parameter in self.parameters:
            if parameter.grad is None:
                # DDP makes it 0 where there are several processes: one alone must do the same.
                parameter.grad = torch.zeros_like(parameter)
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def _forward(self, batch: Batch | None) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, D], labels [B], and the sum of their distances from the teacher, []: 0 without one."""
        device, size = self.device.torch_device, self.recipe.model.embedding_size
        distance = torch.zeros((), device=device)
        if batch is None:
            empty = self.model(None)[:, :size]
            rows = self.recipe.train.batch_size
            # The head gathers equally many rows from every rank.
            padding = empty.new_zeros((rows, size))
            labels = torch.full((rows,), ABSENT, device=device)
            return torch.cat([empty, padding]), labels, distance
        pixels = batch.augmented(self.device.arrived(batch.images, batch.there))
        images = normalise_(pixels.to(torch.float32, memory_format=self.memory_format))
        with self.device.autocast(self.recipe.train.precision), self.statistics.micro_batch():
            embeddings = self.model(images)
        if self.distillation is not None:
            distance = self.distillation.loss(embeddings if self.projection is None else embeddings[:, size:], pixels)
        return embeddings[:, :size], batch.labels.to(device, non_blocking=True), distance

    def _synchronized(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _check_labels(self, batches: Sequence[Batch]) -> None:
        classes = self.head.shape.num_classes
        for batch in batches:
            strange = ((batch.labels < 0) | (batch.labels >= classes)).nonzero()
            if len(strange):
                row = int(strange[0, 0])
                raise HeadError(
                    f"rank {self.world.rank}: label {int(batch.labels[row])} of the sample at position "
                    f"{int(batch.positions[row])} of the dataset is outside the classes 0..{classes - 1}: "
                    "correct data.num_classes or the dataset"
                )

    def _all_labels(self, batches: Sequence[Batch]) -> Tensor | None:
        """Labels of the whole global batch, where the head samples classes by them."""
        if self.recipe.head.sample_rate >= 1:
            return None
        size = self.recipe.train.batch_size
        labels = torch.full((self.plan.rounds * size,), ABSENT)
        for turn, batch in enumerate(batches):
            labels[turn * size : (turn + 1) * size] = batch.labels
        gathered = self.world.all_gather(labels).flatten()
        return gathered[gathered != ABSENT]

    def _agree(self, loss: Tensor, norm: Tensor, notes: Notes) -> tuple[float, float, bool, Notes]:
        """One small message a step: is everything finite on every rank, and what do all note."""
        # One transfer to the host for all three.
        mean_loss, gradient_norm, centres_finite = torch.stack(
            [loss.double(), norm.double(), self.head.finite().double()]
        ).tolist()
        hidden = self.loss_scale.enabled and self.device.overflowed()
        bad = hidden or not (centres_finite and gradient_norm < float("inf") and abs(mean_loss) < float("inf"))
        sums = self.world.all_reduce([float(bad), *map(float, astuple(notes))], "sum")
        return mean_loss, gradient_norm, sums[0] == 0, Notes(*map(int, sums[1:]))

    def _update(self, lr: float, unscale: float, gradient_norm: float) -> None:
        clip = self.recipe.optim.clip_norm
        factor = unscale * (min(1.0, clip / (gradient_norm + 1e-6)) if clip > 0 else 1.0)
        if factor != 1.0 and self.parameters:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Nothing before the next step's head reads the centres: their update runs beside the backbone's, and beside
        # its next forward pass.
        head_lr = lr * self.recipe.optim.head_lr_factor
        self.head_update.run(lambda: self.centre_optimizer.step(head_lr, unscale), *self.head.step_tensors())
        self.optimizer.step()
        self.head.end_step()

    def _not_finite(self, number: int, loss: float, norm: float, batches: Sequence[Batch]) -> NotFiniteError:
        """The error that names the samples of all ranks; every rank comes here together."""
        size = self.recipe.train.batch_size
        own = torch.full((self.plan.rounds * size,), ABSENT)
        for turn, batch in enumerate(batches):
            own[turn * size : (turn + 1) * size] = batch.positions
        positions = [[p for p in rank if p != ABSENT] for rank in self.world.all_gather(own).tolist()]
        shown = ", ".join(f"rank {rank} {found[:4]}".replace("]", ", ...]") for rank, found in enumerate(positions))
        return NotFiniteError(
            f"step {number}: loss {loss}, gradient norm {norm} on rank {self.world.rank}: nothing was updated; lower "
            f"optim.lr, or look at the samples, by position in the dataset: {shown} (all: in the run's events/)",
            positions,
        )

    def state(self, step: int, meta: dict[str, Any]) -> TrainingState:
        """All that a checkpoint needs, as references to the live tensors."""
        self.head_update.join()
        replicated = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        replicated |= dict(self._projection_items())
        replicated |= {f"margin.{name}": value for name, value in self.head.margin.state_dict().items()}
        names = {id(p): name for name, p in self._named_parameters().items()}
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    replicated[f"optimizer.{names[id(parameter)]}.{key}"] = value
        sharded = {"centres": self.head.centres} | self.centre_optimizer.state
        own = {"loss_scale": self.loss_scale.state_dict(), "centre_steps": self.centre_optimizer.steps}
        return TrainingState(step, replicated, sharded, (self.head.start, self.head.stop), own | meta)

    def load(self, state: TrainingState) -> None:
        """Go on from a checkpoint, whatever world wrote it."""
        self.head_update.join()
        self.backbone.load_state_dict(state.under("backbone."))
        self.head.margin.load_state_dict(state.under("margin."))
        own = state.under("distill.")
        if self.projection is not None and own:  # a teacher that came later begins anew
            self.projection.load_state_dict(own)
        names = self._named_parameters()
        saved: dict[str, dict[str, Tensor]] = {}
        for path, value in state.under("optimizer.").items():
            name, _, key = path.rpartition(".")
            saved.setdefault(name, {})[key] = value
        for name, values in saved.items():
            if (parameter := names.get(name)) is None:  # of a teacher that the run has no more
                continue
            self.optimizer.state[parameter] = {
                # AdamW keeps its step count on the host.
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in values.items()
            }
        with torch.no_grad():
            self.head.centres.copy_(state.sharded["centres"])
            for key, value in self.centre_optimizer.state.items():
                value.copy_(state.sharded[key])
        self.centre_optimizer.steps = int(state.meta["centre_steps"])
        self.loss_scale.load_state_dict(state.meta["loss_scale"])
