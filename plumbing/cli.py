"""What all command lines share: numbers, devices, and one line in place of a traceback.

    parser = Parser("evaluate.py", __doc__)
    parser.add_argument("--epochs", type=whole_number(1))
    with one_line_errors("evaluate.py"):
        device = open_device(parser.parse_args().device)

Exit status of every script: 0; 2 with one line on stderr for bad input; 130 after Ctrl-C; 141
where the program that reads its output has gone.
"""
import argparse
import contextlib
import os
import re
import signal
import sys

import torch


# what ends a program in an orderly way: Ctrl-C, a scheduler, a terminal that closes (not Windows)
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]


class BadInput(ValueError):
    """Something that the user can mend. Scripts print it as one line and exit with status 2."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps a docstring's line breaks, and names every default that says something."""

    def _get_help_string(self, action):
        if action.default in (None, False, argparse.SUPPRESS) or "(default:" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviations of flags; whatever it does not understand is BadInput."""

    def __init__(self, program, description, **settings):
        super().__init__(prog=program, description=description, allow_abbrev=False,
                         formatter_class=HelpFormatter, **settings)

    def error(self, message):
        raise BadInput(f"{message} (--help explains the flags)")

    def parse_known_args(self, args=None, namespace=None):
        """Takes --beta -1e-4 as --beta=-1e-4: argparse would see another flag in the number."""
        joined = []
        for word in sys.argv[1:] if args is None else args:
            if joined and joined[-1].startswith("--") and is_negative_number(word):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return super().parse_known_args(joined, namespace)


def is_negative_number(text):
    return re.fullmatch(r"-(\d|\.\d|inf|nan).*", text) is not None


# --- types for argparse ---------------------------------------------------------------------

def checked(kind, accept, wanted):
    """An argparse type: kind(text), where accept() holds for it. wanted: what to say if not."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return value
    return parse


def whole_number(low, high=None):
    """Integers from low to high, both included; without high, from low on."""
    def accept(value):
        return low <= value and (high is None or value <= high)

    wanted = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    return checked(int, accept, wanted)


LARGEST_NUMBER = 1e30       # far below where float32 ends


def number(low=-LARGEST_NUMBER, above=False):
    """Numbers from low to 1e30; with above=True, low itself is refused."""
    def accept(value):
        return low <= value <= LARGEST_NUMBER and not (above and value == low)

    wanted = f"a number from {low:g} to {LARGEST_NUMBER:g}"
    if above:
        wanted = f"a number above {low:g}, up to {LARGEST_NUMBER:g}"
    return checked(float, accept, wanted)


def matching(pattern, wanted):
    """Text that a regular expression describes."""
    return checked(str, lambda text: re.fullmatch(pattern, text), wanted)


layer_sizes = matching(r"[1-9]\d*(-[1-9]\d*)*", "layer sizes such as 2048-2048-2048")
device_name = matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")


# --- what the scripts do with them ------------------------------------------------------------

def open_device(name):
    """The torch.device that --device names; auto takes a GPU where there is one.

    A GPU has its number, and is the current one from here on: kernels and memory that name no
    GPU are then on the same one. Raises BadInput where that device cannot be used.
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
                       "leave it out, or say cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # float32 is float32: convolutions would take TF32, with ten bits of mantissa, for it
        torch.backends.cudnn.allow_tf32 = False
    return device


def synchronise(device):
    """Waits until the device has done everything that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_fast(precision, device):
    """Whether the device has instructions for it; a CPU that has none is ten times slower."""
    if precision == "bf16" and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if precision == "fp16" and device.type == "cpu":
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


def fast_precision(device):
    """bf16 where the device is fast at it, else fp32."""
    return "bf16" if is_fast("bf16", device) else "fp32"


def split_arguments(argv):
    """A script's own arguments, and those after --, which it hands on to train.py."""
    split = argv.index("--") if "--" in argv else len(argv)
    return argv[:split], argv[split + 1:]


def make_output_folder(path):
    """Makes --out's folder; BadInput or OSError where nothing can be written to it."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise BadInput(f"--out: cannot write to {path}")


def check_output_file(path, flag):
    """Raises BadInput unless a file can be written at path; None, a flag left out, is fine."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"{flag}: cannot write to {path}")


def show_progress(text):
    """Rewrites the terminal's last line; where stdout is not a terminal, does nothing."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def out_of_memory(error):
    """Whether an exception says that memory ran out, on the device or in the machine."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory",
             "DefaultCPUAllocator", "STATUS_ALLOC_FAILED")      # the last is cuBLAS's and cuDNN's
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def stop(program, message):
    """One line on stderr, whatever line breaks the message holds, and exit status 2."""
    show_progress("")
    print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def one_line_errors(program):
    """Ends the program with one line where the input was bad, and quietly on Ctrl-C.

    Any other exception is a mistake of ours, and keeps its traceback.
    """
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
