"""SwAV: predicts the other view's assignment to prototypes, which are all used equally often."""
import torch

from baselines.shared import (COUNT, COUNT_OR_0, POSITIVE, PrototypeMethod, Queue, check_positive,
                              cross_entropy, unit_rows, width_of)
from losses import matrices
from methods import Method, Setting, both_views


def swav(scores, assignments, temperature):
    """SwAV (Caron et al. 2020, Eq. 2): predicts the other view's assignments; 0 or more.

        mean_i −Σ_k assignments_ik · log softmax(scores_i/τ)_k

    scores: one view's cosines with K prototypes; assignments: the other view's, from sinkhorn();
    both n × K. temperature: τ > 0.
    """
    scores, assignments = matrices(scores, assignments, same_width=True)
    check_positive(temperature=temperature)
    return cross_entropy(scores / temperature, assignments.detach())


@torch.no_grad()
def sinkhorn(scores, epsilon=0.05, iterations=3):
    """SwAV's assignments (Caron et al. 2020, Eq. 5) by Sinkhorn–Knopp iterations; no gradient.

    Starts from exp(scores/ε). Each iteration scales columns (prototypes) to equal sums, then rows
    (samples) to sums of 1. scores: n × K. Returns n × K: rows sum to 1, and with more iterations
    the columns' sums approach n/K. Computed in logarithms, because exp(1/ε) is large.
    """
    scores, = matrices(scores)
    check_positive(epsilon=epsilon)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


class Swav(PrototypeMethod):
    """Predicts the other view's assignment to prototypes, which are all used equally often.

    The loss is the mean of both directions. Prototypes are frozen in the first epochs; later on, a
    queue of earlier embeddings takes part in the assignment.
    """
    paper = "Swapping Assignments between Views, Caron et al. 2020, arXiv 2006.09882"
    defaults = Method.defaults | {
        "--projector": "2048-128",
        "--augment": "simclr",
        "--optimizer": "lars",
        "--lr": 0.6,
        "--weight-decay": 1e-6,
    }
    settings = {
        "prototypes": Setting(3000, COUNT, "number of prototypes"),
        "frozen_epochs": Setting(2, COUNT_OR_0, "first epochs, in which prototypes are fixed"),
        "temperature": Setting(0.1, POSITIVE, "divides the scores"),
        "epsilon": Setting(0.05, POSITIVE, "smoothness of the assignments: small is sharp"),
        "iterations": Setting(3, COUNT, "of Sinkhorn's algorithm"),
        "queue": Setting(3840, COUNT, "earlier embeddings that share in the assignment"),
        "queue_from_epoch": Setting(50, COUNT, "first epoch in which they do"),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        size, d = args.set["queue"], width_of(self.projector)
        self.queue1 = Queue(size, d, args.batch_size)
        self.queue2 = Queue(size, d, args.batch_size)

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
        """Assigns samples to prototypes. scores and the result: n × K."""
        n = len(scores)
        if self.epoch >= self.chosen["queue_from_epoch"]:
            scores = torch.cat([scores, self.prototypes(queue.rows)])
        return sinkhorn(scores, self.chosen["epsilon"], self.chosen["iterations"])[:n]

    def after_step(self, kept, step, progress):
        self.queue1.push(kept["z1"])
        self.queue2.push(kept["z2"])
