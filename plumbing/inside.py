"""Looks inside a trained encoder: the outputs of its layers, and figures of them and of images.

    outputs = layer_outputs(data, "test_x", index, encoder, projector, device)
    outputs["layer2"], outputs["r"], outputs["z"]       # n × width each
"""
import contextlib
import itertools
import math

import torch
import torchvision
from torch import nn

from data import pixels
from losses import normalize_rows
from metrics import effective_rank, mutual_information
from plumbing.images import random_subset
from plumbing.panels import COLOURS, picture, save
from plumbing.results import write_table
from probe import METRIC_IMAGES, encode_images

MAP_IMAGES = 3000           # points of a map
QUERIES, NEIGHBOURS = 8, 8
PANELS = {                  # of layers.png: {title: key of a row}
    "Effective rank": "erank",
    "I(layer; Z) (nats)": "mi",
    "Linear probe (%)": "linear_top1",
}


def look_inside(args, data, encoder, projector, device, linear_probe):
    """What evaluate.py's --layers and --picture ask for: a table, and files in the run's folder.

    linear_probe: evaluate.py's. data: see data.load.
    """
    nets = [net.eval().to(device) for net in (encoder, projector)]
    test = random_subset(len(data["test_x"]), METRIC_IMAGES, seed=0)
    if args.picture:
        r, = encode_images(data, "test_x", test, nets[:1], device)
        found = {"r": r, "y": data["test_y"][test], "index": test, "data": data}
        print(*picture(args.run / "picture.png", draw_picture, found))
    if args.layers:
        rows = []
        for row in measure_layers(data, test, nets, device, linear_probe):
            print_layer(row, heading=not rows)
            rows.append(row)
        write_table(args.run / "layers.csv", rows)
        print("layers.csv", *picture(args.run / "layers.png", draw_layers, rows))


# --- outputs of layers --------------------------------------------------------------------------

def stages_of(encoder):
    """{name: module} of an encoder's stages, first to last: its blocks, or layers if it has none.

    torchvision keeps them in a container of one of these names, or, as in a ResNet, at the top.
    """
    path, container = "", encoder
    for candidate in ("features", "trunk_output", "encoder.layers", "blocks", "layers"):
        with contextlib.suppress(AttributeError):
            path, container = f"{candidate}.", encoder.get_submodule(candidate)
            break
    children = {f"{path}{name}": child for name, child in container.named_children()}
    blocks = {name: child for name, child in children.items() if list(child.children())}
    layers = {name: child for name, child in children.items() if list(child.parameters())}
    return blocks or layers


@torch.no_grad()
def hidden_layers(projector, r):
    """{name: n × width}: a projector's hidden layers, the inputs of its Linears but the first."""
    hidden, x = {}, r
    modules = list(projector) if isinstance(projector, nn.Sequential) else []
    for module, following in itertools.pairwise(modules):
        x = module(x)
        if isinstance(following, nn.Linear):
            hidden[f"projector {len(hidden) + 1}"] = x
    return hidden


@contextlib.contextmanager
def recorded(modules, positions):
    """Within the block, {name: [output of each batch, n × width]}, averaged over positions.

    positions: {number of a module's output's axes: those to average over}.
    """
    outputs = {name: [] for name in modules}

    def recorder(name):
        def record(module, inputs, output):
            axes = positions.get(output.ndim)
            flat = output if axes is None else output.mean(axes)
            outputs[name].append(flat.float().clone())      # the next layer may be in-place
        return record

    hooks = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def layer_outputs(data, split, index, encoder, projector, device):
    """{layer: n × width} of the images data[split][index], from the first stage to r and z.

    Maps of features, and a transformer's tokens, are averaged over their positions. A stage whose
    average is r itself, as a ResNet's last, is left out. data: see data.load. Networks: on the
    device, in evaluation mode.
    """
    is_swin = isinstance(encoder, torchvision.models.SwinTransformer)   # n × h × w × channels
    positions = {3: 1, 4: (1, 2) if is_swin else (2, 3)}
    with recorded(stages_of(encoder), positions) as outputs:
        r, z = encode_images(data, split, index, [encoder, projector], device)
    outputs = {name: torch.cat(batches) for name, batches in outputs.items()}
    *_, last = outputs
    if outputs[last].shape == r.shape and torch.allclose(outputs[last], r, rtol=1e-3, atol=1e-4):
        del outputs[last]
    return outputs | {"r": r} | hidden_layers(projector, r) | {"z": z}


def measure_layers(data, test, nets, device, linear_probe):
    """Yields a dict for each layer, first to last: its name, width, effective rank, I(layer; Z)
    and, if there are labels, the accuracy of a linear probe.

    test: places of the images to measure. The probe learns from METRIC_IMAGES training images at
    most. nets: encoder and projector. In z's row, I is that of Z with itself.
    """
    tested = layer_outputs(data, "test_x", test, *nets, device)
    test_y = data["test_y"][test].to(device)
    learnt_from = {}
    if data["classes"]:
        labelled = (data["train_y"] >= 0).nonzero().flatten()
        train = labelled[random_subset(len(labelled), METRIC_IMAGES, seed=0)]
        train_y = data["train_y"][train].to(device)
        learnt_from = layer_outputs(data, "train_x", train, *nets, device)
    for name, x in tested.items():
        row = {"layer": name, "width": x.shape[1], "erank": effective_rank(x).item(),
               "mi": mutual_information(x, tested["z"]).item()}
        if learnt_from:
            row["linear_top1"] = linear_probe(learnt_from[name], train_y, x, test_y)["top1"]
        yield row


# --- layers.png ---------------------------------------------------------------------------------

def print_layer(row, heading):
    """Prints a row, as soon as it is measured: the probes take minutes on a CPU."""
    if heading:
        print(f"{'layer':24}{'width':>7}{'rank':>9}{'share':>8}{'I(·;Z)':>9}{'probe':>9}")
    accuracy = f"{row['linear_top1']:7.2f} %" if "linear_top1" in row else ""
    share = f"{100 * row['erank'] / row['width']:.1f} %"
    print(f"{row['layer']:24}{row['width']:7}{row['erank']:9.2f}{share:>8}{row['mi']:9.3f}"
          f"{accuracy}", flush=True)


def draw_layers(path, rows):
    """One panel for each of PANELS, its x axis being the layers in their order."""
    from matplotlib.figure import Figure
    panels = {title: key for title, key in PANELS.items() if key in rows[0]}
    names = [row["layer"] for row in rows]
    figure = Figure(figsize=(4.6 * len(panels), 4), layout="constrained")
    for axis, (title, key) in zip(figure.subplots(1, len(panels), squeeze=False).flat,
                                  panels.items()):
        axis.plot(names, [row[key] for row in rows], marker="o", color=COLOURS[0])
        if key == "erank":
            axis.plot(names, [row["width"] for row in rows], color="grey", linestyle="dashed",
                      label="width: the largest possible")
            axis.set_yscale("log")
            axis.legend(frameon=False)
        axis.axvspan(names.index("r"), len(names) - 1, color=COLOURS[4], alpha=0.12, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", rotation=90 if len(names) > 8 else 45)
        axis.grid(alpha=0.3)
    figure.suptitle("after each layer of the encoder, up to r, and of the projector (shaded)",
                    fontsize=11)
    save(figure, path)


# --- picture.png --------------------------------------------------------------------------------

def principal_plane(r):
    """r̂ (n × p) on its two principal axes, n × 2, and these axes' shares of the variance."""
    x = normalize_rows(r).double().cpu()
    x = x - x.mean(0)
    variances, axes = torch.linalg.eigh(x.T @ x)                # p, ascending; p × p
    largest = variances.flip(0)[:2]
    return x @ axes.flip(1)[:, :2], largest / variances.sum().clamp_min(1e-30)


def choose_queries(y):
    """Places of QUERIES images, of as many classes as possible. y: n classes, −1 without."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).tolist()
    seen, first, later = set(), [], []
    for place in order:
        is_new = int(y[place]) not in seen
        seen.add(int(y[place]))
        (first if is_new else later).append(place)
    return (first + later)[:QUERIES]


def nearest_neighbours(r, queries, count):
    """Places of the `count` other rows of r (n × p) that are nearest to each of some, by cosine.

    queries: places of rows. Returns queries × count.
    """
    unit = normalize_rows(r)
    cosines = unit[queries] @ unit.T                            # queries × n
    cosines[range(len(queries)), queries] = -math.inf           # an image is not its own neighbour
    return cosines.topk(count).indices.cpu()


def draw_picture(path, found):
    """The map of r's principal plane, and rows of images, each with its nearest neighbours.

    found: a dict of r (n × p), y (n) and index of test images, and data, see data.load.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    draw_map(left.subplots(), found["r"], found["y"], found["data"]["classes"])
    draw_neighbours(right, **found)
    save(figure, path)


def draw_map(axis, r, y, classes):
    """A point per image; of more than ten classes, the ten with most images have colours."""
    points, shares = principal_plane(r)
    some = random_subset(len(points), MAP_IMAGES, seed=0)
    points, y = points[some], y[some]
    coloured = []
    if classes:
        coloured = torch.bincount(y[y >= 0], minlength=len(classes)).argsort(descending=True)[:10]
    rest = ~torch.isin(y, torch.as_tensor(coloured))
    axis.scatter(*points[rest].T, s=6, color="lightgrey" if classes else COLOURS[0], linewidths=0,
                 label="other classes" if classes and rest.any() else None)
    for label in sorted(int(label) for label in coloured):
        axis.scatter(*points[y == label].T, s=9, linewidths=0, label=classes[label])
    axis.set(xlabel=f"first principal axis, {100 * shares[0]:.0f} % of the variance",
             ylabel=f"second, {100 * shares[1]:.0f} %", xticks=[], yticks=[])
    axis.set_title(f"PCA of r̂, {len(points):,} test images", fontsize=11)
    if classes:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=4, frameon=False,
                    markerscale=3, fontsize=9)


def draw_neighbours(figure, r, y, index, data):
    """QUERIES rows: a test image, and the NEIGHBOURS nearest to it, by the cosine of r."""
    queries = torch.tensor(choose_queries(y))
    count = min(NEIGHBOURS, len(r) - 1)
    rows = torch.cat([queries[:, None], nearest_neighbours(r, queries, count)], 1)
    grid = figure.subplots(len(queries), count + 1, squeeze=False)
    for places, axes in zip(rows, grid):
        images = pixels(data, "test_x", index[places])          # 1 + count × 3 × s × s, uint8
        for column, (axis, place, image) in enumerate(zip(axes, places, images)):
            axis.imshow(image.permute(1, 2, 0).cpu().numpy())
            axis.set(xticks=[], yticks=[])
            colour = COLOURS[0] if y[place] == y[places[0]] else COLOURS[1]
            axis.spines[:].set(color=colour if column and data["classes"] else "none",
                               linewidth=3)
        if data["classes"]:
            axes[0].set_ylabel(data["classes"][y[places[0]]], rotation=0, ha="right", va="center",
                               fontsize=9)
    title = "left: test images; beside each, its nearest neighbours among the others"
    if data["classes"]:
        title += "\n(blue: of the same class; orange: of another)"
    figure.suptitle(title, fontsize=11)
