"""The networks: a ResNet encoder x → r and an MLP projector r → z.

    encoder, p = resnet("resnet18", width=64, stem="small")
    projector = mlp(p, "2048-2048-2048")
    r = encoder(images)        # n × p, non-negative: the last layer is a ReLU, then a mean
    z = projector(r)           # n × d

The ResNets are torchvision's own, so what is trained here loads there.
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
    width: channels of the first stage; 64 is the published one, smaller ones suit CPUs.
    stem: "imagenet", torchvision's own; or "small", a 3 × 3 convolution with stride 1 and no
        max-pool, for images of up to 64 pixels, which the other would shrink to nothing.
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
        # solo-learn pads by 2, which makes maps of 34 × 34, and has this stem for CIFAR alone
        net.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()

    # torchvision's initialisation, for the parts that are new
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net, net.inplanes


def change_width(net, width):
    """Builds the stem and the stages of torchvision's ResNet again, from another first width."""
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    block = type(net.layer1[0])

    net.inplanes = width        # what _make_layer counts on from
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for i, stage in enumerate(stages):
        stride = 1 if i == 0 else 2
        new_stage = net._make_layer(block, width * 2 ** i, len(stage), stride=stride)
        setattr(net, f"layer{i + 1}", new_stage)


def memory_layout(device, precision, width):
    """channels_last, which is faster, but where oneDNN would crash with it.

    It does in the backward pass of narrow networks in fp32 (seen with PyTorch 2.6 to 2.15, on
    CPUs with AVX2 and with AVX-512).
    """
    onednn_crashes = device.type == "cpu" and precision == "fp32" and width < 16
    return torch.contiguous_format if onednn_crashes else torch.channels_last


def all_finite(net):
    """Whether no parameter and no buffer of a module is NaN or infinite."""
    return all(value.isfinite().all() for value in (*net.parameters(), *net.buffers()))


def mlp(width, sizes, batch_norm=True, activation=None):
    """The projector: Linear-BN-ReLU for each size but the last, then Linear.

    width: of its input. sizes: of its layers' outputs, such as "2048-2048-2048". batch_norm:
    False leaves out the BN. activation: a module in place of the ReLU.
    Raises ValueError if sizes is not positive integers joined by hyphens.
    """
    if not all(size.isdecimal() and int(size) > 0 for size in sizes.split("-")):
        raise ValueError(
            f"a projector is its layers' sizes, such as 2048-2048-2048, not {sizes!r}")
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
    """The networks' outputs on images as they are, in evaluation mode: [r, head(r), …].

    images: n × 3 × s × s, uint8. heads: networks that take r. mean, std: of the images'
    normalisation, a value for each channel. Outputs are float32, with n rows.
    batch_size: larger ones are slower on a CPU, whose cache they leave.
    Autocast is the caller's: bf16 halves the time and moves the effective rank by some 0.2 %.
    Every network is left in the mode, training or evaluation, in which it was.
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
