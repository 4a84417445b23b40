"""Loads trained encoders, from a run of train.py or any state dict, and the images of a run."""
from pathlib import Path

import torch

from baselines import METHODS
from data import load
from methods import Method
from models import load_encoder, make_encoder, resnet
from plumbing.checkpoint import check_whole_file, load_checkpoint
from plumbing.cli import BadInput, without_warnings
from plumbing.datasets import DATASETS

LARGEST_SIZE = 4096     # pixels, of --image-size


def load_run(folder):
    """(encoder, projector, facts) of a run of train.py, from its last.pt, on the CPU.

    facts is a dict: classes, size, image_size, stem, mean, std of the training images; dataset,
    data_dir, streamed, min_size; and train.py's flags, as in facts["flags"]["--arch"].
    Raises BadInput if there is no such run, or its checkpoint is damaged.
    """
    path = Path(folder) / "last.pt"
    saved = load_checkpoint(path)
    try:
        flags = saved["config"]
        facts = saved["facts"] | {"dataset": flags["--dataset"], "flags": flags}
        encoder, p = make_encoder(flags["--arch"], flags["--width"], facts["stem"],
                                  facts["image_size"])
        method = METHODS.get(flags["--method"], Method)     # Method for one of the user's own
        projector = method.make_projector(p, flags["--projector"], flags["--set"])
        with without_warnings():
            encoder.load_state_dict(below("method.encoder.", saved["learner"]))
            projector.load_state_dict(below("method.projector.", saved["learner"]))
        check_input(facts)
        Path(facts["data_dir"])     # raises unless it can be a path
    except Exception as error:      # the content can be anything
        raise BadInput(f"{path} is not a whole checkpoint of train.py "
                       f"({type(error).__name__})") from error
    return encoder, projector, facts


def check_input(facts):
    """Raises some exception unless mean and std are three finite numbers, std's positive, and the
    images have a size."""
    if facts["image_size"] not in range(1, min(facts["size"], LARGEST_SIZE) + 1):
        raise ValueError("its images have no size")
    mean, std = torch.tensor([facts["mean"], facts["std"]]).view(2, 3)
    if not torch.cat([mean, std.log()]).isfinite().all():
        raise ValueError("its images have no mean or std")


def below(prefix, state):
    """The entries of a state dict whose names begin with the prefix, which is removed."""
    return {name.removeprefix(prefix): value for name, value in state.items()
            if name.startswith(prefix)}


def load_weights(path):
    """(encoder, facts) from a state dict of torchvision's ResNet-18 or ResNet-50, of any width and
    stem, with facts None; or of any network, from backbone.pt with encoder.json beside it.

    facts: see models.load_encoder. Raises BadInput if the weights fit neither.
    """
    path = Path(path)
    carries_facts = path.name == "backbone.pt" and path.with_name("encoder.json").exists()
    try:
        check_whole_file(path)
        if carries_facts:
            encoder, facts = load_encoder(path.parent)
            check_input(facts)
            return encoder, facts
        with without_warnings():
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        width, _, kernel_size, _ = state["conv1.weight"].shape
        stem = "small" if kernel_size == 3 else "imagenet"
        # ResNet-50's blocks have three convolutions each, ResNet-18's two
        arch = "resnet50" if "layer1.0.conv3.weight" in state else "resnet18"
        encoder, _ = resnet(arch, width, stem)
        with without_warnings():
            encoder.load_state_dict(state)
    except OSError as error:
        raise BadInput(error) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        network = "torchvision's ResNet-18 or ResNet-50"
        if carries_facts:
            network = f"the network in {path.with_name('encoder.json')}"
        raise BadInput(f"{path} is not a state dict of {network} ({reason})") from error
    return encoder, None


@torch.no_grad()
def check_image_size(encoder, path, image_size):
    """Raises BadInput if an encoder, from a path, does not take images of this many pixels."""
    try:
        encoder.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise BadInput(f"{path}: the encoder does not take images of {image_size} pixels "
                       f"({reason})") from error


def load_own_images(facts, data_dir=None, classes=None, skip_unreadable=False):
    """Loads the images that a run was trained on. data_dir, classes: instead of the run's own.

    Leaves out unreadable files if skip_unreadable is set, or was for the run.
    Raises BadInput if there is no such dataset here, or its images have another size.
    """
    name, size = facts["dataset"], facts["size"]
    if name not in list(DATASETS) or size != DATASETS[name].get("size", size):
        raise BadInput(f"there is no dataset {name!r} with {size} pixels here: give a --dataset")
    layout = DATASETS[name]["layout"]
    if classes is None and layout in ("classes", "folder"):
        classes = facts["classes"] or None
    skip = skip_unreadable or facts["flags"].get("--skip-unreadable", False)
    # a folder's views are cropped from whole images, however the run kept them
    resident = "no" if layout == "folder" else "auto"
    return load(name, data_dir or facts["data_dir"], classes=classes, resident=resident,
                like=facts, skip_unreadable=skip)
