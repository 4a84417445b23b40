"""ReSSL: a student predicts a momentum teacher's similarities to a queue, from a stronger view."""
import torch.nn.functional as F

from baselines.formulas import cosines, soft_cross_entropy
from baselines.shared import MomentumMethod, Queue, recipe, width_of
from methods import Setting, gather, mlp


def ressl(q, k, queue, student_temperature, teacher_temperature):
    """ReSSL (Zheng et al. 2021, Eq. 5): predicts the teacher's similarities to a queue.

        mean_i −Σ_j softmax(k̂_i·queueᵀ/τ_t)_j · log softmax(q̂_i·queueᵀ/τ_s)_j

    q: the student's embeddings of the strong view; k: the teacher's of the weak view; both n × d.
    queue: K × d, the teacher's earlier outputs.
    """
    queue = queue.detach()
    student = cosines(q, queue) / student_temperature                       # n × K
    teacher = cosines(k.detach(), queue) / teacher_temperature              # n × K
    return soft_cross_entropy(student, F.softmax(teacher, dim=1))


class Ressl(MomentumMethod):
    """The student learns from the first, strong view; the teacher sees the second, weak one. The
    student encodes the weak view too, for the probe and for the terms that flags add to the loss.
    """
    paper = "Relational Self-Supervised Learning, Zheng et al. 2021, arXiv 2107.09282"
    defaults = recipe(projector="4096-256", augment="ressl", optimizer="sgd", lr=0.05,
                      weight_decay=1e-4)
    settings = MomentumMethod.settings | {
        "student_temperature": Setting(0.1, "divides the student's cosines", low=1e-6),
        "teacher_temperature": Setting(0.04, "divides the teacher's: lower is sharper", low=1e-6),
        "queue": Setting(65_536, "earlier embeddings of the teacher to compare with", low=1),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperatures = (args.set["student_temperature"], args.set["teacher_temperature"])
        self.queue = Queue(args.set["queue"], width_of(self.projector))

    @staticmethod
    def make_projector(p, sizes, settings):
        return mlp(p, sizes, batch_norm=False)

    def forward(self, views, index, progress):
        r, _, z1, z2 = self.embed(views)
        _, weak_images = views.chunk(2)                     # n × 3 × s × s
        weak = gather(self.teacher(weak_images))            # n × d
        loss = ressl(z1, weak, self.queue.rows, *self.temperatures)
        return self.result(loss, {}, r, (z1, z2), progress, {"weak": weak})

    def after_step(self, kept, step, progress):
        super().after_step(kept, step, progress)
        self.queue.push(kept["weak"])
