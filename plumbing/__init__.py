"""Everything that is not learning.

Scripts import this before torch, which takes seconds: until they handle Ctrl-C themselves, it ends
them as the shell expects, without a traceback.
"""
import signal
import sys
from pathlib import Path

from plumbing import stand_in

SCRIPT = Path(sys.argv[0]).absolute()
RUNS_OUR_SCRIPT = SCRIPT.parent == Path(__file__).parent.parent

if RUNS_OUR_SCRIPT and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if (RUNS_OUR_SCRIPT and SCRIPT.name in stand_in.SCRIPTS and "torch" not in sys.modules
        and stand_in.only_prints(SCRIPT, sys.argv[1:])):
    sys.meta_path.insert(0, stand_in.Finder)
