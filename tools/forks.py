"""For torture.py: training runs as forks of one process, which has already imported torch.

    training = Training(flags, out)         # train.py with these flags, in a process of its own
    training.send(signal.SIGTERM, to_group=False)
    status = training.wait()
"""
import contextlib
import os
import random
import resource
import signal
import socket
import sys
import time

# Slow imports happen once, here; each run is a fork of this process. train.py is imported in the
# fork: it reads its environment. One thread, because a fork lacks the others.
os.environ["OMP_NUM_THREADS"] = "1"
import torchvision      # noqa: E402, F401

STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130,
          signal.SIGHUP: 129}
MAX_SECONDS = 120       # for one run; a longer one counts as hung


class Lost(Exception):
    """Something was lost, or a message or exit status is wrong."""


class Training:
    """A fork of this process in which train.py runs, in a process group of its own."""

    count = 0

    def __init__(self, flags, out, environment=None, file_limit=None, stalls=False):
        """file_limit: bytes that a file may have. stalls: some images are never read."""
        Training.count += 1
        self.printed = out.with_suffix(f".{Training.count}.txt")
        self.status = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self.train([*flags, "--out", str(out), "--resume"], environment or {},
                                file_limit, stalls))

    def train(self, command, environment, file_limit, stalls):
        """Runs train.py in the fork; returns its exit status."""
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, list(STATUS))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)       # whatever nohup and shells have set
        os.environ.update(environment)
        printed = os.open(self.printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)       # an OSError instead of death
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        import train
        from plumbing import images, signals

        class Signals(signals.Signals):
            """Blocks signals unless train.py handles them: Python's own handling, during imports
            and at exit, is not tested here."""

            def __enter__(self):
                super().__enter__()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, list(STATUS))
                return self

            def __exit__(self, *exception):
                signal.pthread_sigmask(signal.SIG_BLOCK, list(STATUS))
                super().__exit__(*exception)

        if stalls:
            images.open_for_crops = slow_now_and_then(images.open_for_crops)
        signals.Signals = Signals
        train.draw_run = print      # drawing would take longer than the training
        try:
            train.main(command)
        except SystemExit as stop:
            return stop.code
        except BaseException as error:
            print(f"Traceback: {error!r}", file=sys.stderr)
            return 70
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    def send(self, number, to_group):
        send = os.killpg if to_group else os.kill
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(self.pid, number)

    def kill(self):
        """Ends the run and its image workers."""
        self.send(signal.SIGKILL, to_group=True)
        self.wait()

    def ended(self):
        """Its exit status; minus the signal's number if it was killed; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self):
        """Waits for its exit status; kills a run that hangs, and raises Lost."""
        deadline = time.time() + MAX_SECONDS
        while self.ended() is None and time.time() < deadline:
            time.sleep(0.005)
        if self.ended() is None:
            self.kill()
            raise Lost(f"it hung: {self.output()}")
        return self.status

    def output(self):
        if not self.printed.exists():       # it was killed at once
            return ""
        return self.printed.read_text(errors="replace").strip()


def slow_now_and_then(function):
    """The function, which sleeps for hours in one call of a hundred, as a disk may."""
    def slow(*arguments):
        if random.random() < 0.01:
            time.sleep(10_000)
        return function(*arguments)
    return slow


def end_as_torchrun_does(trainings, seconds=15):
    """Sends SIGTERM and, since torch may wait in C++ for a dead process, SIGKILL some time later,
    as torchrun does after 30 seconds."""
    for training in trainings:
        training.send(signal.SIGTERM, to_group=False)
    deadline = time.time() + seconds
    while time.time() < deadline and any(training.ended() is None for training in trainings):
        time.sleep(0.01)
    for training in trainings:
        training.kill()


def pair(flags, out):
    """Two processes that train together, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainings = []
    for rank in ("0", "1"):
        trainings.append(Training(flags, out, {
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}))
    return trainings
