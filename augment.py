"""Augmentation of whole batches, on the device: two random views of each image from some forty tensor operations.

    from augment import augment, normalise
    view = augment(images, "vicreg")                      # uint8, n × 3 × s × s, to float in [0, 1]
    inputs = normalise(view, mean, std)

On one core that is some eight times as fast as image by image through PIL. Every random draw comes from the generator that the caller hands
over, so an epoch can be repeated exactly. This file needs torch alone.
"""
import math

import torch
import torch.nn.functional as F

DRAWS = 35      # random numbers for a view
# Probabilities and strengths as in SPEC and solo-learn; jitter is brightness, contrast, saturation, hue. A pair is view
# 1's and view 2's. "vicreg" is solo-learn's stronger CIFAR scheme.
AUGMENTATIONS = {
    "vicreg": dict(scale=(0.2, 1), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=0, solarise_p=(0.1, 0.1)),
    "simclr": dict(scale=(0.08, 1), jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grey_p=0.2, blur_p=0.5, solarise_p=(0, 0)),
    "byol": dict(scale=(0.08, 1), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=0, solarise_p=(0, 0.2)),
}


def augment(x, recipe="vicreg", view=0, generator=None, size=None, cropped=False):
    """One random view of each image: crop, flip, colour jitter, greyscale, blur, solarise, drawn anew for each image.

    x: uint8, n × 3 × s × s, square. recipe: a key of AUGMENTATIONS. view: 0 or 1. generator: on x's device. size: of the view,
    in pixels (None: x's). cropped: x has its crop and flip already, from data.stream_crops.
    Returns float32 in [0, 1], n × 3 × size × size.
    """
    return augment_with(torch.rand(len(x), DRAWS, generator=generator, device=x.device), x, recipe, view, size, cropped)


def augment_with(draws, x, recipe, view, size=None, cropped=False):
    """augment() with random numbers that were drawn before, n × DRAWS in [0, 1): what torch.compile can take whole."""
    a, used = AUGMENTATIONS[recipe], 0

    def rand(n, *shape):        # as torch.rand, but from the draws
        nonlocal used
        start, used = used, used + math.prod(shape)
        return draws[:, start:used].reshape(n, *shape)

    chance = lambda p: (rand(len(x), 1, 1, 1) < p).float()      # for lerp, which is exact at 0 and 1 and faster than where
    x = x.float() / 255
    if not cropped:
        x = random_resized_crop(x, a["scale"], rand, size)
    x = torch.lerp(x, colour_jitter(x, a["jitter"], rand), chance(a["jitter_p"]))
    x = torch.lerp(x, grey(x), chance(a["grey_p"]))
    if a["blur_p"] and x.shape[-1] > 64:        # smaller images have no detail to spare; CIFAR's recipes do not blur
        x = torch.lerp(x, gaussian_blur(x, 0.1 + 1.9 * rand(len(x), 1, 1, 1)), chance(a["blur_p"]))
    return torch.lerp(x, torch.minimum(x, 1 - x), chance(a["solarise_p"][view]))


def random_boxes(n, scale, rand, ratio=(3 / 4, 4 / 3), shape=1.0, flip_p=0.5):
    """n random parts of an image: width, height, centre x, centre y, each n, where the image spans −1 … 1; and whether to flip.

    Area uniform in `scale`, aspect ratio log-uniform in `ratio`, as torchvision's RandomResizedCrop: of ten draws the
    first that fits into the image. shape: the image's height over its width.
    """
    tries = 10
    area = scale[0] + (scale[1] - scale[0]) * rand(n, tries)
    aspect = shape * (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * rand(n, tries)).exp()
    w, h = (area * aspect).sqrt(), (area / aspect).sqrt()
    fits = (w <= 1) & (h <= 1)
    first = fits.int().argmax(1, keepdim=True)
    # should all ten fail, as much of the image as the ratios allow
    largest = min(1.0, ratio[1] * shape), min(1.0, 1 / (ratio[0] * shape))
    w, h = (torch.where(fits.any(1), side.gather(1, first).squeeze(1), most) for side, most in zip((w, h), largest))
    x0, y0 = ((1 - side) * (2 * rand(n) - 1) for side in (w, h))
    return w, h, x0, y0, rand(n) < flip_p


def random_resized_crop(x, scale, rand, size=None, ratio=(3 / 4, 4 / 3)):
    """A random part of each image of x (n × 3 × s × s, float), see random_boxes, resized to size × size, half of them mirrored."""
    w, h, x0, y0, flip = random_boxes(len(x), scale, rand, ratio)
    w, zero, size = torch.where(flip, -w, w), torch.zeros_like(w), size or x.shape[-1]
    grid = F.affine_grid(torch.stack([w, zero, x0, zero, h, y0], 1).view(-1, 2, 3), (len(x), 3, size, size), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def grey(x):
    """Luma of x (n × 3 × h × w) as n × 1 × h × w, with PIL's weights."""
    return torch.add(torch.add(0.299 * x[:, :1], x[:, 1:2], alpha=0.587), x[:, 2:], alpha=0.114)


def colour_jitter(x, strengths, rand):
    """Brightness, contrast and saturation in an order drawn for each image, then hue.

    Each factor is uniform in 1 ± its strength, the hue's shift in ± its strength (of a turn). Hue comes last because it
    commutes with the others but for clipping. x: n × 3 × h × w in [0, 1].
    """
    n = len(x)
    factors = torch.stack([1 + strength * (2 * draw - 1) for strength, draw in zip(strengths, rand(n, 3).unbind(1))], 1)
    order = rand(n, 3).argsort(1)
    for op in order.unbind(1):
        factor, op = factors.gather(1, op[:, None]).view(n, 1, 1, 1), op.view(n, 1, 1, 1)
        luma = grey(x)
        # each of the three moves the image from, or towards, a base: black, its mean grey, its greys
        base = torch.addcmul((op == 1) * luma.mean((2, 3), keepdim=True), luma, (op == 2).float())
        x = torch.lerp(base, x, factor).clamp_(0, 1)
    return shift_hue(x, (2 * rand(n, 1, 1) - 1) * strengths[3])


def shift_hue(x, shift):
    """x (n × 3 × h × w in [0, 1]) with its HSV hue turned by shift (n × 1 × 1, in turns, up to a third of one)."""
    r, g, b = x.unbind(1)
    value, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = value - low
    # the hue in sixths of a turn: 0 is red, 2 green, 4 blue; lerp picks one, as above
    scale = 1 / chroma.clamp_min(1e-8)
    hue = torch.lerp((r - g) * scale + 4, (b - r) * scale + 2, (value == g).float())
    hue = torch.lerp(hue, (g - b) * scale, (value == r).float()) + 6 * shift
    # a channel is at its lowest two sixths from its colour on and in between it rises: periodic, without a modulo
    away = torch.stack([hue, hue - 2, hue - 4], 1)
    away = away.abs_().sub_(3).abs_().clamp_(1, 2)      # 1 at its lowest, 2 at its highest
    return torch.addcmul((value - 2 * chroma).unsqueeze(1), chroma.unsqueeze(1), away)


def gaussian_blur(x, sigma, radius=6):
    """x (n × c × h × w) blurred with a Gaussian of its own width for each image; sigma: n × 1 × 1 × 1, up to 2 pixels."""
    offsets = range(-radius, radius + 1)
    weights = [(-0.5 * (i / sigma) ** 2).exp() for i in offsets]
    total = sum(weights)
    for dim in (2, 3):
        pad = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        size, padded = x.shape[dim], F.pad(x, pad, mode="reflect")
        x = sum(w / total * padded.narrow(dim, i + radius, size) for w, i in zip(weights, offsets))
    return x


def normalise(x, mean, std):
    """x (n × 3 × h × w, uint8 or float in [0, 1]) minus mean, over std, channel by channel."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=x.device).view(1, 3, 1, 1) for v in (mean, std))
    return torch.addcmul(-mean / std, x, 1 / std)
