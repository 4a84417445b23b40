"""The printed output of a run: its first lines, status line, a line per epoch, its last lines."""
import time

import torch

from data import notes
from metrics import standard_error
from plumbing.cli import is_fast, show_progress
from plumbing.distributed import WORLD_SIZE


def duration(seconds):
    """h:mm:ss, or days and hours."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours > 48:
        return f"{hours // 24} days {hours % 24} h"
    return f"{hours}:{minutes:02}:{seconds:02}"


class StatusLine:
    """Rewrites the terminal's last line once per second; estimates early how long a run takes.

    The estimate leaves out a process's first step, which is slow: it picks kernels and compiles.
    """

    def __init__(self, args, steps, epoch, step):
        """steps: per epoch. epoch, step: where this process begins, see Session."""
        self.epochs, self.batch_size, self.compiled = args.epochs, args.batch_size, args.compile
        self.steps = steps
        self.steps_before = epoch * steps + step
        self.started = time.monotonic()
        self.second_step = None         # when it began, and after how many steps of the run
        self.estimated = False
        self.start_epoch(epoch + 1, step)

    def start_epoch(self, epoch, first):
        """epoch: from 1. first: the epoch's first step in this process, from 0."""
        self.epoch, self.first = epoch, first
        self.epoch_started = self.shown = time.monotonic()

    def due(self):
        """Whether to show() the line again: after the first step, then every second."""
        return self.second_step is None or time.monotonic() - self.shown > 1

    def show(self, step, loss):
        """step: steps done in the epoch."""
        now = self.shown = time.monotonic()
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
        seconds = max(1e-9, time.monotonic() - self.epoch_started)      # some clocks are coarse
        return (step - self.first) * self.batch_size / seconds

    def seconds_left(self):
        """An estimate for the end of an epoch, from the average time of all steps."""
        steps_here = self.epoch * self.steps - self.steps_before
        steps_left = (self.epochs - self.epoch) * self.steps
        return (time.monotonic() - self.started) / steps_here * steps_left


def announce(args, data, method, device):
    """Prints a run's data, networks, device and folder in one line, and notes if necessary."""
    n_classes = len(data["classes"])
    labels = f"{n_classes} classes" if n_classes else "no labels: no probe"
    streamed = ", streamed from their files" if data["streamed"] else ""
    where = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    if WORLD_SIZE > 1:
        where = f"{WORLD_SIZE} × {where}"
    print(f"{args.dataset}: {len(data['train_x']):,} training images of {data['image_size']} "
          f"pixels, {labels}{streamed}; {args.arch} ({millions(method.encoder)} "
          f"parameters), projector {args.projector} ({millions(method.projector)}); "
          f"{where}, {args.precision}; to {args.out}")
    for note in notes(data):
        print(note)
    note_of_precision(args.precision, device)
    n_test = len(data["test_x"])
    if n_classes and n_test < 200:
        print(f"note: there are {n_test} test images: an accuracy of 50 % has a standard error "
              f"of {standard_error(50, n_test):.0f} points")


def note_of_precision(precision, device):
    if is_fast(precision, device):
        return
    if device.type == "cuda":
        print(f"note: this GPU only emulates {precision}, slowly: use --precision fp16 or fp32")
    else:
        print(f"note: this CPU computes in {precision} ten times slower than in fp32, or worse: "
              "use --precision fp32")


def note_of_machine(facts, device):
    """Prints a note if results will differ from those of an uninterrupted run.

    facts: the checkpoint's, see facts_of in checkpoint.py.
    """
    before, now = facts.get("threads"), torch.get_num_threads()
    if device.type == "cpu" and before not in (None, now):
        print(f"note: the run began with {before} threads and goes on with {now}, which rounds "
              f"differently: OMP_NUM_THREADS={before} gives the same bits")
    before = facts.get("processes")
    if before not in (None, WORLD_SIZE):
        print(f"note: the run began with {before} processes and goes on with {WORLD_SIZE}: it "
              "draws other augmentations from here on")


def millions(net):
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M"


def epoch_line(row, epochs, columns, seconds_left):
    """The line printed for an epoch. columns: the method's own."""
    words = [f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}"]
    words += [f"{column} {row[column]:.3f}" for column in columns]
    if "probe_top1" in row:
        words.append(f"probe {row['probe_top1']:.1f} %  k-NN {row['knn_top1']:.1f} %")
    words.append(f"{row['samples_per_s']:,.0f} samples/s  {duration(seconds_left)} left")
    return "  ".join(words)


def last_lines(out, row, untrained, n_test):
    """The output at the end of a run. untrained: the baseline's accuracy, or None."""
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
