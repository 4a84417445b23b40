"""The methods that AdaDim is compared with, one after the other, for `train.py --method NAME`.

    python train.py --methods                       each one's paper, defaults and settings
    python train.py --method byol --set momentum=0.996

    from baselines import barlow_twins, byol, sinkhorn      the losses: baseline_losses.py

Each class can be read without the others; momentum copies, predictors, prototypes and queues are
in the first section. methods.Method is the contract. Settings are those of the paper's Table 17
and, where it is silent, of solo-learn's CIFAR recipes, on which that paper stands. As AdaDim,
each sees two views, without further small crops.

Shared by all:
- Both views go through the networks in one batch of 2n, so that batch norms see both.
- A momentum copy has batch norms of its own, in training mode, as in the methods' public code.
- With several processes, embeddings are gathered first: losses, queues, centres, Sinkhorn's
  rounds and clusters are those of the whole batch. What differs from one process is what differs
  for AdaDim, too: the augmentation's random numbers and, on CPUs, batch norms, which see their
  own process's part. DeepCluster v2 and LeJEPA say what else does.
- A queue or a set of prototypes that is larger than the training set shrinks, with a note.
- The targets' random start follows from --seed.
"""
import copy
import math

import torch
from torch import nn

from baselines.losses import (barlow_twins, byol, cosines, deepcluster_v2, dino, moco_v2, moco_v3,
                             nnclr, ressl, sigreg, simsiam, sinkhorn, swav)
from plumbing.cli import checked, layer_sizes, number, whole_number
from plumbing.distributed import gather, mean
from losses import normalize_rows
from methods import METHODS, Method, Setting, both_views
from models import mlp

SHARE = checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
POSITIVE = number(0, above=True)
COUNT = whole_number(1)
COUNT_OR_0 = whole_number(0)


# --- what several methods share -------------------------------------------------------------

class MomentumCopy(nn.Module):
    """A slow copy of networks, which no gradient reaches: w̄ ← m·w̄ + (1 − m)·w at each step.

    m goes from `first` to `last` over training, as half a cosine. It follows weights alone;
    batch norms' running statistics are the copy's own.
    """

    def __init__(self, networks, first, last):
        super().__init__()
        self.copy = copy.deepcopy(nn.Sequential(*networks)).requires_grad_(False)
        self.first, self.last = first, last

    @torch.no_grad()
    def forward(self, x):
        return self.copy(x)

    def momentum(self, progress):
        """m at a step (0-dim float64)."""
        return self.last - (self.last - self.first) * (1 + torch.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def follow(self, networks, progress):
        step = (1 - self.momentum(progress)).float()
        for slow, fast in zip(self.copy.parameters(), nn.Sequential(*networks).parameters()):
            slow.lerp_(fast, step.to(slow.device))


def predictor(projector, hidden):
    """An MLP from embeddings to embeddings. hidden: its hidden layers' sizes, such as "4096"."""
    d = width_of(projector)
    return mlp(d, f"{hidden}-{d}")


def width_of(projector):
    """d, the width of a projector's output."""
    linears = [module for module in projector if isinstance(module, nn.Linear)]
    return linears[-1].out_features


def with_last_norm(projector, affine):
    """The projector with a batch norm after its last layer."""
    return projector.append(nn.BatchNorm1d(width_of(projector), affine=affine))


class Prototypes(nn.Module):
    """Scores of embeddings: their cosines with learnt prototypes, which count by direction."""

    def __init__(self, count, d):
        super().__init__()
        self.weight = nn.Parameter(normalize_rows(torch.randn(count, d)))

    def forward(self, z):
        return cosines(z, self.weight)                                      # n × count


class Queue(nn.Module):
    """The newest unit rows that were pushed, at first random ones."""

    def __init__(self, size, d):
        super().__init__()
        self.register_buffer("rows", normalize_rows(torch.randn(size, d)))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))   # of the oldest

    def push(self, x):
        """x: n × d, unit rows, which take the places of the n oldest."""
        size = len(self.rows)
        x = x[-size:]
        places = (self.place + torch.arange(len(x), device=x.device)) % size
        self.rows[places] = x.to(self.rows.dtype)
        self.place.copy_((self.place + len(x)) % size)


def at_most(wanted, available, what):
    """The smaller of the two numbers, with a note where that is not the wanted one."""
    if wanted > available:
        print(f"note: {available:,} {what} in place of {wanted:,}: an epoch has no more images")
    return min(wanted, available)


def images_per_epoch(args, n_images):
    """Without those of the last, incomplete batch."""
    return n_images // args.batch_size * args.batch_size


def unit_rows(x):
    """x̂, detached float32, for a queue or a memory."""
    return normalize_rows(x.detach().float())


class MomentumMethod(Method):
    """A method whose teacher is a momentum copy of the encoder and the projector.

    Its settings momentum and last_momentum say how slow the teacher is.
    """
    columns = ("momentum",)

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.teacher = MomentumCopy([encoder, self.projector], args.set["momentum"],
                                    args.set["last_momentum"])

    def schedule(self, progress):
        return {"momentum": self.teacher.momentum(progress)}

    def after_step(self, kept, step, progress):
        self.teacher.follow([self.encoder, self.projector], progress)


class PrototypeMethod(Method):
    """A method with learnt prototypes, which stand still in its first frozen_epochs, a setting."""
    numbers = ("epoch",)

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.chosen = args.set
        self.epoch = 1
        count = at_most(args.set["prototypes"], images_per_epoch(args, n_images), "prototypes")
        self.prototypes = Prototypes(count, width_of(self.projector))

    def before_epoch(self, epoch, steps, generator):
        self.epoch = epoch

    def after_backward(self):
        if self.epoch <= self.chosen["frozen_epochs"]:
            self.prototypes.weight.grad = None


# --- Barlow Twins -----------------------------------------------------------------------------

class BarlowTwins(Method):
    """Features of one view should correlate with themselves in the other view alone."""
    paper = "Barlow Twins, Zbontar et al. 2021, arXiv 2103.03230"
    defaults = Method.defaults | {
        "--projector": "2048-2048-2048", "--augment": "byol", "--optimizer": "lars", "--lr": 0.3,
        "--weight-decay": 1e-4}
    settings = {"off_diagonal_weight": Setting(5e-3, number(0)), "scale": Setting(0.1, POSITIVE)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.weights = args.set

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        loss = barlow_twins(z1, z2, **self.weights)
        return self.result(loss, {}, r, (z1, z2), progress)


# --- BYOL ---------------------------------------------------------------------------------------

class Byol(MomentumMethod):
    """A predictor guesses what a momentum network makes of the other view; no negatives.

    The loss is the sum of the two directions.
    """
    paper = "Bootstrap Your Own Latent, Grill et al. 2020, arXiv 2006.07733"
    defaults = Method.defaults | {
        "--projector": "4096-256", "--augment": "byol", "--optimizer": "lars", "--lr": 1.0,
        "--weight-decay": 1e-5}
    settings = {"predictor": Setting("4096", layer_sizes), "momentum": Setting(0.99, SHARE),
                "last_momentum": Setting(1.0, SHARE)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.predictor = predictor(self.projector, args.set["predictor"])

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        p1, p2 = both_views(self.predictor(z))              # n × d each
        target1, target2 = both_views(self.teacher(views))  # n × d each
        loss = byol(p1, target2) + byol(p2, target1)
        return self.result(loss, {}, r, (z1, z2), progress)


# --- SimSiam ------------------------------------------------------------------------------------

class SimSiam(Method):
    """BYOL without the momentum network: nothing flows back through the other view.

    The loss is the mean of the two directions. The predictor's learning rate stays constant.
    """
    paper = "Exploring Simple Siamese Representation Learning, Chen & He 2021, arXiv 2011.10566"
    defaults = Method.defaults | {
        "--projector": "2048-2048-2048", "--augment": "moco", "--optimizer": "lars", "--lr": 0.5,
        "--weight-decay": 1e-5}
    settings = {"predictor": Setting("512", layer_sizes)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.predictor = predictor(self.projector, args.set["predictor"])

    @staticmethod
    def make_projector(p, sizes):
        return with_last_norm(mlp(p, sizes), affine=False)

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        p1, p2 = both_views(self.predictor(z))              # n × d each
        loss = (simsiam(p1, z2) + simsiam(p2, z1)) / 2
        return self.result(loss, {}, r, (z1, z2), progress)

    def param_groups(self, lr, weight_decay):
        learning = [*self.encoder.parameters(), *self.projector.parameters()]
        predicting = list(self.predictor.parameters())
        return [dict(params=learning, base_lr=lr, weight_decay=weight_decay),
                dict(params=predicting, base_lr=lr, weight_decay=weight_decay, constant=True)]


# --- NNCLR --------------------------------------------------------------------------------------

class Nnclr(Method):
    """Contrast with the other view's nearest neighbour, found in a queue of earlier embeddings.

    The loss is the mean of the two directions. The queue holds first views. The projector ends
    with a batch norm, as in the paper.
    """
    paper = "Nearest-Neighbor Contrastive Learning, Dwibedi et al. 2021, arXiv 2104.14548"
    defaults = Method.defaults | {
        "--projector": "2048-2048-256", "--augment": "byol", "--optimizer": "lars", "--lr": 0.4,
        "--weight-decay": 1e-5}
    settings = {"predictor": Setting("4096", layer_sizes), "temperature": Setting(0.2, POSITIVE),
                "queue": Setting(65_536, COUNT)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperature = args.set["temperature"]
        self.predictor = predictor(self.projector, args.set["predictor"])
        size = at_most(args.set["queue"], images_per_epoch(args, n_images), "queue entries")
        self.queue = Queue(size, width_of(self.projector))

    @staticmethod
    def make_projector(p, sizes):
        return with_last_norm(mlp(p, sizes), affine=True)

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        p1, p2 = both_views(self.predictor(z))              # n × d each
        loss = (nnclr(self.nearest(z1), p2, self.temperature)
                + nnclr(self.nearest(z2), p1, self.temperature)) / 2
        return self.result(loss, {}, r, (z1, z2), progress, {"z": unit_rows(z1)})

    @torch.no_grad()
    def nearest(self, z):
        """The entry of the queue nearest to each row of z (n × d)."""
        return self.queue.rows[cosines(z, self.queue.rows).argmax(1)]       # n × d

    def after_step(self, kept, step, progress):
        self.queue.push(kept["z"])


# --- MoCo v2 ------------------------------------------------------------------------------------

class MocoV2(MomentumMethod):
    """Contrast with a queue of what a momentum network made of earlier images.

    In solo-learn's symmetric form: the loss is the mean of the two directions, and each view has
    a queue of its own. Keys are not shuffled between GPUs: their batch norms are the copy's own.
    """
    paper = "Momentum Contrast v2, Chen et al. 2020, arXiv 2003.04297"
    defaults = Method.defaults | {
        "--projector": "2048-256", "--augment": "moco", "--optimizer": "sgd", "--lr": 0.3,
        "--weight-decay": 1e-4}
    settings = {"temperature": Setting(0.2, POSITIVE), "queue": Setting(32_768, COUNT),
                "momentum": Setting(0.99, SHARE), "last_momentum": Setting(0.999, SHARE)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperature = args.set["temperature"]
        size = at_most(args.set["queue"], images_per_epoch(args, n_images), "queue entries")
        self.queue1 = Queue(size, width_of(self.projector))
        self.queue2 = Queue(size, width_of(self.projector))

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        q1, q2 = both_views(z)                              # n × d each
        k1, k2 = both_views(self.teacher(views))            # n × d each
        loss = (moco_v2(q1, k2, self.queue2.rows, self.temperature)
                + moco_v2(q2, k1, self.queue1.rows, self.temperature)) / 2
        kept = {"k1": unit_rows(k1), "k2": unit_rows(k2)}
        return self.result(loss, {}, r, (q1, q2), progress, kept)

    def after_step(self, kept, step, progress):
        super().after_step(kept, step, progress)
        self.queue1.push(kept["k1"])
        self.queue2.push(kept["k2"])


# --- MoCo v3 ------------------------------------------------------------------------------------

class MocoV3(MomentumMethod):
    """Contrast with what a momentum network makes of the batch: no queue, but a predictor.

    The loss is the sum of the two directions. The projector ends with a batch norm without
    weights, as in the paper.
    """
    paper = "An Empirical Study of Training Self-Supervised ViT, Chen et al. 2021, arXiv 2104.02057"
    defaults = Method.defaults | {
        "--projector": "4096-256", "--augment": "byol", "--optimizer": "lars", "--lr": 0.3,
        "--weight-decay": 1e-6}
    settings = {"predictor": Setting("4096", layer_sizes), "temperature": Setting(0.2, POSITIVE),
                "momentum": Setting(0.99, SHARE), "last_momentum": Setting(1.0, SHARE)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperature = args.set["temperature"]
        self.predictor = predictor(self.projector, args.set["predictor"])

    @staticmethod
    def make_projector(p, sizes):
        return with_last_norm(mlp(p, sizes), affine=False)

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        q1, q2 = both_views(self.predictor(z))              # n × d each
        k1, k2 = both_views(self.teacher(views))            # n × d each
        loss = moco_v3(q1, k2, self.temperature) + moco_v3(q2, k1, self.temperature)
        return self.result(loss, {}, r, (z1, z2), progress)


# --- DINO ---------------------------------------------------------------------------------------

class Dino(PrototypeMethod):
    """A student predicts a momentum teacher's distribution over prototypes, sharpened, centred.

    The loss is the mean of the two directions. The teacher's temperature grows over the first
    epochs; prototypes stand still in the first one.
    """
    paper = "Emerging Properties in Self-Supervised ViT, Caron et al. 2021, arXiv 2104.14294"
    columns = ("momentum", "teacher_temperature")
    defaults = Method.defaults | {
        "--projector": "2048-2048-256", "--augment": "byol", "--optimizer": "lars", "--lr": 0.3,
        "--weight-decay": 1e-6}
    settings = {"prototypes": Setting(4096, COUNT), "frozen_epochs": Setting(1, COUNT_OR_0),
                "student_temperature": Setting(0.1, POSITIVE),
                "first_teacher_temperature": Setting(0.04, POSITIVE),
                "teacher_temperature": Setting(0.07, POSITIVE),
                "temperature_epochs": Setting(50, COUNT), "center_momentum": Setting(0.9, SHARE),
                "momentum": Setting(0.9995, SHARE), "last_momentum": Setting(1.0, SHARE)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.epochs = args.epochs
        self.register_buffer("center", torch.zeros(len(self.prototypes.weight)))
        self.teacher = MomentumCopy([encoder, self.projector, self.prototypes],
                                    args.set["momentum"], args.set["last_momentum"])

    @staticmethod
    def make_projector(p, sizes):
        return mlp(p, sizes, batch_norm=False, activation=nn.GELU())

    def schedule(self, progress):
        first = self.chosen["first_teacher_temperature"]
        last = self.chosen["teacher_temperature"]
        share = (progress * self.epochs / self.chosen["temperature_epochs"]).clamp(max=1)
        return {"momentum": self.teacher.momentum(progress),
                "teacher_temperature": (first + (last - first) * share).float()}

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        student1, student2 = self.prototypes(z1), self.prototypes(z2)       # n × K each
        teacher1, teacher2 = both_views(self.teacher(views))                # n × K each
        temperatures = (self.chosen["student_temperature"],
                        self.schedule(progress)["teacher_temperature"])
        loss = (dino(student1, teacher2, self.center, *temperatures)
                + dino(student2, teacher1, self.center, *temperatures)) / 2
        mean_score = torch.cat([teacher1, teacher2]).mean(0)                # K
        return self.result(loss, {}, r, (z1, z2), progress, {"mean_score": mean_score})

    def after_step(self, kept, step, progress):
        self.teacher.follow([self.encoder, self.projector, self.prototypes], progress)
        self.center.lerp_(kept["mean_score"], 1 - self.chosen["center_momentum"])


# --- SwAV ---------------------------------------------------------------------------------------

class Swav(PrototypeMethod):
    """Predicts to which prototypes the other view is assigned, all prototypes equally often.

    The loss is the mean of the two directions. From an epoch on, earlier embeddings from a queue
    take part in the assignment; prototypes stand still in the first epochs. A prototype's length
    is without effect: the public code makes it 1 after each step instead.
    """
    paper = "Swapping Assignments between Views, Caron et al. 2020, arXiv 2006.09882"
    defaults = Method.defaults | {
        "--projector": "2048-128", "--augment": "simclr", "--optimizer": "lars", "--lr": 0.6,
        "--weight-decay": 1e-6}
    settings = {"prototypes": Setting(3000, COUNT), "frozen_epochs": Setting(2, COUNT_OR_0),
                "temperature": Setting(0.1, POSITIVE), "epsilon": Setting(0.05, POSITIVE),
                "iterations": Setting(3, COUNT), "queue": Setting(3840, COUNT),
                "queue_from_epoch": Setting(50, COUNT)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        d = width_of(self.projector)
        size = at_most(args.set["queue"], images_per_epoch(args, n_images), "queue entries")
        self.queue1, self.queue2 = Queue(size, d), Queue(size, d)

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        scores1, scores2 = self.prototypes(z1), self.prototypes(z2)         # n × K each
        assigned1 = self.assign(scores1, self.queue1)                       # n × K
        assigned2 = self.assign(scores2, self.queue2)                       # n × K
        temperature = self.chosen["temperature"]
        loss = (swav(scores1, assigned2, temperature) + swav(scores2, assigned1, temperature)) / 2
        kept = {"z1": unit_rows(z1), "z2": unit_rows(z2)}
        return self.result(loss, {}, r, (z1, z2), progress, kept)

    @torch.no_grad()
    def assign(self, scores, queue):
        """Each sample's shares of the prototypes, from scores; both n × K."""
        n = len(scores)
        if self.epoch >= self.chosen["queue_from_epoch"]:
            scores = torch.cat([scores, self.prototypes(queue.rows)])
        return sinkhorn(scores, self.chosen["epsilon"], self.chosen["iterations"])[:n]

    def after_step(self, kept, step, progress):
        self.queue1.push(kept["z1"])
        self.queue2.push(kept["z2"])


# --- DeepCluster v2 -----------------------------------------------------------------------------

class DeepClusterV2(Method):
    """Classifies images by the clusters of their embeddings in the epoch before.

    Before each epoch spherical k-means, once for each head, clusters the memory of one view's
    embeddings: the first view's for heads 1 and 3, the second's for head 2. The loss is the mean
    over heads and views. The first epoch fills the memory, and nothing is learnt from it: its
    loss is 0. (The public code makes an extra pass over the images instead.) Images that were
    left out of the last, incomplete batch ever since have no cluster.

    Of several processes each holds the whole memory and finds the same clusters.
    """
    paper = "DeepCluster v2, Caron et al. 2020, arXiv 2006.09882"
    defaults = Method.defaults | {
        "--projector": "2048-128", "--augment": "simclr", "--optimizer": "lars", "--lr": 0.6,
        "--weight-decay": 1e-6}
    settings = {"prototypes": Setting(3000, COUNT), "heads": Setting(3, COUNT),
                "temperature": Setting(0.1, POSITIVE), "iterations": Setting(10, COUNT)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.chosen = args.set
        d, heads = width_of(self.projector), args.set["heads"]
        count = at_most(args.set["prototypes"], images_per_epoch(args, n_images), "prototypes")
        self.register_buffer("memory", torch.zeros(2, n_images, d))         # of both views
        self.register_buffer("seen", torch.zeros(n_images, dtype=torch.bool))
        self.register_buffer("centres", torch.zeros(heads, count, d))
        self.register_buffer("assigned", torch.full((heads, n_images), -1))

    def before_epoch(self, epoch, steps, generator):
        if epoch == 1:
            return
        seen = self.seen.nonzero().flatten()
        for head, centres in enumerate(self.centres):
            found, labels = k_means(self.memory[head % 2][seen], len(centres),
                                    self.chosen["iterations"], generator)
            centres.copy_(found)
            self.assigned[head, seen] = labels

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        index = gather(index[:, None].float()).long().flatten()             # n
        loss = 0
        for centres, assigned in zip(self.centres, self.assigned):
            scores = cosines(torch.cat([z1, z2]), centres)                  # 2n × K
            labels = assigned[index].repeat(2)                              # 2n
            loss = loss + deepcluster_v2(scores, labels, self.chosen["temperature"])
        kept = {"z1": unit_rows(z1), "z2": unit_rows(z2), "index": index}
        return self.result(loss / len(self.centres), {}, r, (z1, z2), progress, kept)

    def after_step(self, kept, step, progress):
        self.memory[0, kept["index"]] = kept["z1"]
        self.memory[1, kept["index"]] = kept["z2"]
        self.seen[kept["index"]] = True


@torch.no_grad()
def k_means(x, k, iterations, generator):
    """Spherical k-means: (centres, k × d, unit rows; labels, n) of x (n × d, unit rows).

    Starts from k random rows; clusters that lose all their samples keep their centre. Sums are
    products with one-hot labels, in pieces: index_add_ adds up in random order on a GPU.
    """
    order = torch.randperm(len(x), generator=generator, device=generator.device)
    centres = x[order[:k].to(x.device)]                                     # k × d
    for _ in range(iterations):
        sums = torch.zeros_like(centres)                                    # k × d
        for some in x.split(8192):
            nearest = (some @ centres.T).argmax(1)
            members = nn.functional.one_hot(nearest, k).to(x.dtype)         # piece × k
            sums += members.T @ some
        has_members = sums.abs().sum(1, keepdim=True) > 0                   # k × 1
        centres = torch.where(has_members, normalize_rows(sums), centres)
    labels = torch.cat([(some @ centres.T).argmax(1) for some in x.split(8192)])
    return centres, labels


# --- ReSSL --------------------------------------------------------------------------------------

class Ressl(MomentumMethod):
    """Images should relate to a queue of others as a momentum teacher, shown a weak view, finds.

    The student learns from the first view, the strong one, and the teacher sees the second. The
    student encodes the weak view too, for the probe and for what flags add to the loss. The
    projector is without batch norm.
    """
    paper = "Relational Self-Supervised Learning, Zheng et al. 2021, arXiv 2107.09282"
    defaults = Method.defaults | {
        "--projector": "4096-256", "--augment": "ressl", "--optimizer": "sgd", "--lr": 0.05,
        "--weight-decay": 1e-4}
    settings = {"student_temperature": Setting(0.1, POSITIVE),
                "teacher_temperature": Setting(0.04, POSITIVE), "queue": Setting(65_536, COUNT),
                "momentum": Setting(0.99, SHARE), "last_momentum": Setting(1.0, SHARE)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperatures = (args.set["student_temperature"], args.set["teacher_temperature"])
        size = at_most(args.set["queue"], images_per_epoch(args, n_images), "queue entries")
        self.queue = Queue(size, width_of(self.projector))

    @staticmethod
    def make_projector(p, sizes):
        return mlp(p, sizes, batch_norm=False)

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        _, weak_images = views.chunk(2)                     # n × 3 × s × s
        weak = gather(self.teacher(weak_images))            # n × d
        loss = ressl(z1, weak, self.queue.rows, *self.temperatures)
        return self.result(loss, {}, r, (z1, z2), progress, {"weak": unit_rows(weak)})

    def after_step(self, kept, step, progress):
        super().after_step(kept, step, progress)
        self.queue.push(kept["weak"])


# --- LeJEPA -------------------------------------------------------------------------------------

class LeJepa(Method):
    """Pulls the views together while embeddings are made an isotropic Gaussian's; no teacher.

        (1 − weight) · mean squared distance of views from their mean + weight · SIGReg

    SIGReg is the mean of both views'. Its directions are random at each step; of several
    processes all have the same ones, but others than a single process has.
    """
    paper = "LeJEPA, Balestriero & LeCun 2025, arXiv 2511.08544"
    columns = ("invariance", "sigreg")
    defaults = Method.defaults | {
        "--projector": "2048-2048-64", "--augment": "simclr", "--optimizer": "adamw",
        "--lr": 2e-3, "--weight-decay": 5e-2}
    settings = {"weight": Setting(0.02, SHARE), "directions": Setting(256, COUNT)}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.weight, self.directions = args.set["weight"], args.set["directions"]

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = (view.float() for view in both_views(z))   # n × d each
        # a mean of normal directions is one: so all processes come to the same
        drawn = mean(torch.randn(self.directions, z.shape[1], device=z.device))
        directions = normalize_rows(drawn).T                # d × m
        to_middle = (z1 - z2) / 2                           # n × d, the same for both views
        invariance = to_middle.square().mean()
        normality = (sigreg(z1, directions) + sigreg(z2, directions)) / 2
        loss = (1 - self.weight) * invariance + self.weight * normality
        logs = {"invariance": invariance.detach(), "sigreg": normality.detach()}
        return self.result(loss, logs, r, (z1, z2), progress)


METHODS |= {
    "barlow_twins": BarlowTwins, "byol": Byol, "simsiam": SimSiam, "nnclr": Nnclr,
    "moco_v2": MocoV2, "moco_v3": MocoV3, "dino": Dino, "swav": Swav,
    "deepcluster_v2": DeepClusterV2, "ressl": Ressl, "lejepa": LeJepa,
}
