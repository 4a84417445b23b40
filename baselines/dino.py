"""DINO: a student predicts a momentum teacher's distribution over prototypes."""
import torch
import torch.nn.functional as F
from torch import nn

from baselines.shared import (COUNT, COUNT_OR_0, POSITIVE, SHARE, MomentumCopy, PrototypeMethod,
                              check_positive, cross_entropy)
from losses import matrices
from methods import Method, Setting, both_views
from models import mlp


def dino(student, teacher, center, student_temperature, teacher_temperature):
    """DINO (Caron et al. 2021, Eq. 2 and Algorithm 1); 0 or more.

        mean_i −Σ_k softmax((teacher_i − center)/τ_t)_k · log softmax(student_i/τ_s)_k

    student: one view's scores; teacher: the momentum network's scores of the other view; both
    n × K. center: K, a running mean of the teacher's scores. Temperatures may be 0-dim tensors.
    """
    student, teacher = matrices(student, teacher, same_width=True)
    if center.shape != student.shape[1:]:
        raise ValueError(f"expected a center of {student.shape[1]} values, "
                         f"got {tuple(center.shape)}")
    check_positive(student_temperature=student_temperature,
                   teacher_temperature=teacher_temperature)
    centred = (teacher - center).detach()
    target = F.softmax(centred / teacher_temperature, dim=1)                # n × K
    return cross_entropy(student / student_temperature, target)


class Dino(PrototypeMethod):
    """A student predicts a momentum teacher's sharpened and centred distribution over prototypes.

    The loss is the mean of both directions. The prototypes are frozen in the first epoch. The
    teacher's temperature is constant, as in solo-learn's CIFAR recipe; its ImageNet-100 recipe is
    --set first_teacher_temperature=0.04, which rises to the other over temperature_epochs.
    """
    paper = "Emerging Properties in Self-Supervised ViT, Caron et al. 2021, arXiv 2104.14294"
    columns = ("momentum", "teacher_temperature")
    defaults = Method.defaults | {
        "--projector": "2048-2048-256",
        "--augment": "byol",
        "--optimizer": "lars",
        "--lr": 0.3,
        "--weight-decay": 1e-6,
    }
    settings = {
        "prototypes": Setting(4096, COUNT, "number of prototypes"),
        "frozen_epochs": Setting(1, COUNT_OR_0, "first epochs, in which prototypes are fixed"),
        "student_temperature": Setting(0.1, POSITIVE, "divides the student's scores"),
        "first_teacher_temperature": Setting(0.07, POSITIVE, "divides the teacher's, at first"),
        "teacher_temperature": Setting(0.07, POSITIVE, "and after temperature_epochs"),
        "temperature_epochs": Setting(50, COUNT, "epochs in which it goes from one to the other"),
        "center_momentum": Setting(0.9, SHARE, "share of the old centre kept at each step"),
        "momentum": Setting(0.9995, SHARE, "the momentum copy's m at the first step"),
        "last_momentum": Setting(1.0, SHARE, "and at the last"),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.epochs = args.epochs
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
        first = self.chosen["first_teacher_temperature"]
        last = self.chosen["teacher_temperature"]
        share = (progress * self.epochs / self.chosen["temperature_epochs"]).clamp(max=1)
        return {"momentum": self.teacher.momentum(progress),
                "teacher_temperature": first + (last - first) * share}

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
