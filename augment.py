"""Augmentation of whole batches on the device: a random view of each image.

    from augment import augment, normalise
    view = augment(images, "vicreg")            # uint8, n × 3 × s × s  →  float in [0, 1]
    inputs = normalise(view, mean, std)

A view takes about 150 tensor operations for the whole batch; on one core that is about eight
times as fast as PIL, image by image. All random numbers come from the caller's generator, so an
epoch can be repeated exactly. This file needs only torch.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Jitter(NamedTuple):
    """Strengths of colour_jitter; the defaults are VICReg's, BYOL's and ReSSL's."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1


# scale: range of a crop's area, as a share of the image's. jitter_p, grey_p, blur_p, solarise_p:
# probabilities in view 1 and view 2. blur_from: size in pixels of the smallest images to blur.
# The values are from solo-learn's recipes for VICReg, SimCLR (symmetric), MoCo v2 and SimSiam
# (symmetric_weak), BYOL (asymmetric views) and ReSSL (a strong and a weak view), and from LeJEPA's
# minimal example. One difference: solo-learn crops with bicubic interpolation, this file with
# bilinear.
COMMON = dict(scale=(0.08, 1), jitter=Jitter(), jitter_p=(0.8, 0.8), grey_p=(0.2, 0.2),
              blur_p=(0.5, 0.5), blur_from=0, solarise_p=(0, 0))
STRONG = Jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
AUGMENTATIONS = {
    "vicreg": COMMON | dict(scale=(0.2, 1), blur_from=224, solarise_p=(0.1, 0.1)),
    "simclr": COMMON | dict(jitter=STRONG),
    "symmetric_weak": COMMON | dict(jitter=Jitter(saturation=0.4)),
    "byol": COMMON | dict(blur_p=(0, 0), solarise_p=(0, 0.2)),
    "ressl": COMMON | dict(jitter_p=(0.8, 0), grey_p=(0.2, 0), blur_p=(0.5, 0)),
    "lejepa": COMMON | dict(jitter=STRONG, solarise_p=(0.2, 0.2)),
}

# random numbers per view, for crop and flip, jitter, grey, solarising and blur
NUMBERS = (23, 9, 1, 1, 2)
DRAWS = sum(NUMBERS)


# --- a view ---------------------------------------------------------------------------------

def augment(x, recipe="vicreg", view=0, generator=None, size=None, cropped=False):
    """One random view of each image: crop, flip, colour jitter, grey, blur, solarise.

    x: n × 3 × s × s, uint8, or float in [0, 1]. recipe: a key of AUGMENTATIONS. view: 0 or 1.
    generator: on x's device. size: of the view in pixels (None: as x). cropped: x is already
    cropped and flipped. Returns n × 3 × size × size, float32 in [0, 1].
    """
    draws = torch.rand(len(x), DRAWS, generator=generator, device=x.device)
    return augment_with(draws, x, recipe, view, size, cropped)


def augment_with(draws, x, recipe, view=None, size=None, cropped=False):
    """augment() with the given random numbers (n × DRAWS, in [0, 1)).

    view: None takes both at once, which on a GPU halves the number of launches: x and draws then
    hold 2n images, the first views and then the second. Steps that a recipe omits cost nothing.
    No branch depends on a tensor's values, so torch.compile can compile it as a whole.
    """
    settings = AUGMENTATIONS[recipe]
    views = slice(None) if view is None else slice(view, view + 1)
    for_crop, for_jitter, for_grey, for_solarise, for_blur = draws.split(NUMBERS, dim=1)

    def jittered(x, rand):
        return colour_jitter(x, settings["jitter"], rand)

    if x.dtype == torch.uint8:
        x = x / 255
    if not cropped:
        x = random_resized_crop(x, settings["scale"], taken_from(for_crop), size)
    x = sometimes(x, jittered, settings["jitter_p"][views], for_jitter)
    x = sometimes(x, greyed, settings["grey_p"][views], for_grey)
    if x.shape[-1] >= settings["blur_from"]:
        x = sometimes(x, blurred, settings["blur_p"][views], for_blur)
    return sometimes(x, solarised, settings["solarise_p"][views], for_solarise)


def taken_from(numbers):
    """A function like torch.rand that takes the next columns of numbers (n × k)."""
    used = 0

    def rand(n, *shape):
        nonlocal used
        start = used
        used += math.prod(shape)
        return numbers[:, start:used].reshape(n, *shape)
    return rand


def sometimes(x, change, probabilities, numbers):
    """Replaces each image by its changed version, with the probability of its view.

    probabilities: of each view in x. change: (images, rand) → images. numbers: n × k, random.
    """
    if len(set(probabilities)) == 2:                # each view by itself
        views = zip(x.chunk(2), probabilities, numbers.chunk(2))
        return torch.cat([sometimes(x, change, (probability,), numbers)
                          for x, probability, numbers in views])
    if probabilities[0] == 0:
        return x
    rand = taken_from(numbers)
    changed = change(x, rand)
    chosen = (rand(len(x), 1, 1, 1) < probabilities[0]).float()
    return torch.lerp(x, changed, chosen)           # exact at 0 and 1, and faster than where


def greyed(x, rand):
    return grey(x)


def blurred(x, rand):
    sigma = 0.1 + 1.9 * rand(len(x), 1, 1, 1)
    return gaussian_blur(x, sigma).clamp_(max=1)    # rounding could exceed 1


def solarised(x, rand):
    return torch.minimum(x, 1 - x)                  # inverts values above one half


# --- crop and flip --------------------------------------------------------------------------

class Boxes(NamedTuple):
    """n crops in coordinates in which an image spans −1 … 1; each field holds n values."""
    width: torch.Tensor         # as a share of the image's
    height: torch.Tensor
    centre_x: torch.Tensor
    centre_y: torch.Tensor
    flip: torch.Tensor          # whether to mirror it


def random_boxes(n, scale, rand, ratio=(3 / 4, 4 / 3), shape=1.0):
    """Draws n random Boxes, as torchvision's RandomResizedCrop does.

    The area is uniform in `scale`, the aspect ratio log-uniform in `ratio`; the first of ten draws
    that fits into the image counts. rand: like torch.rand. shape: the image's height over width.
    """
    tries = 10
    narrowest, widest = ratio
    area = scale[0] + (scale[1] - scale[0]) * rand(n, tries)                    # n × tries
    log_aspect = math.log(narrowest) + math.log(widest / narrowest) * rand(n, tries)
    aspect = shape * log_aspect.exp()
    widths = (area * aspect).sqrt()
    heights = (area / aspect).sqrt()

    fits = (widths <= 1) & (heights <= 1)
    any_fits = fits.any(1)                                                      # n
    first = fits.int().argmax(1, keepdim=True)                                  # n × 1
    # if none of the ten fits: as much of the image as the ratios allow
    largest_width = min(1.0, widest * shape)
    largest_height = min(1.0, 1 / (narrowest * shape))
    width = torch.where(any_fits, widths.gather(1, first).squeeze(1), largest_width)
    height = torch.where(any_fits, heights.gather(1, first).squeeze(1), largest_height)

    centre_x = (1 - width) * (2 * rand(n) - 1)
    centre_y = (1 - height) * (2 * rand(n) - 1)
    return Boxes(width, height, centre_x, centre_y, flip=rand(n) < 0.5)


def random_resized_crop(x, scale, rand, size=None, ratio=(3 / 4, 4 / 3)):
    """Random crops of x (n × 3 × s × s, float), resized to size × size; see random_boxes.

    Crops larger than size are not antialiased, unlike torchvision's: on CIFAR-100, shrunk from 32
    to 16 and 8 pixels, the two differ by 6 and 16 of 255 levels (RMS). train.py makes no such
    views: images in memory have the view's size, and PIL filters the crops of files.
    """
    n = len(x)
    size = size or x.shape[-1]
    box = random_boxes(n, scale, rand, ratio)

    # affine_grid's matrices map coordinates in the view to coordinates in the image
    width = torch.where(box.flip, -box.width, box.width)
    zero = torch.zeros_like(width)
    matrices = torch.stack([width, zero, box.centre_x,
                            zero, box.height, box.centre_y], 1).view(-1, 2, 3)  # n × 2 × 3
    grid = F.affine_grid(matrices, (n, 3, size, size), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


# --- colours ----------------------------------------------------------------------------------

def grey(x):
    """Luma of x (n × 3 × h × w) as n × 1 × h × w, with PIL's weights."""
    red, green, blue = x.split(1, dim=1)
    return torch.add(torch.add(0.299 * red, green, alpha=0.587), blue, alpha=0.114)


def colour_jitter(x, strengths, rand):
    """Brightness, contrast, saturation and hue, in an order drawn for each image.

    x: n × 3 × h × w in [0, 1]. strengths: a Jitter, or four numbers in its order. A factor is
    uniform in 1 ± its strength, the hue's shift in ± its strength, in turns. rand: as torch.rand.
    """
    n = len(x)
    *other_strengths, hue = strengths
    if hue > 1 / 3:
        raise ValueError(f"hue must be at most 1/3 of a turn, got {hue}")
    draws = rand(n, 3).unbind(1)
    factors = [1 + strength * (2 * draw - 1) for strength, draw in zip(other_strengths, draws)]
    shift = (2 * rand(n, 1, 1) - 1) * hue
    order = rand(n, 4).argsort(1)           # 0: brightness, 1: contrast, 2: saturation, 3: hue
    factors = torch.stack([*factors, torch.ones_like(factors[0])], 1).gather(1, order)      # n × 4

    # hue costs most, so all images' is shifted at once, and each has the others before or after
    before_hue = (order == 3).cumsum(1) == 0
    for place in range(3):
        x = adjust(x, torch.where(before_hue, factors, 1), order, place)
    x = shift_hue(x, shift)
    for place in range(1, 4):
        x = adjust(x, torch.where(before_hue, 1, factors), order, place)
    return x


def adjust(x, factors, order, place):
    """Moves each image from, or towards, a base: black, its mean grey or its greys.

    factors, order: n × 4. place: the column whose factor and kind are used.
    """
    luma = grey(x)
    mean_grey = column((order == 1).float(), place) * luma.mean((2, 3), keepdim=True)
    base = torch.addcmul(mean_grey, luma, column((order == 2).float(), place))
    return torch.lerp(base, x, column(factors, place)).clamp_(0, 1)


def column(x, place):
    """A column of x (n × k), in the shape n × 1 × 1 × 1: one number for each image."""
    return x[:, place, None, None, None]


def shift_hue(x, shift):
    """Shifts the HSV hue of x.

    x: n × 3 × h × w in [0, 1]. shift: n × 1 × 1, in turns of the colour circle, at most a third.
    """
    red, green, blue = x.unbind(1)                                              # n × h × w
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = highest - lowest

    # the hue in sixths of a turn: 0 is red, 2 green, 4 blue. It is measured from the highest
    # channel's hue, which lerp selects: it is exact at 0 and 1
    scale = 1 / chroma.clamp_min(1e-8)
    from_red = (green - blue) * scale
    from_green = (blue - red) * scale + 2
    from_blue = (red - green) * scale + 4
    hue = torch.lerp(from_blue, from_green, (highest == green).float())
    hue = torch.lerp(hue, from_red, (highest == red).float())
    hue = hue + 6 * shift

    # a channel is highest up to one sixth from its own hue, lowest from two sixths on, linear in
    # between; this form is periodic without a modulo
    away = torch.stack([hue, hue - 2, hue - 4], 1)                              # n × 3 × h × w
    level = away.abs_().sub_(3).abs_().clamp_(1, 2)         # 1 at its lowest, 2 at its highest
    return torch.addcmul((highest - 2 * chroma).unsqueeze(1), chroma.unsqueeze(1), level)


# --- blur and normalisation -------------------------------------------------------------------

def gaussian_blur(x, sigma):
    """Blurs each image of x (n × c × h × w) with its sigma (n × 1 × 1 × 1, pixels, at most 2)."""
    radius = min(6, x.shape[-1] - 1, x.shape[-2] - 1)           # the longest reflection possible
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    weights = (-0.5 * (offsets / sigma.view(-1, 1)).square()).exp()         # n × 2·radius + 1
    weights = weights / weights.sum(1, keepdim=True)
    for dim, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        length = x.shape[dim]
        padded = F.pad(x, padding, mode="reflect")
        x = padded.narrow(dim, 0, length) * column(weights, 0)
        for place in range(1, 2 * radius + 1):
            x.addcmul_(padded.narrow(dim, place, length), column(weights, place))
    return x


def normalise(x, mean, std):
    """(x − mean) / std for each channel.

    x: n × 3 × h × w, uint8 or float in [0, 1]. mean, std: three values each. Returns float32.
    """
    if x.dtype == torch.uint8:
        x = x / 255
    mean, std = (torch.as_tensor(values, dtype=torch.float32, device=x.device).view(1, 3, 1, 1)
                 for values in (mean, std))
    return torch.addcmul(-mean / std, x, 1 / std)
