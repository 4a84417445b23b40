"""The online probe, how it learns beside a method, and what a run is measured by meanwhile.

The probe is a linear layer that learns the classes from the representations as they are at each
step. It sees them detached, so that no label ever reaches the encoder. evaluate.py has the
offline probe, which learns after the training from a frozen encoder.
"""
import copy

import torch
import torch.nn.functional as F
from torch import nn

import distributed
from data import pixels
from images import random_subset
from metrics import knn_accuracy, representation_metrics, top_k_accuracy
from models import encode
from optim import LEARNING_RATES

TEST_IMAGES = 2048          # fixed random test images that an evaluation is of
BANK_IMAGES = 8192          # fixed random training images that k-NN searches
COLUMNS = (                 # of log.csv
    "probe_loss", "probe_top1", "probe_top5", "knn_top1", "erank_r", "erank_z", "h2_r", "h2_z",
    "mi", "uniformity_r", "uniformity_z", "w2_r", "w2_z", "eigs_r", "eigs_z", "var30_r",
    "var30_z", "cka", "rankme_r", "rankme_z", "stable_rank_r", "stable_rank_z",
    "participation_r", "participation_z", "nesum_r", "nesum_z", "alpha_req_r", "alpha_req_z",
)


class OnlineProbe(nn.Module):
    """A linear layer on r and, with a baseline, another one on an untrained encoder.

    The untrained encoder is a frozen copy of the encoder as it was initialised: what its probe
    reaches is what architecture and probe do without any training of the encoder.
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
        """The probe's loss and the baseline's, which is 0 without one; of this process's images.

        r: 2n × p, detached. views: 2n × 3 × s × s. labels: n.
        """
        loss = cross_entropy(self.linear(r), labels)
        if self.untrained is None:
            return loss, torch.zeros_like(loss)
        with torch.no_grad():
            untrained_r = self.untrained(views)             # 2n × p
        return loss, cross_entropy(self.untrained_linear(untrained_r), labels)


def cross_entropy(logits, labels):
    """The mean over the labelled views; a label of −1 is none. logits: 2n × classes, labels: n.

    With several processes the divisor is the mean of their numbers of labelled views. Gradients
    are averaged over the processes, so that every view counts alike.
    """
    labels = labels.repeat(2)                               # 2n
    n_labelled = (labels >= 0).sum().clamp_min(1).float()
    total = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
    return total / distributed.mean(n_labelled)


class Learner(nn.Module):
    """The method and, where there are labels, the online probe; one module, for one backward."""

    def __init__(self, method, online_probe):
        super().__init__()
        self.method = method
        self.probe = online_probe
        self.register_buffer("mean_norm", torch.zeros(()))      # of the method's gradient

    def forward(self, views, index, labels, progress):
        """The objective (0-dim), the logs, and what the method's after_step needs.

        views: 2n × 3 × s × s, index, labels: n, progress: 0-dim, as in methods.Method.
        """
        result = self.method(views, index, progress)
        logs = {"loss": result.loss, **result.logs}
        logs = {column: value.detach() for column, value in logs.items()}
        if self.probe is None:
            return result.loss, logs, result.kept

        # the probe learns the labels from detached r: the encoder learns nothing of them
        probe_loss, baseline_loss = self.probe(result.r.detach(), views, labels)
        logs["probe_loss"] = probe_loss.detach()
        return result.loss + probe_loss + baseline_loss, logs, result.kept

    def param_groups(self, args):
        """The method's groups, and the probe's: with its own learning rate, without decay."""
        scale = args.batch_size / 256
        groups = self.method.param_groups(args.lr * scale, args.weight_decay)
        if self.probe is not None:
            probe_lr = LEARNING_RATES[args.optimizer]["probe"] * scale
            groups.append(dict(params=self.probe.trained_params(), base_lr=probe_lr,
                               weight_decay=0.0))
        return groups


def evaluation_images(data, device):
    """Fixed random test images, and labelled training images for k-NN, as at test time."""
    test = random_subset(len(data["test_x"]), TEST_IMAGES, seed=0)
    labelled = (data["train_y"] >= 0).nonzero().flatten()
    bank = labelled[random_subset(len(labelled), BANK_IMAGES, seed=0)]
    return {
        "test_x": pixels(data, "test_x", test).to(device),      # n × 3 × s × s, uint8
        "test_y": data["test_y"][test].to(device),              # n
        "bank_x": pixels(data, "train_x", bank).to(device),
        "bank_y": data["train_y"][bank].to(device),
    }


def evaluate(method, online_probe, images, normalisation, autocast):
    """Accuracies in per cent and metrics, by their columns of log.csv.

    online_probe: None, for images without labels, leaves out the accuracies. Only the networks
    run under autocast: in bf16, cosines near 1 are 0.004 apart, too coarse for k-NN.
    """
    encoder, projector = method.encoder, method.projector
    if online_probe is None:
        with autocast:
            r, z = encode(images["test_x"], encoder, projector, **normalisation)
        return representation_metrics(r, z)

    with autocast:
        r, z, logits = encode(images["test_x"], encoder, projector, online_probe.linear,
                              **normalisation)              # n × p, n × d, n × classes
        bank_r = encode(images["bank_x"], encoder, **normalisation)[0]
    test_y, bank_y = images["test_y"], images["bank_y"]
    k = min(20, len(bank_r))
    return representation_metrics(r, z) | {
        "probe_top1": top_k_accuracy(logits, test_y).item(),
        "probe_top5": top_k_accuracy(logits, test_y, 5).item(),
        "knn_top1": knn_accuracy(bank_r, bank_y, r, test_y, k).item(),
    }


def untrained_accuracy(online_probe, images, normalisation, autocast):
    """Of the probe on the untrained encoder, in per cent; None where there is no such probe."""
    if online_probe is None or online_probe.untrained is None:
        return None
    with autocast:
        logits = encode(images["test_x"], online_probe.untrained,
                        online_probe.untrained_linear, **normalisation)[1]
    return top_k_accuracy(logits, images["test_y"]).item()
