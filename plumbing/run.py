"""A run's folder: its files, and the lock that keeps other processes out.

    config.json     the command, every flag, versions, git commit, device
    log.csv         one row per epoch
    last.pt         the newest checkpoint, from which --resume continues exactly
    previous.pt     the checkpoint before it
    running.txt     the process that is training, while it does
    backbone.pt     the trained encoder, in torchvision's format
    encoder.json    what models.load_encoder needs to use it: copy both
    dynamics.png    accuracy, α, effective rank and I(R;Z) over the epochs

    from plumbing.run import last_value, read_config, read_log
    log = read_log("runs/demo/log.csv")             # {column: [a number per epoch]}
    print(read_config("runs/demo")["flags"]["--alpha"], last_value(log, "probe_top1"))

Writes are atomic. Log rows newer than last.pt are dropped and recomputed.
"""
import contextlib
import csv
import datetime
import json
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy
import torch
import torchvision

from plumbing.cli import LARGEST_NUMBER, BadInput
from plumbing.distributed import RANK, WORLD_SIZE

LEFT_BEHIND = ("config.json", "log.csv", "last.pt", "previous.pt", "backbone.pt", "encoder.json",
               "dynamics.png", "evaluation.json", "layers.csv", "layers.png", "picture.png",
               "events.out.*")
# flags that do not change the result
NO_EFFECT = ("--out", "--data-dir", "--classes", "--resident", "--device", "--compile",
             "--save-minutes", "--tensorboard", "--resume", "--overwrite", "--skip-unreadable")
NAMING_FLAGS = ("--method", "--alpha", "--beta", "--mi-scale", "--alpha-from")     # see results.py
PATH_FLAGS = ("--out", "--data-dir", "--classes")       # may hold any characters


# --- the folder -------------------------------------------------------------------------------

@contextlib.contextmanager
def made_folder(path):
    """Creates a folder and its parents; removes those that are empty at the end."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):      # rmdir fails if anything was written
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def reserved(out, resume, overwrite):
    """Creates a run's folder, and locks it for this process until the `with` block ends.

    Raises BadInput if the folder cannot be written to, if another process is training in it, or
    if it holds a run and neither resume nor overwrite is set. An empty folder is removed again.
    """
    if RANK > 0:        # rank 0 manages the folder
        yield
        return
    check_folder(out, resume, overwrite)
    with made_folder(out), locked(out / "running.txt"):
        check_folder(out, resume, overwrite)    # another process may have just finished
        for part in out.glob("*.part"):         # left by a process that was killed
            part.unlink()
        yield


def check_folder(out, resume, overwrite):
    """Raises BadInput if a run may not be written to `out`."""
    log, checkpoint = out / "log.csv", out / "last.pt"
    if (log.exists() or checkpoint.exists()) and not (resume or overwrite):
        raise BadInput(f"{out} already holds a run: --resume continues it, --overwrite "
                       "replaces it, another --out keeps it")
    if resume and not checkpoint.exists() and log.exists():
        if log.read_bytes().count(b"\n") > 1:
            raise BadInput(f"{out} holds a log but no last.pt to continue from: --overwrite "
                           "replaces the run, another --out keeps it")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"cannot write to {out}: {there} is not a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"cannot write to {out}: {there} is not writable")


@contextlib.contextmanager
def locked(path):
    """Locks a file for this process, and writes its number into it; removes it at the end.

    The lock ends with the process, however that ends, and worker processes do not inherit it.
    Raises BadInput if another process holds it.
    """
    file = open(path, "a+", encoding="utf-8")
    try:
        import fcntl        # not on Windows
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or "it has just begun"
        file.close()
        raise BadInput(f"--out: another process is training in {path.parent} ({owner}): wait for "
                       "it, or choose another --out") from None
    except (ImportError, OSError):      # some network disks have no locks
        print(f"note: {path.parent} cannot be locked; do not start a second run in it",
              file=sys.stderr)
    if not path.exists():       # its owner removed it, at its end, while this process opened it
        file.close()
        raise BadInput(f"--out: another process has just ended in {path.parent}: try again")

    file.truncate(0)
    since = datetime.datetime.now().isoformat(" ", timespec="seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
    file.flush()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def remove_run(out):
    """Deletes an earlier run's files, and nothing else in the folder."""
    for pattern in LEFT_BEHIND:
        for path in out.glob(pattern):
            path.unlink()


def write_whole(path, write, keep=None):
    """Writes a file atomically: calls write(file) on a temporary file, and renames it to path.

    keep: a path under which the file's previous version is kept, if the disk has hard links.
    Raises OSError if the file cannot be written, because the disk is full for example.
    """
    if path.exists() and not path.is_file():        # renaming would replace a device, a pipe
        raise OSError(f"cannot write {path}: it is not a regular file")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        file = open(part, "wb")     # not in a `with` block: an interrupted torch.save writes
        write(file)                 # once more, and a closed file would abort the process
        file.flush()
        os.fsync(file.fileno())
        file.close()
        if keep is not None and path.exists():
            with contextlib.suppress(OSError):      # some disks have no hard links
                keep.unlink(missing_ok=True)
                os.link(path, keep)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    except RuntimeError as error:       # torch.save raises "unexpected pos" on a full disk
        part.unlink(missing_ok=True)
        if isinstance(error.__context__, KeyboardInterrupt):    # of a second Ctrl-C
            raise error.__context__ from None
        if "unexpected pos" not in str(error):
            raise
        raise OSError(f"cannot write {path}: the disk is full") from error


# --- config.json ------------------------------------------------------------------------------

def flags_of(args):
    """{"--alpha": 0.5, …}: every flag, with a value that JSON can write."""
    return {f"--{name.replace('_', '-')}": str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()}


def git_commit():
    """The commit of this code, with "+" if files differ from it; None outside a repository."""
    command = "git describe --always --exclude=* --abbrev=40 --dirty=+".split()
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, timeout=10, capture_output=True,
                              text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_config(out, arguments, flags, device):
    """Writes config.json. arguments: the command line; flags: see flags_of."""
    device_name = platform.processor() or platform.machine()
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    config = {
        "program": "train.py",
        "arguments": list(arguments),
        "flags": flags,
        "device": f"{device} ({device_name})",
        "processes": WORLD_SIZE,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "numpy": numpy.__version__},
        "git": git_commit(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    text = json.dumps(config, indent=1) + "\n"
    write_whole(out / "config.json", lambda file: file.write(text.encode()))


def read_config(folder):
    """A run's config.json as a dict; raises BadInput if it is missing, unreadable or odd."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        flags, arguments = config["flags"], config["arguments"]
        settings = flags.get("--set") or {}
        values = [*flags, *settings, *settings.values(), *(flags[flag] for flag in NAMING_FLAGS)]
        values += [value for flag, value in flags.items() if flag not in ("--set", *PATH_FLAGS)]
        texts = [flags["--method"], *arguments]
        is_whole = all(map(is_plain, values)) and all(isinstance(text, str) for text in texts)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: is {folder} the folder of a run?") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise BadInput(f"{path} is not the configuration of a run")
    return config


def is_plain(value):
    """Whether a flag can have this value: printable text, a number of a usual size, or none."""
    if isinstance(value, (int, float)):
        return abs(value) <= LARGEST_NUMBER         # not if it is NaN
    return value is None or (isinstance(value, str) and value.isprintable())


# --- log.csv ----------------------------------------------------------------------------------

def csv_line(columns, row):
    """A row, {column: number or None}, as a line of log.csv."""
    fields = ["" if row.get(column) is None else f"{row[column]:.7g}" for column in columns]
    return (",".join(fields) + "\n").encode()


class Log:
    """log.csv and, if wanted, the same for TensorBoard.

    Begins with the checkpoint's rows; later rows are dropped, and hidden in TensorBoard.
    """

    def __init__(self, out, columns, rows, tensorboard):
        self.path, self.columns = out / "log.csv", columns
        self.tensorboard = None
        header = (",".join(columns) + "\n").encode()
        lines = [csv_line(columns, row) for row in rows]
        write_whole(self.path, lambda file: file.writelines([header, *lines]))
        self.size = self.path.stat().st_size
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.tensorboard = SummaryWriter(out, purge_step=len(rows) + 1)

    def append(self, row):
        """Adds the next epoch's row; raises BadInput if another process wrote to the file too."""
        line = csv_line(self.columns, row)
        if self.path.stat().st_size != self.size:
            raise BadInput(f"--out: another process writes to {self.path} too: end it, and "
                           "continue with --resume")
        with open(self.path, "ab") as file:
            file.write(line)
        self.size += len(line)
        if self.tensorboard is not None:
            for column, value in row.items():
                self.tensorboard.add_scalar(column, value, row["epoch"])
            self.tensorboard.flush()


def read_log(path):
    """A run's log.csv as {column: [floats]}, epochs first; NaN for empty fields.

    An incomplete last line is left out. Raises OSError, or BadInput if it is not a run's log.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            text = file.read()
        whole_lines = text[:text.rfind("\n") + 1].splitlines()
        names, *rows = csv.reader(whole_lines)
        columns = {}
        for position, name in enumerate(names):
            columns[name] = [float(row[position] or "nan") for row in rows]
        columns = {"epoch": columns.pop("epoch"), **columns}
    except (ValueError, IndexError, KeyError, csv.Error):
        raise BadInput(f"{path} is not the log of a run") from None
    if columns["epoch"] != list(range(1, len(rows) + 1)):
        raise BadInput(f"{path} is not the log of a run: its epochs are not 1, 2, 3 …")
    for name, values in columns.items():
        if any(abs(value) > LARGEST_NUMBER for value in values):
            raise BadInput(f"{path} is not the log of a run: {name} has a value beyond "
                           f"{LARGEST_NUMBER:g}")
    return columns


def last_value(log, column):
    """The last number in a column of a log; NaN if there is none."""
    for value in reversed(log.get(column, [])):
        if not math.isnan(value):
            return value
    return math.nan


def check_tensorboard():
    try:
        import torch.utils.tensorboard      # noqa: F401
    except ImportError as error:
        raise BadInput("--tensorboard needs a package that is not installed: "
                       "pip install tensorboard") from error


# --- backbone.pt, encoder.json ----------------------------------------------------------------

def save_backbone(out, encoder, args, data, command):
    """Writes the encoder's state_dict, on the CPU, in torchvision's format, and its facts.

    args: train.py's flags, from the words in `command`. data: see data.load.
    """
    facts = {"arch": args.arch, "width": args.width,
             **{name: data[name] for name in ("stem", "size", "image_size", "mean", "std")},
             "command": shlex.join(["train.py", *command])}
    text = json.dumps(facts, indent=1) + "\n"
    write_whole(out / "encoder.json", lambda file: file.write(text.encode()))
    weights = {name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}
    write_whole(out / "backbone.pt", lambda file: torch.save(weights, file))
