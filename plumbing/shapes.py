"""A dataset without files: drawings of ten shapes. The class is the shape; all else is random.

    from plumbing.shapes import load_shapes
    data = load_shapes()        # the images of train.py --dataset shapes
"""
import math

import torch

SHAPES = ("disc", "ring", "square", "triangle", "star",
          "cross", "bar", "crescent", "corner", "dots")


def load_shapes(n_train=10_000, n_test=2_048, seed=0):
    """The dataset, from draw_shapes(): a dict of train_x, train_y, test_x, test_y and classes."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = draw_shapes(n_train + n_test, generator)
    return {
        "train_x": images[:n_train],
        "train_y": labels[:n_train],
        "test_x": images[n_train:],
        "test_y": labels[n_train:],
        "classes": list(SHAPES),
    }


def draw_shapes(n, generator, size=32):
    """n images (n × 3 × size × size, uint8) and their labels (n, int64, indices of SHAPES).

    Place, size, rotation, colours, background and noise are random, and the shape is as often
    darker than its background as lighter: no pixel's value says much about the class.
    """
    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    def uniform(low, high):
        return low + (high - low) * rand(n, 1, 1)

    def tint(strength):
        return strength * (rand(n, 3, 1, 1) - 0.5)

    labels = torch.randint(len(SHAPES), (n,), generator=generator)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1        # the pixels' centres, in −1 … 1
    pixel_y, pixel_x = torch.meshgrid(axis, axis, indexing="ij")

    # the shape's own coordinates u, v (n × size × size): moved, scaled, turned
    radius = uniform(0.4, 0.75)
    angle = uniform(0, 2 * math.pi)
    x = (pixel_x - uniform(-0.35, 0.35)) / radius
    y = (pixel_y - uniform(-0.35, 0.35)) / radius
    u = angle.cos() * x + angle.sin() * y
    v = angle.cos() * y - angle.sin() * x

    # how much of each pixel the shape covers, with one pixel of smooth edge
    outside = torch.empty(n, size, size)
    for label, name in enumerate(SHAPES):
        chosen = labels == label
        outside[chosen] = distance(name, u[chosen], v[chosen])
    cover = (0.5 - outside * radius * size / 2).clamp(0, 1)[:, None]        # n × 1 × size × size

    # the background is brighter on one side, the shape lighter or darker than it
    brightness = rand(n, 1, 1, 1)
    turn = uniform(0, 2 * math.pi)
    slope = 0.1 * (turn.cos() * pixel_x + turn.sin() * pixel_y)[:, None]
    contrast = (0.3 + 0.3 * rand(n, 1, 1, 1)) * torch.where(brightness > 0.5, -1, 1)
    background = brightness + tint(0.2) + slope
    foreground = brightness + contrast + tint(0.5)

    images = torch.lerp(background, foreground, cover)
    images = images + 0.05 * torch.randn(n, 3, size, size, generator=generator)
    images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return images, labels


def distance(name, u, v):
    """How far the points (u, v) lie outside the named shape of radius 1; negative inside.

    Exact only near the outline, where it counts. u, v and the result: tensors of equal shape.
    Raises ValueError on a name that is not in SHAPES.
    """
    r = torch.hypot(u, v)
    if name == "disc":
        return r - 0.9
    if name == "ring":
        return (r - 0.75).abs() - 0.18
    if name == "square":
        return box(u, v, 0.75, 0.75)
    if name == "triangle":
        return torch.maximum(v, (-v + 3 ** 0.5 * u.abs()) / 2) - 0.55
    if name == "star":
        return star(u, v)
    if name == "cross":
        return torch.minimum(box(u, v, 0.95, 0.25), box(u, v, 0.25, 0.95))
    if name == "bar":
        return box(u, v, 1, 0.25)
    if name == "crescent":
        return torch.maximum(r - 0.95, 0.75 - torch.hypot(u - 0.45, v))
    if name == "corner":
        return torch.minimum(box(u + 0.55, v, 0.22, 0.8), box(u, v - 0.58, 0.77, 0.22))
    if name == "dots":
        return torch.minimum(torch.hypot(u - 0.6, v), torch.hypot(u + 0.6, v)) - 0.38
    raise ValueError(f"unknown shape {name!r}")


def box(u, v, width, height):
    """Distance from a rectangle around the origin; width and height are half its sides."""
    return torch.maximum(u.abs() - width, v.abs() - height)


def star(u, v):
    """Distance from a star of five points, each with its tip at radius 1."""
    # fold the plane onto one half of one point, whose edge is a straight line
    fifth = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(v, u), fifth) - fifth / 2
    from_tip = fifth / 2 - angle.abs()
    edge = math.atan2(0.42 * math.sin(fifth / 2), 1 - 0.42 * math.cos(fifth / 2))
    return torch.hypot(u, v) * (from_tip + edge).sin() - math.sin(edge)
