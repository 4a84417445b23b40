"""The encoder x → r; methods.mlp is the projector r → z.

    encoder, p = resnet("resnet18", width=64, stem="small")
    r = encoder(images)        # n × p
    encoder, facts = load_encoder("runs/demo")                      # a trained one

The encoders are torchvision's ResNets, so weights trained here load there; their r is
non-negative, a mean over the last ReLU's outputs. ENCODERS takes others; if they give r of both
signs, losses.matrix_mutual_information and metrics.effective_rank tell what that changes.
"""
import json
import re
from pathlib import Path

import torch
import torchvision
from torch import nn

from augment import normalise

RESNETS = tuple(name for name in torchvision.models.list_models(module=torchvision.models)
                if "resnet" in name or "resnext" in name)
ENCODERS = {}       # your own, {name for --arch: make}; make(image_size) returns a module and p
PUBLISHED_WIDTH = 64
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def make_encoder(arch="resnet50", width=PUBLISHED_WIDTH, stem="small", image_size=32):
    """An encoder, images → r (n × p), and p. arch: one of RESNETS, see resnet(), or ENCODERS.

    Raises ValueError for a width that is too small, or an arch that is neither.
    """
    if arch in ENCODERS:
        return ENCODERS[arch](image_size)
    if arch not in RESNETS:
        raise ValueError(f"ENCODERS has no {arch!r}: import the file that defines it first")
    return resnet(arch, width, stem)


def load_encoder(folder):
    """(encoder, facts) from backbone.pt and encoder.json of a run, on the CPU, in evaluation mode.

    facts: arch, width, stem, image_size (of the input), size (of the images from whose centre it
    is cut), its mean and std, and the training's command. Raises OSError if they can't be read.
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
    Raises ValueError on a width that is too small.
    """
    net = torchvision.models.get_model(arch)
    narrowest = max(1, PUBLISHED_WIDTH // net.base_width)       # a ResNeXt splits it into groups
    if width < narrowest:
        raise ValueError(f"width must be at least {narrowest}, got {width}")
    if width != PUBLISHED_WIDTH:
        block = type(net.layer1[0])
        net.inplanes = width        # _make_layer reads and updates it
        net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        net.bn1 = nn.BatchNorm2d(width)
        net.layer1 = net._make_layer(block, width, len(net.layer1))
        net.layer2 = net._make_layer(block, 2 * width, len(net.layer2), stride=2)
        net.layer3 = net._make_layer(block, 4 * width, len(net.layer3), stride=2)
        net.layer4 = net._make_layer(block, 8 * width, len(net.layer4), stride=2)
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


def fast_precision(device):
    """What --precision auto stands for: bf16 if the device computes in it, else fp32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu = Path("/proc/cpuinfo")         # on Linux; elsewhere fp32 is never wrong
        fast = cpu.exists() and re.search("avx512_bf16|amx_bf16", cpu.read_text()) is not None
    return "bf16" if fast else "fp32"


def mixed_precision(precision, device):
    """The networks' autocast context, and the scaler of their gradients (for fp16)."""
    autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return autocast, scaler


def memory_layout(device, precision, width):
    """channels_last, which is faster, except where oneDNN crashes with it."""
    # in the backward pass of narrow networks (PyTorch 2.6 to 2.15, with AVX2 and AVX-512)
    onednn_crashes = device.type == "cpu" and precision == "fp32" and width < 16
    return torch.contiguous_format if onednn_crashes else torch.channels_last


@torch.no_grad()
def encode(images, encoder, *heads, mean, std):
    """The networks' outputs in evaluation mode, without augmentation: [r, head(r), …].

    images: n × 3 × s × s, uint8, or float in [0, 1]. heads: networks that take r. mean, std: for
    normalisation, one value per channel. Outputs are float32, with n rows.
    Autocast is up to the caller: bf16 halves the time, and changes the effective rank by 0.2 %.
    """
    networks = nn.ModuleList([encoder, *heads])
    was_training = {module: module.training for module in networks.modules()}
    networks.eval()
    # once, because moving them to a GPU waits for it
    mean, std = (torch.as_tensor(values, dtype=torch.float32, device=images.device)
                 for values in (mean, std))
    batch_size = 128 if images.device.type == "cpu" else 512        # larger overflow a CPU's cache
    batches = []
    for x in images.split(batch_size):
        x = normalise(x, mean, std).contiguous(memory_format=torch.channels_last)
        r = encoder(x)
        batches.append([r.float(), *(head(r).float() for head in heads)])
    for module, training in was_training.items():
        module.training = training
    return [torch.cat(parts) for parts in zip(*batches)]
