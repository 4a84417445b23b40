"""A run's session: its checkpoint, log, status line and signals, as train.py's loop uses them.

    with Session(args, command, signals) as session:
        session.record(flags)                   # refuses a checkpoint made with other flags
        session.start(steps, columns, …)
        for epoch in range(session.epoch + 1, epochs + 1):
            for step in range(session.step, steps):
                session.after_step(logs)
            row = session.after_steps()
            session.after_epoch(row)
"""
import contextlib
import math
import sys
import time

import torch
import torch.nn.functional as F

from plumbing import run
from plumbing.checkpoint import load_checkpoint, restoring, save_checkpoint
from plumbing.cli import BadInput, show_progress
from plumbing.distributed import RANK
from plumbing.status import StatusLine, epoch_line, note_of_machine

MAY_DIFFER_ON_RESUME = (*run.NO_EFFECT, "--deterministic")


class Session(contextlib.ExitStack):
    """Everything about a run that is not learning; its callback(…)s run however training ends.

    epoch       complete epochs
    step        steps done in the next epoch; not 0 if a run is resumed within an epoch
    rows        of log.csv, so far
    saved       the checkpoint that the run is resumed from, or None
    """

    def __init__(self, args, command, signals):
        """Reads last.pt, if there is one to resume. command: the words of the command line."""
        super().__init__()
        self.args, self.command, self.signals = args, command, signals
        self.last = args.out / "last.pt"
        self.config = {}
        self.saved = None
        if args.resume and self.last.exists():
            self.saved = load_checkpoint(self.last)
        elif args.resume and RANK == 0:
            print(f"{args.out} holds no checkpoint yet: starting from the beginning",
                  file=sys.stderr)
        begin = self.saved or {"epoch": 0, "step": 0, "rows": [], "seconds": 0.0}
        self.epoch, self.step, self.rows = begin["epoch"], begin["step"], begin["rows"]
        self.seconds_before = begin["seconds"]
        self.step_logs = []             # of the epoch so far, a vector per step
        self.holding = f"{self.last} holds nothing"
        self.started = self.written = time.monotonic()

    # --- before the first step

    def record(self, flags):
        """Adds {flag: value} to the run's configuration; a resumed run keeps its first values.

        Raises BadInput if the checkpoint to resume was made with other flags.
        """
        before = self.saved["config"] if self.saved else flags
        differences = [f"{flag} {before.get(flag)} there, {value} here"
                       for flag, value in flags.items()
                       if flag not in MAY_DIFFER_ON_RESUME and before.get(flag) != value]
        if differences:
            raise BadInput(f"{self.last} is of another configuration ({'; '.join(differences)}): "
                           "give the same flags, or another --out")
        self.config |= {flag: before.get(flag, value) for flag, value in flags.items()}

    def start(self, steps, columns, method_columns, checkpoint, device):
        """Creates the run's files, or continues them.

        steps: per epoch. columns: of log.csv; method_columns: those printed for each epoch.
        checkpoint: a function that returns the content of last.pt, a dict.
        """
        self.steps, self.method_columns, self.checkpoint = steps, method_columns, checkpoint
        self.signals.hold()     # until the end of a step, with all files written
        if self.saved is not None:
            with restoring(self.last):
                if self.step >= steps:
                    raise ValueError(f"it holds {self.step} steps of an epoch of {steps}")
                self.step_logs = list(self.saved["step_logs"].to(device).unbind())
            self.note_of_content()
            note_of_machine(self.saved["facts"], device)
        if RANK == 0 and self.args.overwrite:
            run.remove_run(self.args.out)
        if RANK == 0 and self.saved is None:
            run.write_config(self.args.out, self.command, self.config, device)
            self.save()
        if RANK == 0:
            self.log = run.Log(self.args.out, columns, self.rows, self.args.tensorboard)
        self.status = StatusLine(self.args, steps, self.epoch, self.step)

    # --- in the loop

    def next_batch(self, batches):
        """next(batches). A signal to stop does not wait for a stalled disk: it saves, and stops."""
        if RANK > 0:            # rank 0 decides
            return next(batches)
        try:
            self.signals.release()
            batch = next(batches)
            self.signals.hold()
            return batch
        except KeyboardInterrupt:
            self.signals.hold()
            self.save()
            raise

    def after_step(self, logs):
        """Status line, checkpoint, Ctrl-C. logs: {column: 0-dim tensor}, the loss first.

        Raises BadInput if a loss is not finite, KeyboardInterrupt after a signal to stop.
        """
        # reading logs synchronises with the device, so it is done once per second
        self.logged = list(logs)
        self.step_logs.append(torch.stack(list(logs.values())))
        if len(self.step_logs[0]) != len(logs):
            raise BadInput(f"{self.last} has logs of other columns: restore it")
        self.step += 1
        ends_epoch = self.step == self.steps        # then after_epoch() saves, and stops
        stop = self.signals.stop_wanted() and not ends_epoch
        save = stop or (self.due() and not ends_epoch)
        if save or self.status.due():
            self.check_losses()
            self.status.show(self.step, logs["loss"].item())
        if save:
            self.save()
        if stop:
            self.signals.release()

    def after_steps(self):
        """The means of the steps' logs, as a row of log.csv: {column: number}."""
        step_logs = self.check_losses()
        means = dict(zip(self.logged, step_logs.mean(0).tolist()))
        means["clipped"] *= self.steps              # a count of steps, not a share
        epoch = self.epoch + 1
        return {"epoch": epoch, "step": epoch * self.steps, **means,
                "samples_per_s": self.status.samples_per_second(self.steps)}

    def evaluation_is_due(self):
        """On rank 0, after every --eval-every-th epoch and the last one."""
        epoch = self.epoch + 1
        return RANK == 0 and (epoch % self.args.eval_every == 0 or epoch == self.args.epochs)

    def after_epoch(self, row):
        """Log, checkpoint, a printed line, Ctrl-C. row: of log.csv, {column: number}."""
        self.epoch, self.step, self.step_logs = self.epoch + 1, 0, []
        if RANK == 0:
            row["seconds"] = self.seconds()
            check_evaluation(row, self.rows, self.holding)
            self.rows.append(row)
            self.log.append(row)
            stop = self.signals.stop_wanted()       # a later signal waits for the next step
            if stop or self.due() or self.epoch == self.args.epochs:
                self.save()
            show_progress("")
            print(epoch_line(row, self.args.epochs, self.method_columns,
                             self.status.seconds_left()), flush=True)
            if stop:
                self.signals.release()
        self.status.start_epoch(self.epoch + 1, 0)

    # --- the checkpoint

    def due(self):
        seconds = time.monotonic() - self.written
        return RANK == 0 and seconds >= 60 * self.args.save_minutes

    def save(self):
        """Writes last.pt, unless the last step's update has broken the weights: BadInput."""
        checkpoint = self.checkpoint()
        if not all(value.isfinite().all() for value in checkpoint["learner"].values()):
            raise BadInput(f"a weight became NaN or infinite in epoch {self.epoch + 1}: try a "
                           f"lower --lr or a longer --warmup-epochs, with --clip 2; {self.holding}")
        save_checkpoint(self.last, checkpoint)
        self.note_of_content()

    def note_of_content(self):
        """Records what last.pt holds now."""
        self.written = time.monotonic()
        steps = f" and {self.step} steps" if self.step else ""
        self.holding = f"{self.last} holds epoch {self.epoch}{steps}"

    def seconds(self):
        """Seconds of training, including those before a resume."""
        return self.seconds_before + time.monotonic() - self.started

    def stacked_logs(self):
        """The logs of the epoch's steps so far: steps × columns."""
        return torch.stack(self.step_logs) if self.step_logs else torch.empty(0)

    # --- divergence

    def check_losses(self):
        """Raises BadInput if a loss is not finite or has exploded; returns stacked_logs()."""
        step_logs = self.stacked_logs()
        found = what_went_wrong(step_logs, [row["loss"] for row in self.rows])
        if found is not None:
            step, what = found
            raise BadInput(f"the loss {what} in epoch {self.epoch + 1}, step {step + 1} of "
                           f"{self.steps}: try a lower --lr or a longer --warmup-epochs (200 "
                           f"steps or more), with --clip 2; {self.holding}")
        return step_logs


def what_went_wrong(step_logs, earlier=()):
    """(step from 0, what happened) if logs are not finite, or if the loss has exploded: most of
    ten steps in a row have over a hundred times the smallest loss so far. A single peak passes:
    with clipped gradients, training recovers from it. None if nothing happened.

    step_logs: steps × columns, the loss first. earlier: mean losses of the epochs before, each of
    which counts as one step.
    """
    broken = ~step_logs.isfinite().all(1)                   # steps
    if broken.any():
        return int(broken.int().argmax()), "became NaN or infinite"

    losses = torch.cat([step_logs.new_tensor(earlier), step_logs[:, 0]]).abs()
    usual = losses.clamp_min(1).cummin(0).values
    high = losses > 100 * usual
    in_ten_steps = high.cumsum(0) - F.pad(high.cumsum(0), (10, 0))[:len(high)]
    exploded = in_ten_steps > 5
    if not exploded.any():
        return None
    step = int(exploded.int().argmax())
    return (max(0, step - len(earlier)),
            f"exploded, to {losses[step]:.3g} where {usual[step]:.3g} was usual,")


def check_evaluation(row, rows, holding):
    """Raises BadInput if an evaluation is not finite; prints a note on a collapse."""
    bad = [column for column, value in row.items() if not math.isfinite(value)]
    if bad:
        raise BadInput(f"the evaluation of epoch {row['epoch']} is not finite ({', '.join(bad)}): "
                       f"try a lower --lr; {holding}")
    was_collapsed = any(earlier.get("erank_z", 2) < 2 for earlier in rows)
    if row.get("erank_z", 2) < 2 and not was_collapsed:
        print(f"note: the embeddings' effective rank is only {row['erank_z']:.2f}: unless training "
              "has hardly begun, they have collapsed")
