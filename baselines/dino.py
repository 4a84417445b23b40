"""DINO: a student predicts a momentum teacher's distribution over prototypes."""
import torch
import torch.nn.functional as F
from torch import nn

from baselines.formulas import soft_cross_entropy
from baselines.shared import MomentumCopy, PrototypeMethod, recipe
from losses import matrices
from methods import Setting, both_views, mlp


def dino(student, teacher, center, student_temperature, teacher_temperature):
    """DINO (Caron et al. 2021, Eq. 2 and Algorithm 1); 0 or more.

        mean_i −Σ_k softmax((teacher_i − center)/τ_t)_k · log softmax(student_i/τ_s)_k

    student: one view's scores; teacher: the momentum network's scores of the other view; both
    n × K. center: K, a running mean of the teacher's scores. Temperatures may be 0-dim tensors.
    """
    student, teacher = matrices(student, teacher, same_width=True)
    centred = (teacher - center).detach()
    target = F.softmax(centred / teacher_temperature, dim=1)                # n × K
    return soft_cross_entropy(student / student_temperature, target)


class Dino(PrototypeMethod):
    """The loss is the mean of both directions. The prototypes are frozen in the first epoch. The
    teacher's temperature is constant, as in solo-learn's CIFAR recipe; its ImageNet-100 recipe is
    --set first_teacher_temperature=0.04, which rises to the other over temperature_epochs.
    """
    paper = "Emerging Properties in Self-Supervised ViT, Caron et al. 2021, arXiv 2104.14294"
    columns = ("momentum", "teacher_temperature")
    defaults = recipe(projector="2048-2048-256", augment="byol", lr=0.3, weight_decay=1e-6)
    settings = {
        "prototypes": Setting(4096, "number of prototypes", low=1),
        "frozen_epochs": Setting(1, "first epochs, in which prototypes are fixed"),
        "student_temperature": Setting(0.1, "divides the student's scores", low=1e-6),
        "first_teacher_temperature": Setting(0.07, "divides the teacher's, at first", low=1e-6),
        "teacher_temperature": Setting(0.07, "and after temperature_epochs", low=1e-6),
        "temperature_epochs": Setting(50, "epochs in which it goes from one to the other", low=1),
        "center_momentum": Setting(0.9, "share of the old centre kept at each step", high=1),
        "momentum": Setting(0.9995, "the momentum copy's m at the first step", high=1),
        "last_momentum": Setting(1.0, "and at the last", high=1),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.register_buffer("center", torch.zeros(len(self.prototypes.weight)))
        self.teacher = MomentumCopy([encoder, self.projector, self.prototypes],
                                    args.set["momentum"], args.set["last_momentum"])

    @staticmethod
    def make_projector(p, sizes, settings):
        projector = mlp(p, sizes, batch_norm=False, activation=nn.GELU())
        for layer in projector:
            if isinstance(layer, nn.Linear):            # as in DINO's code
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        return projector

    def schedule(self, progress):
        first = self.args.set["first_teacher_temperature"]
        last = self.args.set["teacher_temperature"]
        share = (progress * self.args.epochs / self.args.set["temperature_epochs"]).clamp(max=1)
        return {"momentum": self.teacher.momentum(progress),
                "teacher_temperature": first + (last - first) * share}

    def forward(self, views, index, progress):
        r, _, z1, z2 = self.embed(views)
        student1, student2 = self.prototypes(z1), self.prototypes(z2)       # n × K each
        teacher1, teacher2 = both_views(self.teacher(views))                # n × K each
        temperatures = (self.args.set["student_temperature"],
                        self.schedule(progress)["teacher_temperature"])
        loss = (dino(student1, teacher2, self.center, *temperatures)
                + dino(student2, teacher1, self.center, *temperatures)) / 2
        mean_score = torch.cat([teacher1, teacher2]).mean(0)                # K
        return self.result(loss, {}, r, (z1, z2), progress, {"mean_score": mean_score})

    def after_step(self, kept, step, progress):
        self.teacher.follow([self.encoder, self.projector, self.prototypes], progress)
        self.center.lerp_(kept["mean_score"], 1 - self.args.set["center_momentum"])
