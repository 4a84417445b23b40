"""The networks: a ResNet encoder x → r and an MLP projector r → z.

    encoder, p = resnet("resnet18", width=64, stem="small")
    projector = mlp(p, "2048-2048-2048")
    r = encoder(images)        # n × p, non-negative: the last layer is a ReLU, then a mean
    z = projector(r)           # n × d

The ResNets are torchvision's own, so that what is trained here loads there.
"""
import torch
import torchvision
from torch import nn

from augment import normalise

RESNETS = {"resnet18": torchvision.models.resnet18, "resnet50": torchvision.models.resnet50}


def resnet(arch="resnet50", width=64, stem="small"):
    """torchvision's ResNet without its classifier, and the width p of its output.

    arch: resnet18 (p = 8·width) or resnet50 (p = 32·width). width: channels of the first stage; 64 is the published
    one, smaller ones suit CPUs. stem: small, a 3×3 convolution with stride 1 and no max-pool, for images of up to 64
    pixels, which the other stem would shrink to nothing; or imagenet, torchvision's own.
    Raises ValueError on an unknown arch or stem, or a width below 1.
    """
    if arch not in RESNETS:
        raise ValueError(f"unknown architecture {arch!r}: choose from {', '.join(RESNETS)}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if stem not in ("small", "imagenet"):
        raise ValueError(f"the stem must be small or imagenet, not {stem!r}")
    net = RESNETS[arch]()
    if width != 64:
        # torchvision fixes the first width at 64: build the stages again, as its constructor does
        block, depths = type(net.layer1[0]), [len(stage) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
        net.inplanes = width
        net.conv1, net.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        for i, depth in enumerate(depths):
            setattr(net, f"layer{i + 1}", net._make_layer(block, width * 2 ** i, depth, stride=1 if i == 0 else 2))
    if stem == "small":
        net.conv1, net.maxpool = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.Identity()
    net.fc = nn.Identity()
    for module in net.modules():        # torchvision's initialisation, for the parts that are new
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net, net.inplanes


def mlp(width, sizes):
    """The projector: Linear-BN-ReLU for each size but the last, then Linear.

    width: of its input. sizes: "2048-2048-2048", from input to output. Raises ValueError if it is not positive
    integers joined by hyphens.
    """
    if not all(size.isdecimal() and int(size) > 0 for size in sizes.split("-")):
        raise ValueError(f"a projector is its layers' sizes, such as 2048-2048-2048, not {sizes!r}")
    layers = []
    for size in map(int, sizes.split("-")):
        layers += [nn.Linear(width, size), nn.BatchNorm1d(size), nn.ReLU(inplace=True)]
        width = size
    return nn.Sequential(*layers[:-2])


@torch.no_grad()
def encode(images, encoder, *heads, mean, std, batch_size=512):
    """[r, head(r) for each head] of images (uint8, n × 3 × s × s) as they are, as float32, with frozen batch norms.

    mean, std: of the images' normalisation, a value for each channel. Autocast is the caller's: bf16 halves the time
    and moves the effective rank by some 0.2 %. The networks return to training mode.
    """
    for net in (encoder, *heads):
        net.eval()
    parts = []
    for x in images.split(batch_size):
        r = encoder(normalise(x, mean, std).contiguous(memory_format=torch.channels_last))
        parts.append([r.float(), *(head(r).float() for head in heads)])
    for net in (encoder, *heads):
        net.train()
    return [torch.cat(part) for part in zip(*parts)]
