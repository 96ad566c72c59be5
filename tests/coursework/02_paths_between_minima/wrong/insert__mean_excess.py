# loses: 2
def insert(pivots, weights, values, most=2, threshold=0.1):
    """Judges a segment by its mean excess: a narrow bump counts little, however high it is."""
    segments = len(pivots) - 1
    steps = (len(values) - 1) // segments
    heights = values[::steps]
    share = torch.arange(1, steps).double() / steps
    inside = values[:-1].view(segments, steps)[:, 1:]
    linear = heights[:-1, None] * (1 - share) + heights[1:, None] * share
    excess = (inside - linear) / (heights.max() - heights.min() + 1e-12)
    place, excess = excess.argmax(dim=1), excess.mean(dim=1)
    chain, lengths = list(pivots), list(weights)
    for i in sorted(excess.argsort(descending=True)[:most].tolist(), reverse=True):
        if excess[i] > threshold:
            s = share[place[i]]
            chain.insert(i + 1, (1 - s) * pivots[i] + s * pivots[i + 1])
            lengths[i : i + 1] = [s * weights[i], (1 - s) * weights[i]]
    return torch.stack(chain), torch.stack(lengths)
