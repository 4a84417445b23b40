"""Images that many tests train on, drawn once; Ctrl-C for the programs under test."""
import shutil
import signal

import pytest

from tests.helpers import SMALL_IMAGES, shapes_folder


@pytest.fixture(scope="session", autouse=True)
def small_images():
    """A folder of 16-pixel images of four classes: 640 to train on, 160 to test."""
    shapes_folder(SMALL_IMAGES, ("disc", "cross", "bar", "dots"), 640, 160, 16)
    yield
    shutil.rmtree(SMALL_IMAGES)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_reaches_programs():
    """A shell's background jobs ignore Ctrl-C, and the programs that they start would, too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
