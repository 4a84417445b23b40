"""The networks: a ResNet encoder x → r and an MLP projector r → z.

    encoder, p = resnet("resnet18", width=64, stem="small")
    projector = mlp(p, "2048-2048-2048")
    r = encoder(images)        # n × p, non-negative: a mean over the last ReLU's outputs
    z = projector(r)           # n × d

The ResNets are torchvision's, so weights trained here load there.
"""
import torch
import torchvision
from torch import nn

from augment import normalise

RESNETS = {
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
}
PUBLISHED_WIDTH = 64


def resnet(arch="resnet50", width=PUBLISHED_WIDTH, stem="small"):
    """torchvision's ResNet without its classifier, and the width p of its output.

    arch: resnet18 (p = 8 · width) or resnet50 (p = 32 · width).
    width: channels of the first stage; 64 is the published width, smaller ones suit CPUs.
    stem: "imagenet" is torchvision's; "small" is a 3 × 3 convolution with stride 1 and no
        max-pool, for images of up to 64 pixels, which the other stem would shrink too far.
    Raises ValueError on an unknown arch or stem, or a width below 1.
    """
    if arch not in RESNETS:
        raise ValueError(f"unknown architecture {arch!r}: choose from {', '.join(RESNETS)}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if stem not in ("small", "imagenet"):
        raise ValueError(f"the stem must be small or imagenet, not {stem!r}")

    net = RESNETS[arch]()
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
def encode(images, encoder, *heads, mean, std, batch_size=128):
    """The networks' outputs in evaluation mode, without augmentation: [r, head(r), …].

    images: n × 3 × s × s, uint8. heads: networks that take r. mean, std: for normalisation, one
    value per channel. Outputs are float32, with n rows.
    batch_size: larger batches overflow a CPU's cache.
    Autocast is up to the caller: bf16 halves the time and changes the effective rank by some
    0.2 %. Each module returns to the mode, training or evaluation, that it was in.
    """
    networks = (encoder, *heads)
    was_training = {module: module.training for net in networks for module in net.modules()}
    for net in networks:
        net.eval()
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
