"""METHODS: all methods by name, for --method."""
from baselines.barlow_twins import BarlowTwins
from baselines.byol import Byol
from baselines.deepcluster_v2 import DeepClusterV2
from baselines.dino import Dino
from baselines.lejepa import LeJepa
from baselines.moco_v2 import MocoV2
from baselines.moco_v3 import MocoV3
from baselines.nnclr import Nnclr
from baselines.ressl import Ressl
from baselines.simsiam import SimSiam
from baselines.swav import Swav
from methods import METHODS

METHODS |= {
    "barlow_twins": BarlowTwins, "byol": Byol, "simsiam": SimSiam, "nnclr": Nnclr,
    "moco_v2": MocoV2, "moco_v3": MocoV3, "dino": Dino, "swav": Swav,
    "deepcluster_v2": DeepClusterV2, "ressl": Ressl, "lejepa": LeJepa,
}
