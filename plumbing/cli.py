"""Shared by all command lines: argument types, devices, one-line errors instead of tracebacks.

    parser = Parser("evaluate.py", __doc__)
    parser.add_argument("--epochs", type=whole_number(1))
    with one_line_errors("evaluate.py"):
        device = open_device(parser.parse_args().device)

Exit statuses of all scripts: 0; 2 with one line on stderr for bad input; 130 after Ctrl-C; 141 if
the program that reads their output has exited.
"""
import argparse
import contextlib
import os
import re
import signal
import sys
import warnings

import torch

from plumbing import stand_in

# requests to stop, by Ctrl-C, a scheduler or a closed terminal; Windows has no SIGHUP
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]


class BadInput(ValueError):
    """An error that the user can fix. Scripts print it as one line and exit with status 2."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps a docstring's line breaks; shows all defaults except None, False and empty lists."""

    def _get_help_string(self, action):
        if action.default in (None, False, (), [], argparse.SUPPRESS) or "(default:" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse's parser without abbreviated flags; raises BadInput where argparse would exit."""

    def __init__(self, program, description, **settings):
        super().__init__(prog=program, description=description, allow_abbrev=False,
                         formatter_class=HelpFormatter, **settings)
        # argparse would take the number in --beta -1e-4 for another flag
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)")

    def parse_args(self, *arguments):
        args = super().parse_args(*arguments)
        if stand_in.is_active() and not getattr(args, "list", False):
            raise RuntimeError(f"{self.prog} goes on, without torch: plumbing/stand_in.py was "
                               "wrong about this command line")
        return args

    def error(self, message):
        raise BadInput(f"{message} (--help explains the flags)")


# --- types for argparse ---------------------------------------------------------------------

def checked(kind, accept, wanted):
    """An argparse type: kind(text), if accept() allows it. wanted: words for the error message."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return value
    return parse


LARGEST_NUMBER = 1e30       # far below float32's limit of 3e38


def whole_number(low, high=10 ** 9):
    """Integers from low to high, inclusive."""
    return checked(int, lambda value: low <= value <= high, f"a whole number from {low} to {high}")


def number(low=-LARGEST_NUMBER, above=False):
    """Numbers from low to 1e30; with above=True, low itself is refused."""
    def accept(value):
        return low <= value <= LARGEST_NUMBER and not (above and value == low)

    wanted = f"a number from {low:g} to {LARGEST_NUMBER:g}"
    if above:
        wanted = f"a number above {low:g}, up to {LARGEST_NUMBER:g}"
    return checked(float, accept, wanted)


def matching(pattern, wanted):
    return checked(str, lambda text: re.fullmatch(pattern, text), wanted)


layer_sizes = matching(r"[1-9]\d{0,6}(-[1-9]\d{0,6})*", "layer sizes such as 2048-2048-2048")
device_name = matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")


# --- devices, output, errors ------------------------------------------------------------------

def open_device(name):
    """The torch.device for --device; auto takes a GPU if there is one.

    A GPU is returned with its number and becomes the current device, so kernels and memory use
    it by default. Raises BadInput if the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {name} cannot be used here ({reason}): "
                       "leave it out, or use cpu") from error
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


def synchronise(device):
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_fast(precision, device):
    """Whether the hardware supports the precision; a CPU that emulates it is ten times slower."""
    if precision == "bf16" and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if precision == "fp16" and device.type == "cpu":
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


def fast_precision(device):
    return "bf16" if is_fast("bf16", device) else "fp32"


def split_arguments(argv):
    """A script's own arguments, and those after --, which it passes on to train.py."""
    split = argv.index("--") if "--" in argv else len(argv)
    return argv[:split], argv[split + 1:]


def make_output_folder(path):
    """Creates the folder for --out; raises BadInput or OSError if it cannot be written to."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise BadInput(f"--out: cannot write to {path}")


def check_output_file(path, flag):
    """Raises BadInput if no file can be written at path. None, for a flag not given, passes."""
    if path is None:
        return
    folder = path.absolute().parent
    is_other = path.exists() and not path.is_file()     # a folder, a device, a pipe
    if is_other or not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"{flag}: cannot write to {path}")


def show_progress(text):
    """Rewrites the terminal's last line; does nothing if stdout is not a terminal."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def out_of_memory(error):
    """Whether an exception means that the device or the machine ran out of memory."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory",
             "DefaultCPUAllocator", "calculation overflowed",
             "STATUS_ALLOC_FAILED")     # of cuBLAS and cuDNN
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextlib.contextmanager
def without_warnings():
    """Hides the warnings of libraries about hostile files, for which there is a line of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def stop(program, message):
    """Prints the message on stderr, as a single line, and exits with status 2."""
    show_progress("")
    print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def one_line_errors(program):
    """Ends the program with one line on bad input or lack of memory, and quietly on Ctrl-C.

    Any other exception is a bug of ours and keeps its traceback.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:                # closed, as by >&-
            setattr(sys, stream, open(os.devnull, "w"))
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:       # see plumbing/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")        # for terminals that cannot show α
    try:
        yield
    except BrokenPipeError:     # as in: python train.py … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (BadInput, OSError) as error:
        stop(program, error)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        stop(program, "there is not enough memory: try smaller batches, networks or samples")
    except KeyboardInterrupt:
        show_progress("")
        sys.exit(130)
