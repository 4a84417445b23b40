"""Images that many tests train on, drawn once."""
import shutil

import pytest

from tests.helpers import SMALL_IMAGES, shapes_folder


@pytest.fixture(scope="session", autouse=True)
def small_images():
    """A folder of 16-pixel images of four classes: 640 to train on, 160 to test."""
    shapes_folder(SMALL_IMAGES, ("disc", "cross", "bar", "dots"), 640, 160, 16)
    yield
    shutil.rmtree(SMALL_IMAGES)
