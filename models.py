"""The networks: an encoder x → r and an MLP projector r → z.

    encoder, p = resnet("resnet18", width=64, stem="small")
    encoder, p = make_encoder("convnext_tiny", image_size=64)       # or any other of torchvision
    projector = mlp(p, "2048-2048-2048")
    r = encoder(images)        # n × p
    z = projector(r)           # n × d

The encoders are torchvision's, so weights trained here load there. A ResNet's r is non-negative,
a mean over the last ReLU's outputs. Networks that end differently (ConvNeXt, ViT, Swin,
EfficientNet …) give r of both signs: see losses.matrix_mutual_information and
metrics.effective_rank for what that changes.

    encoder, facts = load_encoder("runs/demo")          # a trained one
"""
import json
from pathlib import Path

import torch
import torchvision
from torch import nn

from augment import normalise

# torchvision's classification networks, except those with several heads or no linear one
ARCHITECTURES = tuple(name for name in torchvision.models.list_models(module=torchvision.models)
                      if not name.startswith(("googlenet", "inception", "squeezenet")))
RESNETS = tuple(name for name in ARCHITECTURES if "resnet" in name or "resnext" in name)
PUBLISHED_WIDTH = 64


def make_encoder(arch="resnet50", width=PUBLISHED_WIDTH, stem="small", image_size=32):
    """A network of torchvision without its classifier, and the width p of its output.

    arch: one of ARCHITECTURES. width, stem: of ResNets alone, see resnet().
    image_size: of the input, in pixels. A ViT is built for this size, and takes no other.
    Raises ValueError on an unknown arch, or if it does not take images of this size.
    """
    if arch in RESNETS:
        return resnet(arch, width, stem)
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: choose from {', '.join(ARCHITECTURES)}")

    settings = {"image_size": image_size} if arch.startswith("vit_") else {}
    try:
        net = torchvision.models.get_model(arch, **settings)
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{arch} does not take images of {image_size} pixels "
                         f"({reason})") from error

    *_, name = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    parent_name, _, own_name = name.rpartition(".")
    parent = net.get_submodule(parent_name)
    p = getattr(parent, own_name).in_features
    setattr(parent, own_name, nn.Identity())
    for layer in parent.children():
        if isinstance(layer, nn.Dropout):   # meant for the classifier; it would disturb r
            layer.p = 0.0
    return net.train(), p


def load_encoder(folder):
    """(encoder, facts) from backbone.pt and encoder.json of a run, on the CPU, in evaluation mode.

    facts: a dict of arch, width, stem, image_size (of the network's input) and size (of the images
    from whose centre it is cut), the mean and std that normalise the input, and the command that
    trained the network. Raises OSError, or other errors if the files are damaged.
    """
    facts = json.loads((Path(folder) / "encoder.json").read_text(encoding="utf-8"))
    encoder, _ = make_encoder(facts["arch"], facts["width"], facts["stem"], facts["image_size"])
    weights = torch.load(Path(folder) / "backbone.pt", map_location="cpu", weights_only=True)
    encoder.load_state_dict(weights)
    return encoder.eval(), facts


def resnet(arch="resnet50", width=PUBLISHED_WIDTH, stem="small"):
    """torchvision's ResNet without its classifier, and the width p of its output.

    arch: one of RESNETS; p = 8 · width for resnet18 and resnet34, 32 · width for all others.
    width: channels of the first stage; 64 is the published width, smaller ones suit CPUs.
    stem: "imagenet" is torchvision's; "small" is a 3 × 3 convolution with stride 1 and no
        max-pool, for images of up to 64 pixels, which the other stem would shrink too far.
    Raises ValueError on an unknown arch or stem, or a width that is too small.
    """
    if arch not in RESNETS:
        raise ValueError(f"unknown architecture {arch!r}: choose from {', '.join(RESNETS)}")
    if stem not in ("small", "imagenet"):
        raise ValueError(f"the stem must be small or imagenet, not {stem!r}")

    net = torchvision.models.get_model(arch)
    narrowest = max(1, PUBLISHED_WIDTH // net.base_width)       # a ResNeXt splits it into groups
    if width < narrowest:
        raise ValueError(f"width must be at least {narrowest}, got {width}")
    if width != PUBLISHED_WIDTH:
        change_width(net, width)
    if stem == "small":
        # solo-learn uses this stem for CIFAR only, and pads by 2, which gives maps of 34 × 34
        net.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()

    # torchvision's initialisation, also for the new layers
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net, net.inplanes


def change_width(net, width):
    """Rebuilds the stem and the stages of torchvision's ResNet with another width."""
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    block = type(net.layer1[0])

    net.inplanes = width        # _make_layer reads and updates it
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for i, stage in enumerate(stages):
        stride = 1 if i == 0 else 2
        new_stage = net._make_layer(block, width * 2 ** i, len(stage), stride=stride)
        setattr(net, f"layer{i + 1}", new_stage)


def memory_layout(device, precision, width):
    """channels_last, which is faster, except where oneDNN crashes with it.

    It crashes in the backward pass of narrow networks in fp32 (seen with PyTorch 2.6 to 2.15, on
    CPUs with AVX2 and with AVX-512).
    """
    onednn_crashes = device.type == "cpu" and precision == "fp32" and width < 16
    return torch.contiguous_format if onednn_crashes else torch.channels_last


def all_finite(net):
    """Whether all parameters and buffers of a module are finite."""
    return all(value.isfinite().all() for value in (*net.parameters(), *net.buffers()))


def mlp(width, sizes, batch_norm=True, activation=None):
    """The projector: Linear-BN-ReLU for each size but the last, then Linear.

    width: of the input. sizes: output sizes of the layers, such as "2048-2048-2048". batch_norm:
    False leaves out BN. activation: a module that replaces ReLU.
    Raises ValueError if sizes is not positive integers joined by hyphens.
    """
    if not all(size.isdecimal() and int(size) > 0 for size in sizes.split("-")):
        raise ValueError(
            f"expected a projector's layer sizes, such as 2048-2048-2048, got {sizes!r}")
    layers = []
    *hidden, last = map(int, sizes.split("-"))
    for size in hidden:
        layers.append(nn.Linear(width, size))
        if batch_norm:
            layers.append(nn.BatchNorm1d(size))
        layers.append(activation or nn.ReLU(inplace=True))
        width = size
    layers.append(nn.Linear(width, last))
    return nn.Sequential(*layers)


@torch.no_grad()
def encode(images, encoder, *heads, mean, std, batch_size=None):
    """The networks' outputs in evaluation mode, without augmentation: [r, head(r), …].

    images: n × 3 × s × s, uint8, or float in [0, 1]. heads: networks that take r. mean, std: for
    normalisation, one value per channel. Outputs are float32, with n rows.
    batch_size: None is 512, or 128 on a CPU, whose cache larger batches overflow.
    Autocast is up to the caller: bf16 halves the time and changes the effective rank by some
    0.2 %. Each module returns to the mode, training or evaluation, that it was in.
    """
    networks = (encoder, *heads)
    was_training = {module: module.training for net in networks for module in net.modules()}
    for net in networks:
        net.eval()
    # once, because moving them to a GPU waits for it
    mean, std = (torch.as_tensor(values, dtype=torch.float32, device=images.device)
                 for values in (mean, std))
    if batch_size is None:
        batch_size = 128 if images.device.type == "cpu" else 512
    try:
        batches = []
        for x in images.split(batch_size):
            x = normalise(x, mean, std).contiguous(memory_format=torch.channels_last)
            r = encoder(x)
            outputs = [r.float()]
            for head in heads:
                outputs.append(head(r).float())
            batches.append(outputs)
    finally:
        for module, training in was_training.items():
            module.training = training
    return [torch.cat(parts) for parts in zip(*batches)]
