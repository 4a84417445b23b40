"""A training process: what it says while it works, and how it ends.

Progress keeps the terminal's last line up to date. Signals and orderly_end see to it that
whatever ends a run, Ctrl-C, a scheduler or a full disk, ends it with one line that says how to
go on, and with the right exit status.
"""
import contextlib
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import torch

from cli import BadInput, one_line_errors, show_progress
from distributed import RANK, WORLD_SIZE


# --- what is said ---------------------------------------------------------------------------

def duration(seconds):
    """h:mm:ss, or days and hours."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours > 48:
        return f"{hours // 24} days {hours % 24} h"
    return f"{hours}:{minutes:02}:{seconds:02}"


class Progress:
    """Rewrites the terminal's last line once per second, and says early how long a run will take.

    The estimate leaves out the first step of a process, which is slow: kernels are chosen, code
    may be compiled.
    """

    def __init__(self, epochs, steps, batch_size, epochs_done):
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.epochs_done = epochs_done
        self.started = time.time()
        self.second_step = None         # when it began, and after how many steps of the run
        self.estimated = False

    def start_epoch(self, epoch):
        self.epoch = epoch
        self.epoch_started = self.shown = time.time()

    def due(self):
        """Whether it is time to look at the device: after the first step, then every second."""
        return self.second_step is None or time.time() - self.shown > 1

    def show(self, step, loss, compiled=False):
        """step: how many of the epoch's steps are done; loss: the last one's."""
        now = self.shown = time.time()
        steps_done = (self.epoch - 1) * self.steps + step
        if self.second_step is None:
            self.second_step = {"time": now, "steps_done": steps_done}
            if compiled:
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
        return step * self.batch_size / (time.time() - self.epoch_started)

    def seconds_left(self):
        epochs_here = self.epoch - self.epochs_done
        return (time.time() - self.started) / epochs_here * (self.epochs - self.epoch)


def describe(args, data, method, device):
    """What is trained, on what and where, in one line."""
    n_classes = len(data["classes"])
    labels = f"{n_classes} classes" if n_classes else "no labels: no probe"
    streamed = ", streamed from their files" if isinstance(data["train_x"], list) else ""
    where = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    if WORLD_SIZE > 1:
        where = f"{WORLD_SIZE} × {where}"
    return (f"{args.dataset}: {len(data['train_x']):,} training images of {data['image_size']} "
            f"pixels, {labels}{streamed}; {args.arch} ({millions(method.encoder)} parameters), "
            f"projector {args.projector} ({millions(method.projector)}); "
            f"{where}, {args.precision}; to {args.out}")


def millions(net):
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M"


def epoch_line(row, args, columns, seconds_left):
    """What an epoch prints. columns: the method's own."""
    words = [f"epoch {row['epoch']}/{args.epochs}"]
    words += [f"{column} {row[column]:.3f}" for column in columns]
    if "probe_top1" in row:
        words.append(f"probe {row['probe_top1']:.1f} %  k-NN {row['knn_top1']:.1f} %")
    words.append(f"{row['samples_per_s']:,.0f} samples/s  {duration(seconds_left)} left")
    return "  ".join(words)


# --- how it ends ------------------------------------------------------------------------------

class Signals:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt; while `hold` is set, only interrupt() does.

    Training holds them during a step: raised among the doings of the processes that read images,
    the exception would be lost.
    """

    def __init__(self):
        self.hold = False
        self.received = None

    def __enter__(self):
        self.earlier = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self.earlier[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def receive(self, number, frame):
        self.received = number
        if not self.hold:
            raise KeyboardInterrupt(number)

    def interrupt(self):
        raise KeyboardInterrupt(self.received)


@contextlib.contextmanager
def orderly_end(program, command):
    """Ends a training process with one line and the right exit status, whatever ended it."""
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")      # the first process speaks for all
        program = f"{program} (process {RANK})"
    with one_line_errors(program):
        try:
            yield
        except KeyboardInterrupt as interrupt:
            show_progress("")
            if RANK == 0:
                print(f"train.py: stopped; go on with: {resume_command(command)}",
                      file=sys.stderr)
            number = interrupt.args[0] if interrupt.args else signal.SIGINT
            sys.exit(128 + number)
        except RuntimeError as error:
            message = str(error)
            network = re.search("gloo|nccl|peer|connection|socket", message, re.IGNORECASE)
            if WORLD_SIZE > 1 and network:
                raise BadInput("another process of this run ended, see what it says; the same "
                               "command with --resume goes on") from error
            if "DataLoader worker" in message:
                raise BadInput("a process that reads images was killed, probably for want of "
                               "memory; the same command with --resume goes on") from error
            raise


def resume_command(command):
    """What to type to go on with a run that was started with this command line."""
    if WORLD_SIZE > 1:
        return "the same torchrun … and --resume"
    flags = [word for word in command if word not in ("--resume", "--overwrite")]
    script = Path(sys.modules["__main__"].__file__).absolute()
    return shlex.join([sys.executable, str(script), *flags, "--resume"])
