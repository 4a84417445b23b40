"""Images that need no file: ten shapes, drawn so that the class is what is drawn and all else about an image is drawn at random.

    from shapes import load_shapes
    data = load_shapes()        # what train.py --dataset shapes trains on
"""
import math

import torch

SHAPES = ("disc", "ring", "square", "triangle", "star", "cross", "bar", "crescent", "corner", "dots")


def load_shapes(n_train=10_000, n_test=2_048, seed=0):
    """Ten drawn shapes on 32 × 32 pixels. The class is what is drawn; all else about an image is drawn at random."""
    x, y = draw_shapes(n_train + n_test, torch.Generator().manual_seed(seed))
    return {"train_x": x[:n_train], "train_y": y[:n_train], "test_x": x[n_train:], "test_y": y[n_train:], "classes": list(SHAPES)}


def draw_shapes(n, generator, size=32):
    """n images (uint8, n × 3 × size × size) and their classes (int64, indices of SHAPES).

    Place, size, rotation, colours, background and noise are random, and the shape is as often darker than its background
    as lighter: no pixel's value says much about the class.
    """
    rand = lambda *shape: torch.rand(*shape, generator=generator)
    uniform = lambda low, high: low + (high - low) * rand(n, 1, 1)
    y = torch.randint(len(SHAPES), (n,), generator=generator)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    py, px = torch.meshgrid(axis, axis, indexing="ij")

    # the shape's own coordinates u, v: moved, turned, scaled
    radius, angle = uniform(0.4, 0.75), uniform(0, 2 * math.pi)
    dx, dy = (px - uniform(-0.35, 0.35)) / radius, (py - uniform(-0.35, 0.35)) / radius
    u, v = angle.cos() * dx + angle.sin() * dy, angle.cos() * dy - angle.sin() * dx
    outside = torch.empty(n, size, size)
    for label, name in enumerate(SHAPES):
        outside[y == label] = distance(name, u[y == label], v[y == label])
    cover = (0.5 - outside * radius * size / 2).clamp(0, 1)[:, None]      # one pixel of smooth edge

    # the background is brighter on one side, the shape's colour lighter or darker than it
    tint = lambda strength: strength * (rand(n, 3, 1, 1) - 0.5)
    brightness, turn = rand(n, 1, 1, 1), uniform(0, 2 * math.pi)
    slope = 0.1 * (turn.cos() * px + turn.sin() * py)[:, None]
    contrast = (0.3 + 0.3 * rand(n, 1, 1, 1)) * torch.where(brightness > 0.5, -1, 1)
    image = torch.lerp(brightness + tint(0.2) + slope, brightness + contrast + tint(0.5), cover)
    image = image + 0.05 * torch.randn(n, 3, size, size, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), y


def distance(name, u, v):
    """How far (u, v) lies outside the named shape of radius 1; negative inside. Near the outline it is a distance."""
    r = torch.hypot(u, v)
    box = lambda a, b, width, height: torch.maximum((u - a).abs() - width, (v - b).abs() - height)
    if name == "disc":
        return r - 0.9
    if name == "ring":
        return (r - 0.75).abs() - 0.18
    if name == "square":
        return box(0, 0, 0.75, 0.75)
    if name == "triangle":
        return torch.maximum(v, (-v + 3 ** 0.5 * u.abs()) / 2) - 0.55
    if name == "star":      # fold the plane onto one half of one of the five points, whose edge is a straight line
        turn = 2 * math.pi / 5
        a = torch.remainder(torch.atan2(v, u), turn) - turn / 2
        a = turn / 2 - a.abs()
        edge = math.atan2(0.42 * math.sin(turn / 2), 1 - 0.42 * math.cos(turn / 2))
        return r * (a + edge).sin() - math.sin(edge)
    if name == "cross":
        return torch.minimum(box(0, 0, 0.95, 0.25), box(0, 0, 0.25, 0.95))
    if name == "bar":
        return box(0, 0, 1, 0.25)
    if name == "crescent":
        return torch.maximum(r - 0.95, 0.75 - torch.hypot(u - 0.45, v))
    if name == "corner":
        return torch.minimum(box(-0.55, 0, 0.22, 0.8), box(0, 0.58, 0.77, 0.22))
    if name == "dots":
        return torch.minimum(torch.hypot(u - 0.6, v), torch.hypot(u + 0.6, v)) - 0.38
    raise ValueError(f"unknown shape {name!r}")
