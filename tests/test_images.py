"""Tests of images: decoding, sizes, crops, streaming, batches of views, smaller copies.

    python -m pytest -q tests/test_images.py
"""
import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
from augment import DRAWS, augment_with, normalise, random_resized_crop
from plumbing import images
from plumbing.cli import BadInput
from plumbing.checkpoint import load_checkpoint
from plumbing.folders import choose_sizes
from plumbing.run import read_log
from tests.helpers import (ROOT, TINY, assert_equal, generator, random_images, run, run_until,
                           save_images, start, wait_for_epoch)

STREAMED = [*TINY, "--resident", "no", "--batch-size", 12]


def smooth_picture(height, width, seed=0):
    """3 × height × width, without detail: every way of resizing gives nearly the same."""
    small = random_images(1, 8, seed).float()
    enlarged = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return enlarged[0].clamp(0, 255).byte()


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def save_on_its_side(picture, path):
    """A PIL image as a camera that is held upright stores it: lying, with a tag that says so."""
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6       # turn it by 90° clockwise to see it
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of smooth JPEGs of several shapes, two classes: 48 to train on, 12 to test."""
    root = tmp_path_factory.mktemp("photos")
    shapes = [(400, 500), (500, 375), (300, 300)]
    for split, n in {"train": 24, "test": 6}.items():
        for label in ("a", "b"):
            for i in range(n):
                picture = smooth_picture(*shapes[i % 3], seed=n + i)
                save_images(root / split / label / str(i), [picture], ".jpg")
    return root


@pytest.fixture
def small_photos(tmp_path):
    """40 noisy JPEGs of 80 pixels to train on, 40 to test; tests may change them."""
    for split in ("train", "test"):
        for seed, label in enumerate("ab"):
            save_images(tmp_path / "small" / split / label, random_images(20, 80, seed), ".jpg")
    return tmp_path / "small"


# --- whole files ------------------------------------------------------------------------------

def test_resident_and_streamed_images_are_the_same(photos):
    """The same labels, evaluation images and normalisation."""
    resident = data.load("folder", photos, resident="yes")
    streamed = data.load("folder", photos, resident="no")
    assert isinstance(streamed["train_x"], list)
    assert resident["train_x"].shape == (48, 3, 256, 256)
    assert torch.equal(resident["train_y"], streamed["train_y"])
    assert resident["test_files"] == streamed["test_files"] == streamed["test_x"]
    assert resident["image_size"] == streamed["image_size"] == 224
    assert resident["stem"] == streamed["stem"] == "imagenet"
    assert np.allclose(resident["mean"], streamed["mean"], atol=0.01)
    index = torch.tensor([5, 0, 7])
    ours = data.pixels(resident, "test_x", index)
    assert torch.equal(ours, data.pixels(streamed, "test_x", index))
    just_enough = 60 * 3 * 256 ** 2         # bytes for 48 images to train on and 12 to test
    assert data.load("folder", photos, room=just_enough)["streamed"] is False
    assert data.load("folder", photos, room=just_enough - 1)["streamed"] is True


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_images_that_changed_are_noticed(resident, small_photos):
    """Test images too, even if their sizes and times stay; but another time alone is no change."""
    def checksum():
        return data.fingerprint(data.load("folder", small_photos, resident=resident))

    before = checksum()
    for split in ("train", "test"):
        file, larger = sorted((small_photos / split).rglob("*.jpg"),
                              key=lambda path: path.stat().st_size)[:2]
        padding = larger.stat().st_size - file.stat().st_size
        file.write_bytes(file.read_bytes() + padding * b" ")    # behind the image's end
        os.utime(larger, (1e9, 1e9))
        before = checksum()
        os.utime(larger, (2e9, 2e9))
        assert checksum() == before
        os.utime(file, (2e9, 2e9))
        larger.write_bytes(file.read_bytes())
        os.utime(larger, (2e9, 2e9))
        after = checksum()
        assert after != before
        before = after


# --- images of mixed sizes --------------------------------------------------------------------

@pytest.fixture
def mixed_sizes(tmp_path):
    """Ten images of 40, four of 300 and three of 9 pixels in train/; and three of 40 in test/."""
    for split, sizes in (("train", [40] * 10 + [300] * 4 + [9] * 3), ("test", [40] * 3)):
        for i, size in enumerate(sizes):
            save_images(tmp_path / split / "ab"[i % 2] / str(i), random_images(1, size, seed=i))
    return tmp_path


def test_small_images_are_left_out(mixed_sizes):
    """By default those below a quarter of the size, which a few large images cannot move."""
    for min_size, left_out in ((None, 3), (9, 0)):
        found = data.load("folder", mixed_sizes, min_size=min_size)
        assert found["size"] == 40 and sum(found["left_out"].values()) == left_out
        assert len(found["train_x"]) == len(found["train_y"]) == 17 - left_out
        assert len(found["test_x"]) == 3
        assert found["min_size"] == (min_size or 10)
    with pytest.raises(BadInput, match="4 to train on, 0 to test"):
        data.load("folder", mixed_sizes, min_size=41)


def test_a_folder_of_mixed_sizes_is_trained_on_and_measured(mixed_sizes, tmp_path, capsys):
    flags = [*TINY, "--data-dir", mixed_sizes, "--epochs", 1, "--batch-size", 4]
    assert run(*flags, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "14 training images of 40 pixels" in out
    assert "left out: 3 of less than 10 pixels (--min-size; 3 to train on, 0 to test)" in out
    assert "note: there are 3 test images" in out
    # more small images move the median, but the run's own limit and size stay
    save_images(mixed_sizes / "train" / "a", random_images(30, 9))
    evaluate.main([str(tmp_path / "run"), "--device", "cpu"])
    out = capsys.readouterr().out
    assert re.search(r"labelled_train_images +14\n", out)
    assert "images of 40 pixels, as in the run (shorter sides 9 to 300, median 9)" in out


@pytest.mark.parametrize("sides, wanted, size, image_size, reason", [
    ((45, 900, 1200, 2000), None, 256, 224, "usual for photographs"),
    ((230, 240, 250), None, 240, 224, "usual for photographs"),
    ((90, 100, 110), None, 100, 100, "the median"),
    ((32, 32, 32), None, 32, 32, "the median"),
    ((900, 900, 900), 128, 146, 128, "as --image-size"),
    ((900, 900, 900), 64, 64, 64, "as --image-size"),
    ((100, 100, 100), 224, 224, 224, "as --image-size"),
])
def test_a_folders_size_follows_from_its_images(sides, wanted, size, image_size, reason):
    """Few small images do not move it. A photograph is larger than its central square."""
    chosen = choose_sizes(torch.tensor(sides), 224, wanted)
    assert (chosen["size"], chosen["image_size"]) == (size, image_size)
    assert chosen["stem"] == ("small" if image_size <= 64 else "imagenet")
    assert f"images of {image_size} pixels, {reason}" in chosen["size_note"]


def test_a_run_keeps_the_size_it_began_with(mixed_sizes, tmp_path, capsys):
    """When resumed, and by evaluate.py on other images too."""
    flags = [*TINY, "--data-dir", mixed_sizes, "--epochs", 2, "--batch-size", 7,
             "--image-size", 24, "--out", tmp_path / "run"]
    run_until(3, *flags)                                        # in the second epoch
    path = tmp_path / "run" / "last.pt"
    saved = load_checkpoint(path)
    assert saved["facts"]["image_size"] == saved["facts"]["size"] == 24
    assert run(*flags, "--resume") == 0
    save_images(tmp_path / "larger", random_images(30, 48))
    evaluate.main([str(tmp_path / "run"), "--dataset", "folder", "--data-dir",
                   str(tmp_path / "larger"), "--device", "cpu"])
    assert "images of 24 pixels, as in the run (shorter sides 48" in capsys.readouterr().out


# --- random crops -----------------------------------------------------------------------------

def plan(seed, steps, batch, order=None):
    """The images 0, 1, 2, … or those of an order, in batches."""
    order = torch.arange(steps * batch) if order is None else order
    return [images.PlannedBatch(seed, step, index)
            for step, index in enumerate(order.view(steps, batch))]


def test_streamed_crops_follow_from_seed_and_step(photos):
    paths = data.load("folder", photos, resident="no")["train_x"]
    crops = images.Crops(paths, (0.2, 1), 64)
    planned = plan(7, 3, 16)
    views = list(images.stream_crops(paths, planned, "vicreg", 64))
    assert len(views) == 3
    assert views[0].shape == (2, 16, 3, 64, 64) and views[0].dtype == torch.uint8
    assert not torch.equal(views[0][0], views[0][1])
    third = list(range(32, 48))
    assert torch.equal(views[2], crops[7, 2, third])
    assert not torch.equal(views[2], crops[8, 2, third])


def test_a_streamed_crop_is_the_resident_one(tmp_path):
    """The same random numbers cut the same part of a square image from a file and a tensor."""
    picture = smooth_picture(256, 256)
    to_pil(picture).save(tmp_path / "x.png")
    for step in range(10):
        streamed = images.Crops([tmp_path / "x.png"], (0.2, 1), 64)[0, step, [0]]
        seed = images.mixed_seed(0, step, images.CROPS)
        rand = functools.partial(torch.rand, generator=generator(seed))
        both = picture.expand(2, -1, -1, -1).float()
        resident = random_resized_crop(both, (0.2, 1), rand, 64)
        assert (streamed[:, 0] - resident).abs().mean() < 1     # grey levels of 255


def crops_of(path, n, size, seed=0):
    """n pairs of crops of one file: 2n × 3 × size × size, float."""
    crops = images.Crops([str(path)], (0.2, 1), size)[seed, 0, [0] * n]
    return crops.float().flatten(0, 1)


def test_crops_of_a_wide_image_have_the_right_sizes(tmp_path):
    """The image's red is x and its green is y: each crop's box can be read from its colours.

    A JPEG, which is decoded at a reduced size, gives the same crops as a PNG.
    """
    axis = torch.linspace(0, 255, 400)
    red = axis.expand(300, 400)
    green = axis[:300, None].expand(300, 400) * 399 / 299
    picture = torch.stack([red, green, torch.zeros(300, 400)]).round().byte()
    save_images(tmp_path, [picture], ".jpg")
    save_images(tmp_path, [picture], ".png")
    jpeg = crops_of(tmp_path / "00000.jpg", 200, 32, seed=3)
    exact = crops_of(tmp_path / "00000.png", 200, 32, seed=3)
    assert (jpeg - exact).abs().mean() < 1

    width = (exact[:, 0, 16, -1] - exact[:, 0, 16, 0]) / (255 * 31 / 32) * 400
    height = (exact[:, 1, -1, 16] - exact[:, 1, 0, 16]) / (255 * 31 / 32) * 300
    assert 0.4 < (width < 0).double().mean() < 0.6      # mirrored
    assert (height > 0).all()
    area = width.abs() * height / 120_000
    ratio = width.abs() / height
    assert 0.18 < area.min() < 0.25 and 0.9 < area.max() < 1.02
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.38


def test_a_camera_held_upright(tmp_path):
    """A JPEG stored on its side gives the same crops as one stored upright."""
    picture = to_pil(smooth_picture(400, 300))
    picture.save(tmp_path / "upright.png")
    save_on_its_side(picture, tmp_path / "turned.jpg")
    upright = crops_of(tmp_path / "upright.png", 20, 32)
    turned = crops_of(tmp_path / "turned.jpg", 20, 32)
    assert (upright - turned).abs().mean() < 2


# --- batches of views -------------------------------------------------------------------------

def both_views_by_hand(pair, draws, recipe, d, cropped):
    """The expected views of a batch's images, 2 × n × 3 × s × s."""
    size = d["image_size"]
    first = augment_with(draws[0], pair[0], recipe, 0, size, cropped)
    second = augment_with(draws[1], pair[1], recipe, 1, size, cropped)
    return normalise(torch.cat([first, second]), d["mean"], d["std"])


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_batches_are_the_augmented_images(photos, resident):
    """byol's views differ, so that they cannot be exchanged unnoticed."""
    d = data.load("folder", photos, resident=resident)
    d["image_size"] = 32
    order = torch.randperm(48, generator=generator(1))[:24].view(3, 8)
    planned = plan(5, 3, 8, order)
    if resident == "yes":
        pairs = [d["train_x"][index].expand(2, -1, -1, -1, -1) for index in order]
    else:
        pairs = list(images.stream_crops(d["train_x"], planned, "byol", 32))
    batches = list(data.batches_of_views(d, planned, "byol"))
    assert len(batches) == 3
    for step, (row, pair, (views, index, labels)) in enumerate(zip(order, pairs, batches)):
        draws = torch.rand(2, 8, DRAWS, generator=generator(images.mixed_seed(5, step)))
        assert torch.equal(views, both_views_by_hand(pair, draws, "byol", d, resident == "no"))
        assert views.shape == (16, 3, 32, 32) and views.dtype == torch.float32
        assert views.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(index, row)
        assert torch.equal(labels, d["train_y"][row])
    last, = data.batches_of_views(d, planned[2:], "byol")
    assert torch.equal(last[0], batches[2][0])      # as if the others had been drawn before


def test_the_layout_and_the_function_of_the_views_can_be_chosen():
    d = {"train_x": random_images(8, 16), "train_y": torch.arange(8), "image_size": 16,
         "streamed": False, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    views, _, _ = next(data.batches_of_views(d, plan(0, 1, 8), "vicreg", torch.contiguous_format,
                                             lambda draws, x, *rest: x.float() / 255))
    assert views.is_contiguous()
    expected = normalise(d["train_x"], d["mean"], d["std"])
    assert torch.equal(views, torch.cat([expected, expected]))


def test_a_plan_goes_on_at_any_step():
    """Each epoch has every image once, in its own order; a part of a plan equals the whole's."""
    whole = list(data.plan_batches(50, 8, seed=3, epochs=3))
    assert [planned.step for planned in whole] == 3 * [0, 1, 2, 3, 4, 5]
    epochs = [torch.cat([planned.index for planned in whole[start:start + 6]])
              for start in (0, 6, 12)]
    for order in epochs:
        assert len(order.unique()) == 48
    assert not torch.equal(epochs[0], epochs[1])
    assert len({planned.seed for planned in whole}) == 3

    rest = list(data.plan_batches(50, 8, seed=3, epochs=3, first_epoch=2, first_step=4))
    assert len(rest) == 8
    for expected, planned in zip(whole[10:], rest):
        assert planned[:2] == expected[:2] and torch.equal(planned.index, expected.index)


def test_workers_go_on_between_epochs_and_end_with_the_batches(photos, monkeypatch):
    """The same processes read the second epoch, and begin before it is asked for."""
    monkeypatch.setattr(images, "worker_count", lambda: 1)
    d = data.load("folder", photos, resident="no")
    asked = []

    def noted(plan):
        for planned in plan:
            asked.append(planned)
            yield planned

    batches = data.batches_of_views(d, noted(data.plan_batches(48, 24, 0, epochs=2)), "vicreg")
    next(batches)
    workers = [process.pid for process in multiprocessing.active_children()]
    next(batches)
    assert len(asked) > 2               # the first epoch is over, and nobody asked for the next
    next(batches)
    assert [process.pid for process in multiprocessing.active_children()] == workers
    batches.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("batch_bytes, memory, workers, ahead", [
    (77e6, 64e9, 16, 3),                # 256 images of 224 pixels: 48 batches, 3.7 GB of 8
    (77e6, 8e9, 6, 2),                  # 1 GB has room for 12
    (2e9, 8e9, 1, 1),
])
def test_prefetched_batches_fit_into_memory(batch_bytes, memory, workers, ahead, monkeypatch):
    monkeypatch.setattr(images, "machine_memory", lambda: memory)
    monkeypatch.setattr(images, "worker_count", lambda: 16)
    monkeypatch.setattr(images, "SHARED_MEMORY", "/no/such/place")
    assert images.workers_and_batches_ahead(batch_bytes) == (workers, ahead)


# --- training on them -------------------------------------------------------------------------

def test_a_streamed_run_resumes_exactly(small_photos, tmp_path):
    flags = [*STREAMED, "--data-dir", small_photos, "--limit-train", 36, "--epochs", 2]
    assert run(*flags, "--out", tmp_path / "whole") == 0
    run_until(4, *flags, "--out", tmp_path / "cut")         # in the second epoch
    # auto would keep so few images resident; but a run goes on as it began
    assert run(*flags, "--resident", "auto", "--out", tmp_path / "cut", "--resume") == 0
    whole = load_checkpoint(tmp_path / "whole" / "last.pt")["learner"]
    cut = load_checkpoint(tmp_path / "cut" / "last.pt")["learner"]
    assert_equal(whole, cut)


def test_without_labels_probe_and_accuracies_are_left_out(tmp_path, capsys):
    save_images(tmp_path / "mine", random_images(300, 8))
    flags = [*TINY, "--data-dir", tmp_path / "mine", "--epochs", 1, "--baseline"]
    assert run(*flags, "--out", tmp_path / "free") == 0
    log = read_log(tmp_path / "free" / "log.csv")
    assert np.isnan(log["probe_top1"][-1]) and np.isnan(log["probe_loss"][0])
    assert log["mi"][-1] > 0 and log["erank_z"][-1] > 1
    assert "no labels" in capsys.readouterr().out


def test_a_broken_file_ends_a_streamed_run_with_one_line(small_photos, tmp_path, capsys):
    file = next((small_photos / "train").rglob("*.jpg"))
    file.write_bytes(file.read_bytes()[:-2000])         # its header is right
    assert run(*STREAMED, "--data-dir", small_photos, "--out", tmp_path / "torn") == 2
    err = capsys.readouterr().err
    assert f"{file} is not a readable image" in err and err.count("\n") == 1


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_all_unreadable_files_are_listed_or_left_out(resident, small_photos, tmp_path, capsys):
    """Those with a broken header, an end that is missing, and in test/ too."""
    files = [path for split in ("train", "test")
             for path in sorted((small_photos / split / "a").iterdir())]
    files[0].write_text("no image")
    files[1].write_bytes(files[1].read_bytes()[:-2000])
    files[-1].write_bytes(b"")
    with pytest.raises(OSError, match="3 of 80 files are not readable images: .*, .*, .*test.*fix"):
        data.load("folder", small_photos, resident=resident)

    flags = [*TINY, "--data-dir", small_photos, "--resident", resident, "--batch-size", 12,
             "--epochs", 1, "--out", tmp_path / "run"]
    assert run(*flags) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(*flags, "--skip-unreadable") == 0
    out = capsys.readouterr().out
    assert "38 training images" in out and f"left out: 3 unreadable ({files[0]}, {files[1]}" in out
    evaluate.main([str(tmp_path / "run"), "--device", "cpu"])       # as the run did
    assert "38 training and 39 test images" in capsys.readouterr().out


STALLED = """
import sys, time, train
from plumbing import images
honest = images.open_for_crops
def open_for_crops(path, *rest):
    if "train/a/00003" in path:
        time.sleep(1000)
    return honest(path, *rest)
images.open_for_crops = open_for_crops
train.main(sys.argv[1:])
"""


def test_a_stalled_disk_does_not_delay_the_end(small_photos, tmp_path):
    """One SIGTERM ends the run within seconds, with its workers and a checkpoint."""
    script = tmp_path / "stalled.py"
    script.write_text(STALLED)
    command = [sys.executable, script, *STREAMED, "--data-dir", small_photos, "--epochs", "3",
               "--save-minutes", "10", "--out", tmp_path / "run"]
    process = subprocess.Popen([str(word) for word in command], text=True, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(5)       # by then it waits for a batch
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143 and err.startswith("train.py: stopped; go on with: ")
    saved = load_checkpoint(tmp_path / "run" / "last.pt")
    assert (saved["epoch"], saved["step"]) == (1, 2)        # though no checkpoint was due


def test_too_few_open_files_are_said_at_once(photos, monkeypatch):
    import resource
    monkeypatch.setattr(resource, "getrlimit", lambda which: (20, 20))
    d = data.load("folder", photos, resident="no")
    with pytest.raises(BadInput, match="may open 20 files, too few"):
        next(data.batches_of_views(d, data.plan_batches(48, 24, 0, epochs=2), "vicreg"))


def test_an_unexpected_exception_ends_a_streamed_run(small_photos, tmp_path):
    """With its workers, which block the signal that Python would end them with."""
    script = tmp_path / "broken.py"
    script.write_text("import sys, train\n"
                      "def evaluate(*arguments):\n    raise RuntimeError('a mistake')\n"
                      "train.probe.evaluate = evaluate\ntrain.main(sys.argv[1:])\n")
    command = [sys.executable, script, *STREAMED, "--data-dir", small_photos,
               "--epochs", "3", "--eval-every", "1", "--out", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([str(word) for word in command], env=environment, capture_output=True,
                           text=True, timeout=120)
    assert ended.returncode == 1 and "a mistake" in ended.stderr


def test_a_streamed_run_stops_when_its_whole_group_is_told_to(small_photos, tmp_path):
    """Schedulers signal all processes at once; the workers go on until the step is done."""
    flags = [*STREAMED, "--data-dir", small_photos, "--epochs", 500, "--eval-every", 500]
    process = start(*flags, "--out", tmp_path / "run", start_new_session=True)
    wait_for_epoch(tmp_path / "run" / "log.csv", 1, process)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.startswith("train.py: stopped; go on with: ") and err.count("\n") == 1


# --- python data.py ---------------------------------------------------------------------------

def test_smaller_copies(tmp_path, capsys):
    """Large images are resized, upright; small ones stay byte for byte; existing files stay."""
    folder, out = tmp_path / "photos", tmp_path / "small"
    picture = to_pil(smooth_picture(120, 90))
    (folder / "train" / "a").mkdir(parents=True)
    save_on_its_side(picture, folder / "train" / "a" / "turned.jpg")
    picture.save(folder / "train" / "a" / "large.png")
    picture.save(folder / "train" / "a" / "scan.tif")
    picture.resize((20, 25)).save(folder / "tiny.jpg")
    command = ["folder", "--data-dir", str(folder), "--resize"]

    data.main([*command, "45", str(out)])
    assert "4 images are in" in capsys.readouterr().out
    assert (out / "tiny.jpg").read_bytes() == (folder / "tiny.jpg").read_bytes()
    expected = np.asarray(picture.resize((45, 60), Image.Resampling.BICUBIC), float)
    for name in ("turned.jpg", "large.png", "scan.tif.png"):
        with Image.open(out / "train" / "a" / name) as copy:
            assert copy.size == (45, 60) and not copy.getexif().get(images.EXIF_ORIENTATION)
            assert abs(np.asarray(copy, float) - expected).mean() < 6     # on its side: 60

    (out / "tiny.jpg").write_bytes(b"mine")
    (out / "train" / "a" / "large.png").unlink()
    data.main([*command, "45", str(out)])
    assert (out / "tiny.jpg").read_bytes() == b"mine"
    assert (out / "train" / "a" / "large.png").exists()
    assert not list(out.rglob("unfinished*"))

    (folder / "torn.jpg").write_bytes(b"no image")
    data.main([*command, "45", str(out), "--skip-unreadable"])
    assert "4 images are in" in capsys.readouterr().out

    with pytest.raises(SystemExit):         # the existing copies would stay
        data.main([*command, "30", str(out)])
    assert "another size" in capsys.readouterr().err


@pytest.mark.parametrize("words, message", [
    ("cifar10 --resize 16 OUT", "copies image files"),
    ("folder --data-dir IN --resize 16 IN/small", "outside"),
    ("folder --data-dir IN/small --resize 16 IN", "outside"),
    ("folder --data-dir IN --resize 0 OUT", "whole number from 1"),
    ("folder --data-dir IN --resize 16 OUT --classes x", "leave out --classes"),
    ("folder --data-dir IN --resize 16 OUT", "bad.jpg is not a readable image"),
    ("folder --data-dir LOOP --resize 16 OUT", "no images"),
])
def test_copies_that_cannot_be_made(words, message, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("in", "out", "loop"):
        words = words.replace(name.upper(), str(tmp_path / name))
    with pytest.raises(SystemExit) as ended:
        data.main(words.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_first_look(small_photos, tmp_path, capsys):
    """python data.py NAME prints the splits and draws images and views; bad data, one line."""
    data.main(["folder", "--data-dir", str(small_photos), "--out", str(tmp_path / "sheet.png")])
    out = capsys.readouterr().out
    assert "2 classes" in out
    assert "train  40 images; 20 in each class" in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 6 * 80 and sheet.std() > 20

    with pytest.raises(SystemExit) as stop:
        data.main(["cinic10", "--data-dir", str(small_photos), "--out", str(tmp_path / "no.png")])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("data.py: ") and err.count("\n") == 1
    assert not (tmp_path / "no.png").exists()
