"""The online probe, which is trained alongside the method, and the evaluations during a run.

The probe is a linear layer that classifies the current representations at every step. They are
detached, so no label ever reaches the encoder. evaluate.py has the offline probe, which is
trained on the frozen encoder after the run.
"""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from augment import augment
from data import pixels, random_subset
from distributed import mean
from metrics import alignment, knn_accuracy, representation_metrics, top_k_accuracy
from models import encode

# sizes of fixed random subsets for the evaluations; all images if there are fewer
METRIC_IMAGES = 10_000      # test images for the metrics, whose cost grows with their square
BANK_IMAGES = 2048          # training images that k-NN searches
VIEW_IMAGES = 256           # test images for the alignment of two views


class OnlineProbe(nn.Module):
    """A linear layer on r and, with a baseline, another one on an untrained encoder.

    The untrained encoder is a frozen copy of the encoder at initialisation. The accuracy of its
    probe is what architecture and probe achieve without training the encoder.
    """

    def __init__(self, encoder, p, n_classes, baseline=False):
        super().__init__()
        self.linear = nn.Linear(p, n_classes)
        self.untrained = self.untrained_linear = None
        if baseline:
            self.untrained = copy.deepcopy(encoder).requires_grad_(False)
            self.untrained_linear = copy.deepcopy(self.linear)

    def trained_params(self):
        return [p for p in self.parameters() if p.requires_grad]

    def forward(self, r, views, labels):
        """The losses of probe and baseline (0 without a baseline) on this process's images.

        r: 2n × p, detached. views: 2n × 3 × s × s. labels: n.
        """
        loss = mean_cross_entropy(self.linear(r), labels)
        if self.untrained is None:
            return loss, torch.zeros_like(loss)
        with torch.no_grad():
            untrained_r = self.untrained(views)             # 2n × p
        return loss, mean_cross_entropy(self.untrained_linear(untrained_r), labels)


def mean_cross_entropy(logits, labels):
    """The mean over the labelled views. logits: 2n × classes; labels: n, −1 for none.

    With several processes, the divisor is their mean number of labelled views: as gradients are
    averaged over the processes, all views then have the same weight.
    """
    labels = labels.repeat(2)                               # 2n
    n_labelled = (labels >= 0).sum().clamp_min(1).float()
    total = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
    return total / mean(n_labelled)


# --- evaluations during a run -----------------------------------------------------------------

def columns():
    """The columns of log.csv for the evaluations and the probe's loss."""
    example = torch.eye(64)         # square and large enough, so that no metric is left out
    return ("probe_loss", "probe_top1", "probe_top5", "knn_top1", "alignment_z",
            *representation_metrics(example, example))


def encode_images(data, split, index, nets, device):
    """[r, head(r), …] of the images data[split][index], each n × its width, float32.

    nets: the encoder, then heads that take r. The images need not all fit into memory.
    """
    parts = []
    for some in index.split(4096):
        images = pixels(data, split, some).to(device)           # n × 3 × s × s, uint8
        parts.append(encode(images, *nets, mean=data["mean"], std=data["std"]))
    return [torch.cat(part) for part in zip(*parts)]


def encode_views(data, index, views, nets, device):
    """[r, head(r), …] of augmented views of test images, the same views at every call.

    index: n, the images' places in the test set. Returns n × views × width each.
    """
    images = pixels(data, "test_x", index).to(device)
    generator = torch.Generator(device)
    features = []
    for view in range(views):
        generator.manual_seed(view)
        augmented = augment(images, "vicreg", 0, generator)
        features.append(encode(augmented, *nets, mean=data["mean"], std=data["std"]))
    return [torch.stack(of_a_net, 1) for of_a_net in zip(*features)]


def evaluate(method, online_probe, data, device, autocast):
    """{column of log.csv: value}: accuracies in per cent, and metrics.

    online_probe: None, for images without labels, leaves out the accuracies. Only the networks run
    under autocast: in bf16, cosines near 1 are 0.004 apart, too coarse for k-NN.
    """
    nets = [method.encoder, method.projector]
    test = torch.arange(len(data["test_x"]))
    few = random_subset(len(test), METRIC_IMAGES, seed=0)
    pairs = random_subset(len(test), VIEW_IMAGES, seed=0)
    if online_probe is not None:
        nets.append(online_probe.linear)
    with autocast:
        r, z, *logits = encode_images(data, "test_x", test, nets, device)   # n × p, n × d
        _, z_views, *_ = encode_views(data, pairs, 2, nets, device)         # n × 2 × d
    row = representation_metrics(r[few], z[few])
    row["alignment_z"] = alignment(z_views[:, 0], z_views[:, 1]).item()
    if online_probe is None:
        return row

    labelled = (data["train_y"] >= 0).nonzero().flatten().cpu()
    bank = labelled[random_subset(len(labelled), BANK_IMAGES, seed=0)]
    with autocast:
        bank_r, = encode_images(data, "train_x", bank, nets[:1], device)
    bank_y = data["train_y"][bank].to(device)
    test_y = data["test_y"].to(device)
    k = min(20, len(bank))
    return row | {
        "probe_top1": top_k_accuracy(logits[0], test_y).item(),
        "probe_top5": top_k_accuracy(logits[0], test_y, 5).item(),
        "knn_top1": knn_accuracy(bank_r, bank_y, r, test_y, k).item(),
    }


def untrained_accuracy(online_probe, data, device, autocast):
    """Test accuracy of the probe on the untrained encoder, in per cent; None without baseline."""
    if online_probe is None or online_probe.untrained is None:
        return None
    nets = [online_probe.untrained, online_probe.untrained_linear]
    with autocast:
        _, logits = encode_images(data, "test_x", torch.arange(len(data["test_x"])), nets, device)
    return top_k_accuracy(logits, data["test_y"].to(device)).item()
