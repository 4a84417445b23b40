"""How training ends early: Ctrl-C, a scheduler's SIGTERM, a full disk, another process's death.

In every case it prints one line on how to continue, and exits with the right status.
"""
import contextlib
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

from plumbing.cli import SIGNALS, BadInput, one_line_errors, show_progress
from plumbing.distributed import RANK, WORLD_SIZE

ALWAYS_HEARD = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Handlers: Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt, at once or, after hold(), at
    release(). A second signal raises it in any case. SIGHUP stays ignored if nohup ignores it.

    Training holds signals until it has saved; DataLoader would swallow the exception, were it
    raised while workers are handled.
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
        if RANK == 0 and sys.stderr.isatty():       # a step can take minutes; print() might be busy
            os.write(sys.stderr.fileno(), b"\nstopping after this step; again: at once\n")

    def hold(self):
        self.held = True

    def stop_wanted(self):
        """Whether a signal was received; with several processes, rank 0 decides."""
        return RANK == 0 and self.received is not None

    def release(self):
        self.held = False
        if self.received:
            raise KeyboardInterrupt(self.received)


@contextlib.contextmanager
def orderly_end(command):
    """Ends a training process with one line and the right exit status; yields its Signals."""
    program = "train.py"
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")      # only rank 0 prints
        program += f" (process {RANK})"
    signals = Signals()
    with one_line_errors(program):
        try:
            with signals:       # in here: a signal may be waiting for its handler already
                yield signals
        except KeyboardInterrupt as interrupt:
            number = interrupt.args[0] if interrupt.args else signal.SIGINT
            stopped(command, number)
        except (BadInput, OSError):
            if RANK > 0:            # rank 0 reports the errors that all processes share, and
                time.sleep(10)      # torchrun ends this one; if not, the error is its own
            raise
        except RuntimeError as error:
            if signals.received and is_of_network(error):       # torchrun stops all processes
                stopped(command, signals.received)
            if is_of_network(error):
                reason = str(error).splitlines()[0]
                raise BadInput("another process of this run ended, see its own message "
                               f"({reason}); the same command with --resume goes on") from error
            if "DataLoader timed out" in str(error):
                raise BadInput("no image could be read for ten minutes: does the disk answer? The "
                               "same command with --resume goes on") from error
            if "DataLoader worker" in str(error):
                raise BadInput("a process that reads images was killed, probably for lack of "
                               "memory; the same command with --resume goes on") from error
            raise


def stopped(command, number):
    """Exits with status 128 + the signal's number; rank 0 prints how to continue."""
    show_progress("")
    if RANK == 0:
        print(f"train.py: stopped; go on with: {resume_command(command)}", file=sys.stderr)
    sys.exit(128 + number)


def is_of_network(error):
    """Whether the error may be due to the end of another process of the run."""
    words = "gloo|nccl|peer|connection|socket|broken pipe"
    return WORLD_SIZE > 1 and re.search(words, str(error), re.IGNORECASE) is not None


def resume_command(command):
    """The command line that resumes a run started with this one."""
    if WORLD_SIZE > 1:
        return "the same torchrun … and --resume"
    flags = [word for word in command if word not in ("--resume", "--overwrite")]
    script = Path(sys.modules["__main__"].__file__).absolute()
    return shlex.join([sys.executable, str(script), *flags, "--resume"])
