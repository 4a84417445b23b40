"""What a run needs besides learning: its files, its flags, signals to stop, one-line errors.

All scripts end with status 0; 2 with one line on stderr for bad input; 130 after Ctrl-C.
"""
import argparse
import contextlib
import csv
import datetime
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import torch

from distributed import LOCAL_RANK, RANK, WORLD_SIZE
from metrics import standard_error
from models import fast_precision

try:
    import fcntl
except ImportError:         # Windows
    fcntl = None

LEFT_BEHIND = ("config.json", "log.csv", "last.pt", "backbone.pt", "encoder.json", "dynamics.png",
               "layers.png")
# flags that may differ when a run is resumed: none of them changes the result
NO_EFFECT = ("--out", "--data-dir", "--classes", "--resident", "--device", "--compile",
             "--deterministic", "--save-minutes", "--resume", "--overwrite")

PROGRESS_SECONDS = 1 if sys.stdout.isatty() else 60     # between two lines of progress

DIVERGED = ("try a lower --lr or a longer --warmup-epochs (200 steps or more), with --clip 2; "
            "last.pt holds the run as it was before")


# --- command lines --------------------------------------------------------------------------------

class BadInput(ValueError):
    """An error that the user can fix. Scripts print it as one line and exit with status 2."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps a docstring's line breaks; shows all defaults but None, False and empty ones."""

    def _get_help_string(self, action):
        hidden = action.default in (None, "", argparse.SUPPRESS)
        if hidden or isinstance(action.default, bool) or "default:" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse's parser without abbreviated flags; raises BadInput where argparse would exit."""

    def __init__(self, program, description, **settings):
        super().__init__(prog=program, description=description, allow_abbrev=False,
                         formatter_class=HelpFormatter, **settings)
        # argparse would take the number in --beta -1e-4 for another flag
        self._negative_number_matcher = re.compile(r"-(\d|\.\d)")

    def error(self, message):
        raise BadInput(f"{message} (--help explains the flags)")


def split_arguments(argv):
    """A script's own arguments, and those after --, which are for train.py."""
    split = argv.index("--") if "--" in argv else len(argv)
    return argv[:split], argv[split + 1:]


def at_least(low, kind=int):
    """An argparse type: whole numbers, or kind=float numbers, from low up."""
    def parse(text):
        value = kind(text)
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be {low} or more, not {text}")
        return value
    parse.__name__ = "whole number" if kind is int else "number"    # for argparse's messages
    return parse


def positive(text):
    """An argparse type: numbers above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


@contextlib.contextmanager
def one_line_errors(program):
    """Ends the program with one line on bad input or lack of memory, and quietly on Ctrl-C."""
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")      # of several processes, rank 0 prints
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")        # for terminals that cannot show α
    try:
        yield
    except (BadInput, OSError) as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        message = f"not enough memory, try smaller batches, networks or samples ({error})"
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    else:
        return
    show_progress("")
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def show_progress(text):
    """Rewrites the terminal's last line; in a file or a pipe, adds a line."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)
    elif text:
        print(text, flush=True)


class StopSignal:
    """Ctrl-C or SIGTERM, as a flag that the training loop looks at after each step.

    A second signal ends the process at once. With several processes, rank 0 saves and stops.
    """
    received = None     # the signal's number

    def __enter__(self):
        self.earlier = {number: signal.getsignal(number)
                        for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def listen(self):
        for number in self.earlier:
            signal.signal(number, self.receive)

    def receive(self, number, frame):
        self.received = number
        for either in self.earlier:
            signal.signal(either, signal.SIG_DFL)

    def exit_if_received(self):
        if self.received:
            show_progress("")
            print("train.py: stopped; the same command with --resume goes on", file=sys.stderr)
            sys.exit(128 + self.received)

    def __exit__(self, kind, error, traceback):
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        if RANK > 0 and self.received and isinstance(error, RuntimeError):  # rank 0 has hung up
            sys.exit(128 + self.received)


# --- the device --------------------------------------------------------------------------------

def open_device(name):
    """The torch.device for --device; "auto" takes a GPU if there is one.

    A GPU is returned with its number and becomes the current device. Several processes on GPUs
    take one each. Raises BadInput if the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", LOCAL_RANK if WORLD_SIZE > 1 else device.index or 0)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {name} cannot be used here ({reason})") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # true float32: by default convolutions use TF32, with ten bits of mantissa
        torch.backends.cudnn.allow_tf32 = False
    return device


def set_determinism(exact):
    """exact: only GPU kernels that give the same bits each time. Otherwise the fastest ones."""
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")     # cuBLAS asks for it
    torch.use_deterministic_algorithms(exact)
    torch.backends.cudnn.benchmark = not exact


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


# --- the folder -------------------------------------------------------------------------------

@contextlib.contextmanager
def reserved(out, resume=False, overwrite=False):
    """Creates a run's folder, and locks it for this process until the `with` block ends.

    Raises BadInput if another process is training in it, or if it holds a run and neither resume
    nor overwrite is set; OSError if it cannot be written to.
    """
    if RANK > 0:        # rank 0 manages the folder
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out)     # it ends with this process, however that ends
    try:
        last = out / "last.pt"
        holds_run = last.exists() or (out / "log.csv").exists()
        if holds_run and not overwrite and not (resume and last.exists()):
            raise BadInput(f"{out} already holds a run: --resume continues it from last.pt, "
                           "--overwrite replaces it, another --out keeps it")
        yield
    finally:
        with contextlib.suppress(OSError):      # rmdir fails unless nothing was written
            out.rmdir()
        if lock is not None:
            os.close(lock)


def lock_folder(folder):
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another process is training in {folder}: wait for it, or choose another "
                       "--out") from None
    return lock


def remove_run(out):
    """Deletes an earlier run's files, and nothing else in the folder."""
    for name in LEFT_BEHIND:
        (out / name).unlink(missing_ok=True)


def write_whole(path, write):
    """Writes a file atomically: calls write(file) on a temporary file, and renames it to path."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_text(path, text):
    write_whole(path, lambda file: file.write(text.encode()))


# --- its files: config.json, log.csv, last.pt, backbone.pt, encoder.json ------------------------

def flags_of(args):
    """{"--alpha": 0.5, …}: every flag, with a value that JSON can write."""
    return {f"--{name.replace('_', '-')}": str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()}


def git_commit():
    """The commit of this code, with "+" if files differ from it; None without git."""
    command = "git describe --always --exclude=* --abbrev=40 --dirty=+".split()
    with contextlib.suppress(OSError):      # there is no git
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True,
                              text=True).stdout.strip()


def write_config(out, arguments, flags, device):
    """Writes config.json. arguments: the command line; flags: see flags_of."""
    config = {
        "program": "train.py",
        "arguments": list(arguments),
        "flags": flags,
        "device": f"{device} ({device_name(device)})",
        "processes": WORLD_SIZE,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "git": git_commit(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    write_text(out / "config.json", json.dumps(config, indent=1) + "\n")


def read_config(folder):
    """A run's config.json as a dict; raises BadInput if there is none."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}): is {folder} a run's folder?") from error


def write_log(out, columns, rows):
    """Writes log.csv. rows: dicts {column: number}; an epoch without evaluation lacks some."""
    lines = [",".join(columns)]
    for row in rows:
        lines.append(",".join(f"{row[column]:.7g}" if column in row else "" for column in columns))
    write_text(out / "log.csv", "\n".join(lines) + "\n")


def read_log(path):
    """A run's log.csv as {column: [a float per epoch]}; NaN for empty fields."""
    rows = list(csv.DictReader(Path(path).read_text(encoding="utf-8").splitlines()))
    return {column: [float(row[column] or "nan") for row in rows] for column in rows[0]}


def last_value(log, column):
    """The last number in a column of a log; NaN if there is none."""
    numbers = [value for value in log.get(column, []) if not math.isnan(value)]
    return numbers[-1] if numbers else math.nan


def load_checkpoint(path):
    """A run's last.pt as a dict, on the CPU, see train.py's save(); None if there is none.

    Raises BadInput if it cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:      # a damaged file can raise anything
        raise BadInput(f"{path} is not a whole checkpoint ({type(error).__name__})") from error


def save_checkpoint(path, checkpoint):
    """Writes last.pt, but never broken weights over good ones: raises BadInput."""
    if not all(value.isfinite().all() for value in checkpoint["learner"].values()):
        raise BadInput(f"a weight became NaN or infinite: {DIVERGED}")
    write_whole(path, lambda file: torch.save(checkpoint, file))


def facts_of(data, data_dir):
    """A checkpoint's record of the images, for evaluate.py. data: see data.load."""
    keys = ("classes", "size", "image_size", "stem", "mean", "std", "streamed")
    return {key: data[key] for key in keys} | {"data_dir": str(Path(data_dir).absolute())}


def resolve_auto(args, saved, device):
    """Replaces "auto" in --precision and, on resuming, sets --resident. saved: last.pt, or None.

    A resumed run keeps its precision, and keeps its images in memory or streams them as before:
    the two ways crop differently, so its results would change.
    """
    if saved:
        args.resident = "no" if saved["facts"]["streamed"] else "yes"
    if saved and args.precision == "auto":
        args.precision = saved["config"]["--precision"]
    elif args.precision == "auto":
        args.precision = fast_precision(device)


def check_same_flags(config, flags, path):
    """Raises BadInput, naming the flags, if a run was begun with other flags than these."""
    other = [f"{flag} {config.get(flag)} there, {value} here" for flag, value in flags.items()
             if flag not in NO_EFFECT and config.get(flag) != value]
    if other:
        raise BadInput(f"{path} is of another configuration ({'; '.join(other)}): give the same "
                       "flags, or another --out")


def save_backbone(out, encoder, args, data, command):
    """Writes the encoder's state_dict, on the CPU, in torchvision's format, and its facts."""
    facts = {"arch": args.arch, "width": args.width,
             **{name: data[name] for name in ("stem", "size", "image_size", "mean", "std")},
             "command": shlex.join(["train.py", *command])}
    write_text(out / "encoder.json", json.dumps(facts, indent=1) + "\n")
    weights = {name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}
    write_whole(out / "backbone.pt", lambda file: torch.save(weights, file))


# --- what is printed ----------------------------------------------------------------------------

def check_finite(step_logs, epoch):
    """The steps' logs (a vector each) as a matrix; raises BadInput if one is not finite."""
    matrix = torch.stack(step_logs)                         # steps × columns
    broken = (~matrix.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise BadInput(f"the loss became NaN or infinite in epoch {epoch}, step {broken[0] + 1}: "
                       f"{DIVERGED}")
    return matrix


def time_left(seconds, share):
    """The text of the time that remains, if `seconds` did this share of the run."""
    return f"{datetime.timedelta(seconds=int(seconds / share - seconds))} left"


def warn_of_weeks(args, device):
    """Says, before anything is downloaded, that the default network is not one for a CPU."""
    if device.type == "cpu" and args.width >= 64 and args.epochs >= 100:
        print(f"note: {args.arch} for {args.epochs} epochs takes weeks on a CPU. An hour "
              "of CIFAR-100, in small: --arch resnet18 --width 8 --projector 512-512-512 --epochs "
              "20 --alpha-every 1", flush=True)


def announce(args, data, method, device):
    """Prints a run's data, networks, device and folder in one line."""
    labels = f"{len(data['classes'])} classes" if data["classes"] else "no labels: no probe"
    params = sum(p.numel() for p in method.parameters()) / 1e6
    print(f"{args.dataset}: {len(data['train_x']):,} training images of {data['image_size']} "
          f"pixels, {labels}; {args.arch}, {params:.1f} M parameters with the projector; "
          f"{WORLD_SIZE} × {device_name(device)}, {args.precision}; to {args.out}", flush=True)


def print_epoch(row, epochs, columns):
    """Prints an epoch's line. columns: the method's own."""
    words = [f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}"]
    words += [f"{column} {row[column]:.3f}" for column in columns]
    if "probe_top1" in row:
        words.append(f"probe {row['probe_top1']:.1f} %  k-NN {row['knn_top1']:.1f} %")
    left = time_left(row["seconds"], row["epoch"] / epochs)
    words.append(f"{row['samples_per_s']:,.0f} samples/s  {left}")
    show_progress("")
    print("  ".join(words), flush=True)


def print_summary(out, row, untrained, n_test):
    """Prints the last lines of a run. untrained: the baseline's accuracy, or None."""
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    print(f"finished in {datetime.timedelta(seconds=int(row['seconds']))}; in {out}: {files}")
    if "probe_top1" not in row:
        return
    accuracy = row["probe_top1"]
    error = standard_error(accuracy, n_test)
    print(f"probe accuracy: {accuracy:.1f} % (standard error of {n_test:,} test images: "
          f"{error:.1f})")
    if untrained is not None:
        print(f"the same probe on the untrained encoder: {untrained:.1f} %; training gained "
              f"{accuracy - untrained:.1f} points")
