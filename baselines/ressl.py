"""ReSSL: a student predicts a momentum teacher's similarities to a queue, from a stronger view."""
import torch.nn.functional as F

from baselines.shared import (COUNT, POSITIVE, SHARE, MomentumMethod, Queue, check_positive,
                              cosines, cross_entropy, unit_rows, width_of)
from losses import matrices
from methods import Method, Setting, both_views
from models import mlp
from plumbing.distributed import gather


def ressl(q, k, queue, student_temperature, teacher_temperature):
    """ReSSL (Zheng et al. 2021, Eq. 5): predicts the teacher's similarities to a queue.

        mean_i −Σ_j softmax(k̂_i·queueᵀ/τ_t)_j · log softmax(q̂_i·queueᵀ/τ_s)_j

    q: the student's embeddings of the strong view; k: the teacher's of the weak view; both n × d.
    queue: K × d, the teacher's earlier outputs.
    """
    matrices(q, k, same_width=True)
    check_positive(student_temperature=student_temperature,
                   teacher_temperature=teacher_temperature)
    queue = queue.detach()
    student = cosines(q, queue) / student_temperature                       # n × K
    teacher = cosines(k.detach(), queue) / teacher_temperature              # n × K
    return cross_entropy(student, F.softmax(teacher, dim=1))


class Ressl(MomentumMethod):
    """A student predicts a momentum teacher's similarities to a queue of other images.

    The student learns from the first, strong view; the teacher sees the second, weak one. The
    student encodes the weak view too, for the probe and for the terms that flags add to the loss.
    The projector has no batch norm.
    """
    paper = "Relational Self-Supervised Learning, Zheng et al. 2021, arXiv 2107.09282"
    defaults = Method.defaults | {
        "--projector": "4096-256",
        "--augment": "ressl",
        "--optimizer": "sgd",
        "--lr": 0.05,
        "--weight-decay": 1e-4,
    }
    settings = {
        "student_temperature": Setting(0.1, POSITIVE, "divides the student's cosines"),
        "teacher_temperature": Setting(0.04, POSITIVE, "divides the teacher's: lower is sharper"),
        "queue": Setting(65_536, COUNT, "earlier embeddings of the teacher to compare with"),
        "momentum": Setting(0.99, SHARE, "the momentum copy's m at the first step"),
        "last_momentum": Setting(1.0, SHARE, "and at the last"),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperatures = (args.set["student_temperature"], args.set["teacher_temperature"])
        self.queue = Queue(args.set["queue"], width_of(self.projector), args.batch_size)

    @staticmethod
    def make_projector(p, sizes, settings):
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
