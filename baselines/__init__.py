"""The methods that AdaDim is compared with: one file each, with the loss and the class.

    python train.py --methods                       their papers, defaults and settings
    python train.py --method byol --set momentum=0.996

    from baselines import METHODS, byol, sinkhorn   classes by name; losses

Settings are from Table 17 of AdaDim's paper or, if missing there (as are DINO, SwAV, ReSSL and
all augmentations), from solo-learn's CIFAR recipes, on which that paper builds. In Table 17's
column of projectors, 4096-4096-256 (BYOL) or 2048-4096-256 (NNCLR) are the projector's hidden
layer, the predictor's, and the output: here --projector 4096-256 --set predictor=4096.

All methods see two views, without additional small crops, in one batch of 2n, so that batch norms
see both; solo-learn passes each view by itself. A momentum copy has batch norms of its own, in
training mode, as in the methods' public code. With several processes, embeddings are gathered
first: losses, queues, centres, assignments and clusters are those of the whole batch.
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
