"""SwAV: predicts the other view's assignment to prototypes, which are all used equally often."""
import torch

from baselines.formulas import soft_cross_entropy
from baselines.shared import PrototypeMethod, Queue, recipe, width_of
from losses import matrices
from methods import Setting


def swav(scores, assignments, temperature):
    """SwAV (Caron et al. 2020, Eq. 2): predicts the other view's assignments; 0 or more.

        mean_i −Σ_k assignments_ik · log softmax(scores_i/τ)_k

    scores: one view's cosines with K prototypes; assignments: the other view's, from sinkhorn();
    both n × K. temperature: τ > 0.
    """
    scores, assignments = matrices(scores, assignments, same_width=True)
    return soft_cross_entropy(scores / temperature, assignments.detach())


@torch.no_grad()
def sinkhorn(scores, epsilon=0.05, iterations=3):
    """SwAV's assignments (Caron et al. 2020, Eq. 5) by Sinkhorn–Knopp iterations; no gradient.

    Starts from exp(scores/ε). Each iteration scales columns (prototypes) to equal sums, then rows
    (samples) to sums of 1. scores: n × K. Returns n × K: rows sum to 1, and with more iterations
    the columns' sums approach n/K. Computed in logarithms, because exp(1/ε) is large.
    """
    scores, = matrices(scores)
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


class Swav(PrototypeMethod):
    """The loss is the mean of both directions."""
    paper = "Swapping Assignments between Views, Caron et al. 2020, arXiv 2006.09882"
    defaults = recipe(projector="2048-128", augment="simclr", lr=0.6, weight_decay=1e-6)
    settings = {
        "prototypes": Setting(3000, "number of prototypes", low=1),
        "frozen_epochs": Setting(2, "first epochs, in which prototypes are fixed"),
        "temperature": Setting(0.1, "divides the scores", low=1e-6),
        "epsilon": Setting(0.05, "smoothness of the assignments: small is sharp", low=1e-6),
        "iterations": Setting(3, "of Sinkhorn's algorithm", low=1),
        "queue": Setting(3840, "earlier embeddings that share in the assignment", low=1),
        "queue_from_epoch": Setting(50, "first epoch in which they do", low=1),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        size, d = args.set["queue"], width_of(self.projector)
        self.queue1 = Queue(size, d)
        self.queue2 = Queue(size, d)

    def forward(self, views, index, progress):
        r, _, z1, z2 = self.embed(views)
        scores1, scores2 = self.prototypes(z1), self.prototypes(z2)         # n × K each
        assigned1 = self.assign(scores1, self.queue1)                       # n × K
        assigned2 = self.assign(scores2, self.queue2)                       # n × K
        temperature = self.args.set["temperature"]
        loss = (swav(scores1, assigned2, temperature) + swav(scores2, assigned1, temperature)) / 2
        kept = {"z1": z1.detach(), "z2": z2.detach()}
        return self.result(loss, {}, r, (z1, z2), progress, kept)

    def assign(self, scores, queue):
        """Assigns samples to prototypes, without gradient. scores and the result: n × K."""
        n = len(scores)
        if self.epoch >= self.args.set["queue_from_epoch"]:
            scores = torch.cat([scores, self.prototypes(queue.rows)])
        return sinkhorn(scores, self.args.set["epsilon"], self.args.set["iterations"])[:n]

    def after_step(self, kept, step, progress):
        self.queue1.push(kept["z1"])
        self.queue2.push(kept["z2"])
