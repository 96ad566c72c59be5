# loses: 1
def profile(log_p, cell):
    heights = log_p.flatten().sort(descending=True).values
    return (torch.arange(len(heights)).double() + 0.5) * cell, heights


def witness(log_p, cell, area):
    volumes, heights = profile(log_p, cell)
    c = 2 * math.pi * heights[0].exp()
    line = heights[0] - c * volumes / (2 * math.pi)
    return c.item(), (heights - line)[volumes <= area].abs().max().item()


def best(log_p, cell):
    """Takes the straight line in every dimension."""
    volumes, heights = profile(log_p, cell)
    weights = heights.exp() * cell
    mean = weights @ volumes
    law = -volumes / mean - mean.log()
    gap = (weights * (heights - law))[weights > 0].sum().item()
    return law[log_p.flatten().argsort(descending=True).argsort()].view(log_p.shape), gap
