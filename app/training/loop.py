"""The training loop: steps of an epoch, logging, checkpoints, verification, and an orderly stop."""

from __future__ import annotations

import enum
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app import patience
from app.checkpoint.manager import CheckpointManager
from app.config.recipe import Recipe
from app.data.loader import Batch, Loader
from app.elastic import watchdog
from app.elastic.signals import StopRequest
from app.observe.events import EventLog
from app.observe.figures import Reporter
from app.observe.metrics import Metrics
from app.observe.progress import Progress, Remaining, Speed
from app.run_folder import run_url, save_model
from app.storage import StorageError
from app.training.checkpoint_clock import CheckpointClock
from app.training.profile_window import profiled_steps
from app.training.schedule import learning_rate
from app.training.state import RunState, recipe_fields
from app.training.trainer import Notes, NotFiniteError, StepResult, Trainer
from app.training.verifier import Verifier
from app.world import World


class Outcome(enum.Enum):
    """How the loop ended."""

    FINISHED = "finished"  # the last step of the recipe, or train.last_step
    COMPLETE = "complete"  # an earlier start finished; nothing was left to do
    STOPPED = "stopped"  # a node was asked to go; a checkpoint of this step is committed


@dataclass
class Loop:
    """Everything the loop works with; ``step`` is the number of steps done."""

    recipe: Recipe
    world: World
    trainer: Trainer
    loader: Loader
    checkpoints: CheckpointManager
    events: EventLog
    stop: StopRequest
    verifier: Verifier
    data_tag: str = ""  # identity of the dataset's content: a resumed run must train on the same
    step: int = 0

    def __post_init__(self) -> None:
        train = self.recipe.train
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = self.steps_per_epoch * train.epochs
        self.start_at(self.step)
        self.global_batch = train.batch_size * self.trainer.plan.logical_workers
        self.progress = Progress(
            self.total_steps,
            enabled=self.world.rank == 0,
            log=self.events.text.add,
            stamped=self.recipe.output.log_style == "insightface",
        )
        self.reporter = Reporter(
            self.progress,
            self.events,
            Metrics(self.recipe.output.prometheus_port if self.world.rank == 0 else 0),
            insightface=self.recipe.output.log_style == "insightface",
            fp16=self.recipe.train.precision == "fp16",
        )
        self._speed, self._remaining = Speed(), Remaining()
        self.started = time.monotonic()
        self._rates: list[float] = []
        self.bad_records = 0  # of the run: of all its starts and processes
        self._own_bad = 0  # of this process, in this start
        self.verification_due = False  # of the step that the run goes on from
        self._clock = CheckpointClock(self.recipe.checkpoint)
        self._stall = 0.0  # seconds in which training stood still for the save that is on its way
        self._between = 0.0  # seconds from the one before it, or the start, to its beginning

    def start_at(self, step: int) -> None:
        """Go on as if ``step`` steps were done."""
        train = self.recipe.train
        self.step = step if train.first_step < 0 else train.first_step
        self.last_step = self.total_steps if train.last_step < 0 else min(train.last_step, self.total_steps)
        if train.perf_steps:
            self.last_step = min(self.last_step, self.step + train.perf_steps)

    @property
    def images_per_second(self) -> float:
        """Median speed of all ranks together, over the reports so far."""
        return sorted(self._rates)[len(self._rates) // 2] if self._rates else 0.0

    def run(self) -> Outcome:
        """Train until the end or until a node is asked to stop."""
        try:
            with profiled_steps(self.recipe, self.world, self.progress, self.step, self.last_step) as profiler:
                outcome = self._run(profiler)
        finally:
            self.progress.close()
        if self.checkpoints.busy:
            watchdog.enter("checkpoint")
            self._commit()
        return outcome

    def _run(self, profiler: Any) -> Outcome:
        self._speed.restart()
        self._clock.restart()
        stopping = False
        if self.verification_due:
            self.verify()
        batches = self._batches()
        while self.step < self.last_step and not stopping:
            watchdog.enter("data", self.step)
            waited = time.perf_counter()
            batch = next(batches)
            self._speed.data_wait += time.perf_counter() - waited
            lr = learning_rate(self.recipe.optim, self.step, self.total_steps, self.steps_per_epoch)
            try:
                bad = sum(part.bad for part in batch)
                late = self.world.rank == 0 and self._clock.late
                uploading = self.checkpoints.uploading or self.events.uploading
                notes = Notes(self.stop.received, uploading, bad, late)
                result = self.trainer.step(self.step, batch, lr, notes)
            except NotFiniteError as error:
                self.events.add("not_finite", self.step, positions=error.positions)
                self.events.flush(wait=True)
                raise
            self.step += 1
            self._speed.add_step(self.global_batch, result.loss)
            self._count_bad(bad, result.notes.bad_records)
            watchdog.enter("log")
            if self.step % self.recipe.train.log_every == 0 or self.step == self.last_step:
                self._report(result, lr)
            stopping = result.notes.stop > 0
            watchdog.enter("checkpoint")
            if self.checkpoints.busy and (stopping or not result.notes.uploading):
                self._commit(wait=stopping)
            if stopping or (self._clock.due(self.step, result.notes.late > 0) and not self.checkpoints.busy):
                self._start_checkpoint()
            self._keep_model()
            if self.verifies_at(self.step):
                self.verify()
            if profiler is not None:
                profiler.step()
        return Outcome.STOPPED if stopping else Outcome.FINISHED

    def _keep_model(self) -> None:
        """Write model.pt after an epoch, where the recipe says so; a store that fails is warned about."""
        every = self.recipe.output.model_every * self.steps_per_epoch
        if not every or self.step % every or self.step >= self.last_step or self.recipe.train.perf_steps:
            return
        watchdog.enter("checkpoint")
        if self.world.rank == 0:
            try:
                save_model(run_url(self.recipe), self.trainer.backbone, self.recipe, self.step)
            except StorageError as error:
                warnings.warn(f"model.pt of step {self.step} could not be written: {error}", stacklevel=2)
        self._speed.restart_clock()

    def verifies_at(self, step: int) -> bool:
        """Whether the recipe wants a verification after ``step`` steps; that of the last step is of the run's end."""
        every = self.recipe.train.verify_every
        return every > 0 and step % every == 0 and 0 < step < self.last_step

    def verify(self) -> bool:
        """Accuracy on every configured set; a collective. False if a node was asked to go meanwhile."""
        watchdog.enter("verification", self.step)
        whole = self.verifier.verify(self.step, self.reporter)
        self._speed.restart_clock()
        return whole

    def save(self) -> None:
        """Commit a checkpoint of this step now, unless that was the last thing done."""
        if self.checkpoints.committed_step == self.step:
            return
        watchdog.enter("checkpoint")
        self._start_checkpoint()
        self._commit()

    def _start_checkpoint(self) -> None:
        began, self._between = time.perf_counter(), self._clock.seconds
        self.events.flush()  # the commit waits for it: who starts from there finds a whole curve
        self.checkpoints.start_save(self.trainer.state(self.step, self._meta()))
        self._stall = time.perf_counter() - began
        self._clock.restart()

    def _batches(self) -> Iterator[list[Batch]]:
        epoch, first = divmod(self.step, self.steps_per_epoch)
        share = self.trainer.plan.share(self.world.rank)
        yield from self.loader.steps(epoch, first, share, self.last_step - self.step)

    def _count_bad(self, own: int, of_all: int) -> None:
        """Count a trained step's unreadable records, and let the loader know of those that it did not see."""
        self.bad_records += of_all
        self._own_bad += own
        self.loader.bad_before = self.bad_records - self._own_bad

    def _report(self, result: StepResult, lr: float) -> None:
        speed, scaling = self._speed, self.trainer.loss_scale
        rate = speed.images_per_second
        self._rates.append(rate)
        eta = self._remaining.after(speed.steps, speed.seconds, self.total_steps - self.step)
        figures = {
            "loss": speed.mean_loss,
            "lr": lr,
            "epoch": (self.step - 1) // self.steps_per_epoch,
            "images_per_second": rate,
            "hours_left": eta / 3600,
            "gradient_norm": result.gradient_norm,
            "loss_scale": scaling.scale,
            "skipped_steps": scaling.skipped,
            "world_size": self.world.size,
            "bad_records": self.bad_records,
            "data_wait_share": speed.data_wait_share,
            "data_wait_seconds": speed.data_wait / max(1, speed.steps),
            "store_retries": patience.counters.retries,
            "store_wait_seconds": patience.counters.seconds,
            **self.loader.figures(),
        }
        self.reporter.report(self.step, figures)
        speed.restart()

    def _commit(self, *, wait: bool = True) -> None:
        """Take the save that is on its way to its end, or only a stage on."""
        began = time.perf_counter()
        manifest = self.checkpoints.finish_save() if wait else self.checkpoints.advance()
        self._stall += time.perf_counter() - began
        if manifest is None:
            return
        size = sum(item.size for item in manifest.objects)
        self.reporter.committed(manifest.step, size, self._stall, self._between)

    def _meta(self) -> dict[str, Any]:
        return RunState(
            recipe=recipe_fields(self.recipe),
            logical_workers=self.trainer.plan.logical_workers,
            num_classes=self.trainer.head.shape.num_classes,
            data_tag=self.data_tag,
            highest=dict(self.verifier.highest),
            best_mean=self.verifier.best_mean,
            bad_records=self.bad_records,
            trackers=dict(self.events.trackers.run_ids),
        ).to_meta()
