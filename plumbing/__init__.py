"""Everything that is not learning.

Scripts import this before torch, which takes seconds: until they handle Ctrl-C themselves, it ends
them as the shell expects, without a traceback.
"""
import signal
import sys
from pathlib import Path

RUNS_OUR_SCRIPT = Path(sys.argv[0]).absolute().parent == Path(__file__).parent.parent

if RUNS_OUR_SCRIPT and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
