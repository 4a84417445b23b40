"""How a training ends: Ctrl-C, a scheduler's SIGTERM, a full disk, another process that died.

Whatever it is, the run ends with one line that tells how to go on, and the right exit status.
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
        """With several processes, the first one decides."""
        return RANK == 0 and self.received is not None

    def release(self):
        self.held = False
        if self.received:
            raise KeyboardInterrupt(self.received)


@contextlib.contextmanager
def orderly_end(program, command):
    """Ends a training process with one line and the right exit status; yields its Signals."""
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")      # the first process speaks for all
        program = f"{program} (process {RANK})"
    with one_line_errors(program), Signals() as signals:
        try:
            yield signals
        except KeyboardInterrupt as interrupt:
            number = interrupt.args[0] if interrupt.args else signal.SIGINT
            stopped(command, number)
        except (BadInput, OSError):
            if RANK > 0:            # rank 0 reports the errors that all processes share, and
                time.sleep(10)      # torchrun ends this one; after that, the error is its own
            raise
        except RuntimeError as error:
            if signals.received and is_of_network(error):       # torchrun ends them all
                stopped(command, signals.received)
            explain(error)
            raise


def stopped(command, number):
    """Ends the process after a signal."""
    show_progress("")
    if RANK == 0:
        print(f"train.py: stopped; go on with: {resume_command(command)}", file=sys.stderr)
    sys.exit(128 + number)


def is_of_network(error):
    """Whether the exception may be due to the end of another process of the run."""
    words = "gloo|nccl|peer|connection|socket"
    return WORLD_SIZE > 1 and re.search(words, str(error), re.IGNORECASE) is not None


def explain(error):
    """Raises BadInput for exceptions of torch's that are not mistakes of this program."""
    if is_of_network(error):
        reason = str(error).splitlines()[0]
        raise BadInput(f"another process of this run ended, see its own message ({reason}); "
                       "the same command with --resume goes on") from error
    if "DataLoader worker" in str(error):
        raise BadInput("a process that reads images was killed, probably for want of "
                       "memory; the same command with --resume goes on") from error


def resume_command(command):
    """The command line that goes on with a run that was started with this one."""
    if WORLD_SIZE > 1:
        return "the same torchrun … and --resume"
    flags = [word for word in command if word not in ("--resume", "--overwrite")]
    script = Path(sys.modules["__main__"].__file__).absolute()
    return shlex.join([sys.executable, str(script), *flags, "--resume"])
