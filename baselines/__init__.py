"""The methods that AdaDim is compared with, one file each: its loss and its class.

    python train.py --methods                       each one's paper, defaults and settings
    python train.py --method byol --set momentum=0.996

    from baselines import METHODS, byol, sinkhorn   classes by name; losses

Each file can be read without the others but shared.py. Settings are those of the paper's Table 17
and, where it is silent, of solo-learn's CIFAR recipes, on which that paper stands. Like AdaDim,
each sees two views, without further small crops.

All of them:
- Both views go through the networks in one batch of 2n, so that batch norms see both.
- A momentum copy has batch norms of its own, in training mode, as in the methods' public code.
- With several processes, embeddings are gathered first: losses, queues, centres, Sinkhorn's
  rounds and clusters are those of the whole batch. What differs from one process is what differs
  for AdaDim, too: the augmentation's random numbers and, on CPUs, batch norms, which see their
  own process's part. DeepCluster v2 and LeJEPA say what else does.
- A queue or a set of prototypes that is larger than the training set shrinks, with a note.
- The targets' random start follows from --seed.
"""
from baselines.barlow_twins import BarlowTwins, barlow_twins
from baselines.byol import Byol, byol
from baselines.deepcluster_v2 import DeepClusterV2, deepcluster_v2
from baselines.dino import Dino, dino
from baselines.lejepa import LeJepa, sigreg
from baselines.moco_v2 import MocoV2, moco_v2
from baselines.moco_v3 import MocoV3, moco_v3
from baselines.nnclr import Nnclr, nnclr
from baselines.ressl import Ressl, ressl
from baselines.simsiam import SimSiam, simsiam
from baselines.swav import Swav, sinkhorn, swav
from methods import METHODS

METHODS |= {
    "barlow_twins": BarlowTwins,
    "byol": Byol,
    "simsiam": SimSiam,
    "nnclr": Nnclr,
    "moco_v2": MocoV2,
    "moco_v3": MocoV3,
    "dino": Dino,
    "swav": Swav,
    "deepcluster_v2": DeepClusterV2,
    "ressl": Ressl,
    "lejepa": LeJepa,
}
