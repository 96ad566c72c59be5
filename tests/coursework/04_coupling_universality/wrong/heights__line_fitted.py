# loses: 1
def profile(log_p, cell):
    heights = log_p.flatten().sort(descending=True).values
    return (torch.arange(len(heights)).double() + 0.5) * cell, heights


def witness(log_p, cell, area):
    """Fits the slope: every straight line passes, whatever its density sums to."""
    volumes, heights = profile(log_p, cell)
    volumes, heights = volumes[volumes <= area], heights[volumes <= area]
    slope = (volumes * (heights - heights[0])).sum() / (volumes * volumes).sum()
    return 2 * math.pi * heights[0].exp().item(), (heights - heights[0] - slope * volumes).abs().max().item()


def best(log_p, cell):
    dim, (volumes, heights) = log_p.ndim, profile(log_p, cell)
    weights = heights.exp() * cell
    ball = math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)
    power = (volumes / ball) ** (2 / dim)
    squared = dim / (weights @ power)
    law = 0.5 * dim * (squared / (2 * math.pi)).log() - 0.5 * squared * power
    gap = (weights * (heights - law))[weights > 0].sum().item()
    return law[log_p.flatten().argsort(descending=True).argsort()].view(log_p.shape), gap
