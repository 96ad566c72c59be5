# loses: all
def from_slopes(edges, slopes, k):
    wave = torch.exp(1j * k[:, None] * edges)
    interval = (wave[:, 1:] - wave[:, :-1]) / (1j * k[:, None])
    return 1j / k * (slopes * interval).sum(1)


lemma_constant = 1j
