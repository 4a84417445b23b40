"""Tests of augment.py and models.py, mostly against torchvision.

    python -m pytest -q tests/test_models.py
"""
import itertools

import pytest
import torch
import torchvision
from torchvision.transforms import functional as tvf

import augment as augmentation
from datasets import load_shapes
from methods import mlp
from models import encode, make_encoder, resnet
from tests.helpers import generator, random_images

# --- augmentation -----------------------------------------------------------------------------

def test_colours_equal_torchvisions():
    x = torch.rand(4, 3, 32, 32, generator=generator())
    strongest = torch.ones      # a draw of 1 is the strongest change

    brighter = augmentation.colour_jitter(x, (0.4, 0, 0, 0), strongest)
    assert torch.allclose(brighter, tvf.adjust_brightness(x, 1.4), atol=2e-3)
    contrasted = augmentation.colour_jitter(x, (0, 0.4, 0, 0), strongest)
    assert torch.allclose(contrasted, tvf.adjust_contrast(x, 1.4), atol=2e-3)
    saturated = augmentation.colour_jitter(x, (0, 0, 0.4, 0), strongest)
    assert torch.allclose(saturated, tvf.adjust_saturation(x, 1.4), atol=2e-3)
    turned = augmentation.colour_jitter(x, (0, 0, 0, 0.2), strongest)
    assert torch.allclose(turned, tvf.adjust_hue(x, 0.2), atol=1e-4)
    turned_back = augmentation.shift_hue(x, torch.full((4, 1, 1), -0.3))
    assert torch.allclose(turned_back, tvf.adjust_hue(x, -0.3), atol=1e-4)


def test_jitter_in_every_order_equals_torchvisions():
    orders = list(itertools.permutations(range(4)))
    adjustments = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation,
                   tvf.adjust_hue)
    amounts = (1.3, 0.5, 1.4, 0.2)
    x = torch.rand(1, 3, 8, 8, generator=generator()).repeat(24, 1, 1, 1)
    draws = iter([torch.tensor([[0.8, 0, 0.9]]).repeat(24, 1),          # the factors above
                  torch.ones(24, 1, 1),                                 # the hue
                  torch.tensor(orders).argsort(1).float()])             # the order
    ours = augmentation.colour_jitter(x, (0.5, 0.5, 0.5, 0.2), lambda *shape: next(draws))
    theirs = []
    for image, order in zip(x, orders):
        for kind in order:
            image = adjustments[kind](image, amounts[kind])
        theirs.append(image)
    assert torch.allclose(ours, torch.stack(theirs), atol=5e-3)


def test_jitter_has_torchvisions_mean_and_deviation():
    """Of a blue image, whose greys become lighter if the hue is shifted first."""
    torch.manual_seed(0)
    strengths = (0.2, 0.4, 0.8, 0.33)
    image = torch.tensor([0.05, 0.05, 0.8]).view(3, 1, 1).repeat(1, 2, 2)
    ours = augmentation.colour_jitter(image.repeat(20000, 1, 1, 1), strengths, torch.rand)
    jitter = torchvision.transforms.ColorJitter(*strengths)
    theirs = torch.stack([jitter(image) for _ in range(2000)])
    for power in (1, 2):
        a, b = ours.mean((2, 3)) ** power, theirs.mean((2, 3)) ** power     # views × 3
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()


def test_blur_equals_torchvisions():
    x = torch.rand(4, 3, 32, 32, generator=generator())
    ours = augmentation.gaussian_blur(x, torch.full((4, 1, 1, 1), 1.3))
    assert torch.allclose(ours, tvf.gaussian_blur(x, [13, 13], [1.3, 1.3]), atol=1e-5)


def test_crop_equals_torchvisions():
    """Draws of zero give the top left quarter, flipped."""
    x = torch.rand(2, 3, 32, 32, generator=generator())
    ours = augmentation.random_resized_crop(x, (0.25, 0.25), torch.zeros, ratio=(1, 1))
    theirs = tvf.resized_crop(x, 0, 0, 16, 16, [32, 32], antialias=False).flip(3)
    inside = (..., slice(1, -1), slice(1, -1))      # the border sees its neighbours
    assert torch.allclose(ours[inside], theirs[inside], atol=1e-5)


@pytest.mark.parametrize("recipe", augmentation.AUGMENTATIONS)
def test_views_are_independent_and_repeatable(recipe):
    image = load_shapes(1, 1)["train_x"].expand(64, 3, 32, 32)
    draws = generator()
    first = augmentation.augment(image, recipe, 0, draws)
    second = augmentation.augment(image, recipe, 1, draws)
    both = torch.cat([first, second])
    assert both.flatten(1).unique(dim=0).shape[0] == 128
    assert both.min() >= 0 and both.max() <= 1
    assert torch.equal(first, augmentation.augment(image, recipe, 0, generator()))


def test_solarise_follows_the_view():
    """Jitter keeps a white image above 0.6; solarised, it is below 0.4. Only view 2 solarises."""
    white = torch.full((500, 3, 8, 8), 255, dtype=torch.uint8)
    shares = []
    for view in (0, 1):
        brightest = augmentation.augment(white, "byol", view, generator()).amax((1, 2, 3))
        shares.append((brightest < 0.5).double().mean())
    assert shares[0] == 0 and 0.14 < shares[1] < 0.26


@pytest.mark.parametrize("recipe, size, share", [
    ("simclr", 32, 0.5), ("vicreg", 32, 0), ("vicreg", 224, 0.5), ("byol", 224, 0),
])
def test_blur_depends_on_the_size(recipe, size, share, monkeypatch):
    """share: of the views that are blurred."""
    blurred = []

    def noted(x, sigma):
        blurred.append((0.1 <= sigma).all() and (sigma <= 2).all())
        return torch.full_like(x, -1)               # no view looks like that

    monkeypatch.setattr(augmentation, "gaussian_blur", noted)
    x = torch.zeros(100, 3, size, size, dtype=torch.uint8)
    views = augmentation.augment(x, recipe, 0, generator())
    assert all(blurred)
    assert (views.amin((1, 2, 3)) < 0).double().mean() == pytest.approx(share, abs=0.15 * share)


# --- networks ---------------------------------------------------------------------------------

def test_encoder_is_torchvisions():
    torch.manual_seed(0)
    ours, p = resnet("resnet18", 64, "imagenet")
    theirs = torchvision.models.resnet18()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 96, 96)
    assert p == 512
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("arch, width, size, p", [
    ("resnet18", 64, 32, 512), ("resnet18", 5, 32, 40), ("resnet50", 3, 28, 96),
    ("resnet50", 4, 96, 128), ("resnet34", 4, 32, 32), ("wide_resnet50_2", 2, 32, 64),
    ("resnext50_32x4d", 16, 32, 512),
])
def test_widths_and_stems(arch, width, size, p):
    small = size <= 64
    net, width_of_r = resnet(arch, width, "small" if small else "imagenet")
    strides = []

    def measure_stride(module, inputs):
        strides.append(size // inputs[0].shape[-1])

    net.layer1.register_forward_pre_hook(measure_stride)
    r = net(torch.randn(2, 3, size, size))
    assert width_of_r == p and r.shape == (2, p) and r.min() >= 0
    assert strides == ([1] if small else [4])
    projector = mlp(p, "7-9-11")
    assert projector(r).shape == (2, 11) and len(projector) == 7


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="width must be at least 16"):
        make_encoder("resnext50_32x4d", 8)
    with pytest.raises(ValueError, match="ENCODERS has no 'mine'"):
        make_encoder("mine")


@pytest.mark.parametrize("training", [True, False])
def test_encode_freezes_batch_norms_and_leaves_the_mode(training):
    torch.manual_seed(0)
    net, _ = resnet("resnet18", 2)
    images = load_shapes(40, 1)["train_x"]
    facts = {"mean": [0.5] * 3, "std": [0.2] * 3}
    net(augmentation.normalise(images, **facts))        # moves the running statistics
    net.train(training)
    before = {key: value.clone() for key, value in net.state_dict().items()}

    whole, = encode(images, net, **facts)
    parts = torch.cat([encode(part, net, **facts)[0] for part in images.split(7)])
    assert torch.allclose(whole, parts, atol=1e-5)
    assert net.training == training and net.bn1.training == training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
