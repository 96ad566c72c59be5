# loses: 1
def from_slopes(edges, slopes, k):
    return (torch.sin(k / 2) / (k / 2)) ** 2


lemma_constant = -1j
