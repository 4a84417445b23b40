"""DeepCluster v2: classifies images into the clusters of the previous epoch."""
import torch
import torch.nn.functional as F

from baselines.formulas import cosines
from baselines.shared import recipe, width_of
from losses import matrices, normalize_rows
from methods import Method, Setting, gather


def deepcluster_v2(scores, assignments, temperature):
    """DeepCluster v2 (Caron et al. 2020, §4.1): predicts the samples' clusters; 0 or more.

        mean −log softmax(scores_i/τ) at assignments_i, over the samples that have a cluster

    scores: n × K, cosines with the clusters' centres; assignments: n, int64, −1 for none.
    temperature: τ > 0. If no sample has a cluster, the loss and its gradient are 0.
    """
    scores, = matrices(scores)
    total = F.cross_entropy(scores / temperature, assignments, ignore_index=-1, reduction="sum")
    return total / (assignments >= 0).sum().clamp_min(1)


class DeepClusterV2(Method):
    """Before each epoch, spherical k-means clusters the embeddings of the epoch before, once per
    head: those of first views for heads 1 and 3, of second views for head 2. The loss is the mean
    over heads and views. The first epoch only fills the memory: its loss is 0, as in solo-learn.
    (The authors' code makes an extra pass over the images.) An image in an epoch's last, incomplete
    batch, which is left out, has no cluster in the next one.

    The weight decay is solo-learn's; Table 17 has 1e-5. Unlike in solo-learn's recipe, the learning
    rate falls to 0, not to 0.0006, and the warm-up is the other methods', not 11 epochs.
    """
    paper = "DeepCluster v2, Caron et al. 2020, arXiv 2006.09882"
    defaults = recipe(projector="2048-128", augment="simclr", lr=0.6, weight_decay=1e-6)
    settings = {
        "prototypes": Setting(3000, "clusters of each head", low=1),
        "heads": Setting(3, "clusterings, each from its own start", low=1),
        "temperature": Setting(0.1, "divides the cosines with the centres", low=1e-6),
        "iterations": Setting(10, "of k-means before each epoch", low=1),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        d, heads, count = width_of(self.projector), args.set["heads"], args.set["prototypes"]
        n_seen = n_images // args.batch_size * args.batch_size              # in an epoch
        if count > n_seen:
            raise ValueError(f"--set prototypes={count}: k-means needs as many images, and an "
                             f"epoch has {n_seen:,}")
        self.register_buffer("memory", torch.zeros(2, n_seen, d))           # of both views
        self.register_buffer("index", torch.zeros(n_seen, dtype=torch.int64))   # of its images
        self.register_buffer("centres", torch.zeros(heads, count, d))
        self.register_buffer("assigned", torch.full((heads, n_images), -1))     # -1: to none

    def before_epoch(self, epoch, steps, generator):
        if epoch == 1:
            return
        self.assigned.fill_(-1)
        for head, centres in enumerate(self.centres):
            x = self.memory[head % 2]
            centres[:], labels = k_means(x, len(centres), self.args.set["iterations"], generator)
            self.assigned[head, self.index] = labels

    def forward(self, views, index, progress):
        r, _, z1, z2 = self.embed(views)
        index = gather(index)                               # n
        loss = 0
        for centres, assigned in zip(self.centres, self.assigned):
            scores = cosines(torch.cat([z1, z2]), centres)                  # 2n × K
            labels = assigned[index].repeat(2)                              # 2n
            loss = loss + deepcluster_v2(scores, labels, self.args.set["temperature"])
        kept = {"z1": z1.detach(), "z2": z2.detach(), "index": index}
        return self.result(loss / len(self.centres), {}, r, (z1, z2), progress, kept)

    def after_step(self, kept, step, progress):
        n = len(kept["index"])
        rows = slice(step * n, step * n + n)
        for memory, z in zip(self.memory, matrices(kept["z1"], kept["z2"])):
            memory[rows] = normalize_rows(z)
        self.index[rows] = kept["index"]


@torch.no_grad()
def k_means(x, k, iterations, generator):
    """Spherical k-means of x (n × d, unit rows): centres (k × d, unit rows) and labels (n).

    Starts from k random rows; empty clusters keep their centre. Sums are products with one-hot
    labels, in pieces, because index_add_ adds in random order on a GPU.
    """
    order = torch.randperm(len(x), generator=generator, device=generator.device)
    centres = x[order[:k].to(x.device)]                                     # k × d
    for _ in range(iterations):
        sums = torch.zeros_like(centres)                                    # k × d
        for some in x.split(8192):
            nearest = (some @ centres.T).argmax(1)
            members = F.one_hot(nearest, k).to(x.dtype)         # piece × k
            sums += members.T @ some
        has_members = sums.abs().sum(1, keepdim=True) > 0                   # k × 1
        centres = torch.where(has_members, normalize_rows(sums), centres)
    labels = torch.cat([(some @ centres.T).argmax(1) for some in x.split(8192)])
    return centres, labels
