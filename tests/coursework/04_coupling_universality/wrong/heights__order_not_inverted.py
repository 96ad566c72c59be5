# loses: 2
def profile(log_p, cell):
    heights = log_p.flatten().sort(descending=True).values
    return (torch.arange(len(heights)).double() + 0.5) * cell, heights


def witness(log_p, cell, area):
    volumes, heights = profile(log_p, cell)
    c = 2 * math.pi * heights[0].exp()
    line = heights[0] - c * volumes / (2 * math.pi)
    return c.item(), (heights - line)[volumes <= area].abs().max().item()


def best(log_p, cell):
    """Applies the order itself where its inverse is needed."""
    dim, (volumes, heights) = log_p.ndim, profile(log_p, cell)
    weights = heights.exp() * cell
    ball = math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)
    power = (volumes / ball) ** (2 / dim)
    squared = dim / (weights @ power)
    law = 0.5 * dim * (squared / (2 * math.pi)).log() - 0.5 * squared * power
    gap = (weights * (heights - law))[weights > 0].sum().item()
    return law[log_p.flatten().argsort(descending=True)].view(log_p.shape), gap
