# loses: 1
def predicted(dim, skewness, kurtosis):
    """Mean over all directions of the negentropy's two leading terms; skewness, kurtosis (excess): of a source."""
    third = 15 / ((dim + 2) * (dim + 4))  # only the q_j^6 survive
    fourth = (105 + 9 * (dim - 1)) / ((dim + 2) * (dim + 4) * (dim + 6))  # q_j^8 and q_i^4 q_j^4
    return skewness**2 / 12 * third + kurtosis**2 / 48 * fourth


def negentropy(x, p):
    """KL divergence to the standard normal, in nats; x: grid, shape (n,); p: densities, shape (*batch, n)."""
    against = p * (x.square() + math.log(2 * math.pi)) / 2
    return (torch.special.xlogy(p, p) + against).sum(-1) * (x[1] - x[0])


def mean_negentropy(family, dim, num_draws, generator):
    """Mean negentropy of random projections of dim sources."""
    q = F.normalize(2 * torch.rand(num_draws, dim, generator=generator).double() - 1, dim=1)
    return negentropy(*projected_density(q, family)).mean()


def exponent(family, dims, num_draws, generator):
    """Slope of the logarithm of the mean negentropy against the logarithm of the dimension."""
    y = torch.stack([mean_negentropy(family, d, num_draws, generator) for d in dims]).log()
    x = torch.tensor(dims).double().log()
    x = x - x.mean()
    return (x * y).sum() / x.square().sum()
