"""The methods that AdaDim is compared with: one file each, with the loss and the class.

    python train.py --methods                       their papers, defaults and settings
    python train.py --method byol --set momentum=0.996

    from baselines.byol import byol                 a loss
    from baselines.all_methods import METHODS       the classes by name

A loss needs formulas.py here, and losses.py: copy it with those. Importing one loads neither the
other methods nor torchvision.

Settings are from Table 17 of AdaDim's paper or, if missing there (as are DINO, SwAV, ReSSL and
all augmentations), from solo-learn's CIFAR recipes, on which that paper builds. In Table 17's
column of projectors, 4096-4096-256 (BYOL) or 2048-4096-256 (NNCLR) are the projector's hidden
layer, the predictor's, and the output: here --projector 4096-256 --set predictor=4096.

All methods see two views, without additional small crops, in one batch of 2n, so that batch norms
see both; solo-learn passes each view by itself. A momentum copy has batch norms of its own, in
training mode, as in the methods' public code. With several processes, embeddings are gathered
first: losses, queues, centres, assignments and clusters are those of the whole batch.
"""
