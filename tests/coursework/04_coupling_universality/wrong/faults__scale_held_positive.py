# loses: 1
def moments(passive, active, num_bins):
    count = len(passive) // num_bins
    order = passive.argsort()[: num_bins * count]
    binned = active[order].view(num_bins, count, -1)
    return passive[order].view(num_bins, count).mean(1), binned.mean(1), binned.std(1, correction=0)


def improvement(mean, std):
    return 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).sum(1).mean()


def fit_coupling(x, num_bins, step=0.5):
    position, mean, std = moments(x[:, 0], x[:, 1:], num_bins)
    return position, 1 + step * (1 / std - 1), -step * mean / std


def apply_coupling(x, position, scale, shift):
    """No NaN any more, but still a straight line beyond the bins."""
    right = torch.searchsorted(position, x[:, 0].contiguous()).clamp(1, len(position) - 1)
    share = ((x[:, 0] - position[right - 1]) / (position[right] - position[right - 1]))[:, None]
    s, t = (torch.lerp(part[right - 1], part[right], share) for part in (scale, shift))
    s = s.clamp_min(1e-3)
    return torch.cat([x[:, :1], s * x[:, 1:] + t], 1), s.log().sum(1)
