"""Exercise 6: three losses, one wrong line in each.      python exercises/check.py 6 --line 23

All three run and train. Find each line by an experiment of your own: an input whose loss, or
gradient, you know without computing it. Hand in the experiments: input, what you expected, what
came out. z1, z2 (n × d) are embeddings of two views, r (n × p) and z (n × d) of the same images.
"""
import torch
import torch.nn.functional as F


def contrastive(z1, z2, temperature=0.1):
    """Exercise 1's InfoNCE."""
    z = torch.cat([z1, z2])                             # 2n × d
    length = z.norm(dim=1, keepdim=True)
    z = z / length.detach().clamp_min(1e-12)
    logits = z @ z.T / temperature                      # 2n × 2n
    itself = torch.eye(len(z), dtype=torch.bool)
    logits = logits.masked_fill(itself, float("-inf"))
    partner = torch.arange(len(z)).roll(len(z1))
    return F.cross_entropy(logits, partner)


def decorrelating(z1, z2):
    """VICReg: 25 · invariance + 25 · variance + covariance, each view's terms added."""
    n, d = z1.shape
    loss = 25 * F.mse_loss(z1, z2)
    for z in (z1, z2):
        std = (z.var(dim=1) + 1e-4).sqrt()
        loss = loss + 25 * F.relu(1 - std).mean()
        z = z - z.mean(dim=0)
        c = z.T @ z / (n - 1)                           # d × d
        off_diagonal = c - torch.diag(c.diagonal())
        loss = loss + off_diagonal.square().sum() / d
    return loss


def information(r, z):
    """I(R;Z) = H(K_R) + H(K_Z) − H(K_R ∘ K_Z),  H(K) = −log(‖K‖²/n²),  K_R = r̂r̂ᵀ,  K_Z = ẑẑᵀ."""
    def entropy(k):
        return -(k / len(k)).square().sum().log()

    r = F.normalize(r, dim=1)
    z = F.normalize(z, dim=1)
    k_r = r @ r.T                                       # n × n
    k_z = z @ z.T
    k_both = (k_r + k_z) / 2                            # n × n, of the joint rows [r̂, ẑ]
    return entropy(k_r) + entropy(k_z) - entropy(k_both)
