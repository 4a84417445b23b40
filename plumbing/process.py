"""A training process: what it says while it works, and how it ends.

StatusLine keeps the terminal's last line up to date. Signals and orderly_end see to it that
whatever ends a run, Ctrl-C, a scheduler or a full disk, ends it with one line that says how to
go on, and with the right exit status.
"""
import contextlib
import math
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import torch

from plumbing.cli import SIGNALS, BadInput, is_fast, one_line_errors, show_progress
from data import left_out
from plumbing.distributed import RANK, WORLD_SIZE
from metrics import standard_error
from models import all_finite


# --- what is said ---------------------------------------------------------------------------

def duration(seconds):
    """h:mm:ss, or days and hours."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours > 48:
        return f"{hours // 24} days {hours % 24} h"
    return f"{hours}:{minutes:02}:{seconds:02}"


class StatusLine:
    """Rewrites the terminal's last line once per second, and says early how long a run will take.

    The estimate leaves out the first step of a process, which is slow: kernels are chosen, code
    may be compiled.
    """

    def __init__(self, args, steps, steps_done):
        """steps: of an epoch; steps_done: of the whole run, before this process."""
        self.epochs, self.batch_size, self.compiled = args.epochs, args.batch_size, args.compile
        self.steps = steps                      # per epoch
        self.steps_before = steps_done
        self.started = time.time()
        self.second_step = None         # when it began, and after how many steps of the run
        self.estimated = False

    def start_epoch(self, epoch, first):
        """first: the step, from 0, with which the epoch begins here."""
        self.epoch, self.first = epoch, first
        self.epoch_started = self.shown = time.time()

    def due(self):
        """Whether it is time to look at the device: after the first step, then every second."""
        return self.second_step is None or time.time() - self.shown > 1

    def show(self, step, loss):
        """step: how many of the epoch's steps are done; loss: the last one's."""
        now = self.shown = time.time()
        steps_done = (self.epoch - 1) * self.steps + step
        if self.second_step is None:
            self.second_step = {"time": now, "steps_done": steps_done}
            if self.compiled == "yes":
                print(f"compiling, with the first step, took {duration(now - self.started)}",
                      flush=True)
        elif not self.estimated and steps_done - self.second_step["steps_done"] >= 3:
            seconds = now - self.second_step["time"]
            seconds_per_step = seconds / (steps_done - self.second_step["steps_done"])
            remaining = self.epochs * self.steps - steps_done
            print(f"about {duration(seconds_per_step * remaining)} to go on this device",
                  flush=True)
            self.estimated = True
        show_progress(f"epoch {self.epoch}/{self.epochs}  step {step}/{self.steps}  "
                      f"loss {loss:.3f}  {self.samples_per_second(step):,.0f} samples/s")

    def samples_per_second(self, step):
        return (step - self.first) * self.batch_size / (time.time() - self.epoch_started)

    def seconds_left(self):
        """At the end of an epoch, from the time that all steps took on average."""
        steps_here = self.epoch * self.steps - self.steps_before
        steps_left = (self.epochs - self.epoch) * self.steps
        return (time.time() - self.started) / steps_here * steps_left


def describe(args, data, method, device):
    """What is trained, on what and where, in one line."""
    n_classes = len(data["classes"])
    labels = f"{n_classes} classes" if n_classes else "no labels: no probe"
    streamed = ", streamed from their files" if data["streamed"] else ""
    small = f"; left out: {left_out(data)}" if data.get("left_out") else ""
    where = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    if WORLD_SIZE > 1:
        where = f"{WORLD_SIZE} × {where}"
    return (f"{args.dataset}: {len(data['train_x']):,} training images of {data['image_size']} "
            f"pixels, {labels}{streamed}{small}; {args.arch} ({millions(method.encoder)} "
            f"parameters), projector {args.projector} ({millions(method.projector)}); "
            f"{where}, {args.precision}; to {args.out}")


def warn_of_few(n_test):
    """A note, where an accuracy can mean little."""
    if n_test < 200:
        print(f"note: there are {n_test} test images: an accuracy of 50 % has a standard error "
              f"of {standard_error(50, n_test):.0f} points")


def note_of_precision(precision, device):
    """A note, where a CPU lacks the instructions that a precision needs."""
    if device.type == "cpu" and not is_fast(precision, device):
        print(f"note: this CPU computes in {precision} ten times slower than in fp32, or worse: "
              "--precision fp32")


def note_of_threads(before, device):
    """A note, where a CPU's results will not be those of an uninterrupted run, bit for bit."""
    now = torch.get_num_threads()
    if device.type == "cpu" and before not in (None, now):
        print(f"note: the run began with {before} threads and goes on with {now}, which rounds "
              f"differently: OMP_NUM_THREADS={before} gives the same bits")


def millions(net):
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M"


def epoch_line(row, args, columns, seconds_left):
    """What an epoch prints. columns: the method's own."""
    words = [f"epoch {row['epoch']}/{args.epochs}  loss {row['loss']:.3f}"]
    words += [f"{column} {row[column]:.3f}" for column in columns]
    if "probe_top1" in row:
        words.append(f"probe {row['probe_top1']:.1f} %  k-NN {row['knn_top1']:.1f} %")
    words.append(f"{row['samples_per_s']:,.0f} samples/s  {duration(seconds_left)} left")
    return "  ".join(words)


def last_lines(out, row, untrained, n_test):
    """What a whole run prints at its end. untrained: the baseline's accuracy, or None."""
    files = ", ".join(sorted(path.name for path in out.iterdir() if path.name != "running.txt"))
    text = f"finished in {duration(row['seconds'])}; in {out}: {files}"
    if "probe_top1" not in row:
        return text
    accuracy = row["probe_top1"]
    text += (f"\nprobe accuracy: {accuracy:.1f} % (standard error of {n_test:,} test images: "
             f"{standard_error(accuracy, n_test):.1f})")
    if untrained is not None:
        text += (f"; of the same probe on the untrained encoder: {untrained:.1f} %; training "
                 f"gained {accuracy - untrained:.1f} points")
    return text


# --- how it ends ------------------------------------------------------------------------------

def what_went_wrong(step_logs, earlier=()):
    """(step from 0, what happened) of the first loss that is not finite, or a hundred times what
    is usual; None where all is well.

    step_logs: steps × columns, the loss first. earlier: mean losses of the epochs before.
    """
    losses = step_logs[:, 0].abs()
    earlier = losses.new_tensor(earlier).abs()
    usual = torch.cat([losses, earlier]).nanmedian().clamp_min(1)
    broken = ~step_logs.isfinite().all(1)                   # steps
    bad = broken | (losses > 100 * usual)
    if not bad.any():
        return None
    step = int(bad.int().argmax())
    if broken[step]:
        return step, "became NaN or infinite"
    return step, f"exploded, to {losses[step]:.3g} where {usual:.3g} is usual,"


def check_losses(step_logs, rows, steps, epoch, checkpoints):
    """Ends the run where a loss is not finite, or has exploded.

    step_logs: steps of this epoch so far × columns, the loss first; rows: of the log so far.
    """
    found = what_went_wrong(step_logs, [row["loss"] for row in rows])
    if found is None:
        return
    step, what = found
    raise BadInput(f"the loss {what} in epoch {epoch}, step {step + 1} of {steps}: try a lower "
                   "--lr or a longer --warmup-epochs (200 steps or more), with --clip 2; "
                   f"{checkpoints}")


def check_weights(learner, epoch, checkpoints):
    """Ends the run where a weight is not finite: the last step's update can break them."""
    if not all_finite(learner):
        raise BadInput(f"a weight became NaN or infinite in epoch {epoch}: try a lower --lr or a "
                       f"longer --warmup-epochs, with --clip 2; {checkpoints}")


def check_evaluation(row, rows, checkpoints):
    """Ends the run where an evaluation is not finite, before it is saved; warns of a collapse."""
    bad = [column for column, value in row.items() if not math.isfinite(value)]
    if bad:
        raise BadInput(f"the evaluation of epoch {row['epoch']} is not finite ({', '.join(bad)}): "
                       f"try a lower --lr; {checkpoints}")
    was_collapsed = any(earlier.get("erank_z", 2) < 2 for earlier in rows)
    if row.get("erank_z", 2) < 2 and not was_collapsed:
        print(f"note: the embeddings have collapsed: their effective rank is {row['erank_z']:.2f}")


ALWAYS_HEARD = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt: at once or, after hold(), at release().

    Training holds them until it has saved: raised inside DataLoader's handling of its workers,
    the exception would be swallowed. The second signal raises it in any case. SIGHUP stays
    ignored where it was, as nohup wants it.
    """

    def __init__(self):
        self.held = False
        self.received = None

    def __enter__(self):
        self.earlier = {}
        for number in SIGNALS:
            self.earlier[number] = signal.getsignal(number)
            if number in ALWAYS_HEARD or self.earlier[number] != signal.SIG_IGN:
                signal.signal(number, self.receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def receive(self, number, frame):
        is_second = self.received is not None
        self.received = number
        if is_second or not self.held:
            raise KeyboardInterrupt(number)

    def hold(self):
        self.held = True

    def stop_wanted(self):
        """Of several processes, the first one decides."""
        return RANK == 0 and self.received is not None

    def release(self):
        self.held = False
        if self.received:
            raise KeyboardInterrupt(self.received)


@contextlib.contextmanager
def orderly_end(program, command, signals):
    """Ends a training process with one line and the right exit status, whatever ended it."""
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")      # the first process speaks for all
        program = f"{program} (process {RANK})"
    with one_line_errors(program):
        try:
            yield
        except KeyboardInterrupt as interrupt:
            say_how_to_go_on(command)
            number = interrupt.args[0] if interrupt.args else signal.SIGINT
            sys.exit(128 + number)
        except (BadInput, OSError):
            if RANK > 0:        # what all have found out, the first has said, and torchrun ends
                time.sleep(10)  # this one; who is still there has something of its own to say
            raise
        except RuntimeError as error:
            message = str(error)
            network = re.search("gloo|nccl|peer|connection|socket", message, re.IGNORECASE)
            if WORLD_SIZE > 1 and network and signals.received:     # torchrun ends them all
                say_how_to_go_on(command)
                sys.exit(128 + signals.received)
            if WORLD_SIZE > 1 and network:
                reason = message.splitlines()[0]
                raise BadInput(f"another process of this run ended, see what it says ({reason}); "
                               "the same command with --resume goes on") from error
            if "DataLoader worker" in message:
                raise BadInput("a process that reads images was killed, probably for want of "
                               "memory; the same command with --resume goes on") from error
            raise


def say_how_to_go_on(command):
    show_progress("")
    if RANK == 0:
        print(f"train.py: stopped; go on with: {resume_command(command)}", file=sys.stderr)


def resume_command(command):
    """What to type to go on with a run that was started with this command line."""
    if WORLD_SIZE > 1:
        return "the same torchrun … and --resume"
    flags = [word for word in command if word not in ("--resume", "--overwrite")]
    script = Path(sys.modules["__main__"].__file__).absolute()
    return shlex.join([sys.executable, str(script), *flags, "--resume"])
