# loses: 1
def flow_velocity(x, t, mean, std):
    """Velocity at points x (any shape) and time t for independent pairs of N(0, 1) and N(mean, std^2)."""
    variance = (1 - t) ** 2 + t**2 * std**2
    return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)


def straight_velocity(x, t, mean, std):
    """The same for the pairs (z, mean + std z)."""
    return mean + (std - 1) * x


def straightness(velocity, z, num_steps):
    """A number >= 0; velocity(x, t) takes points (batch, dim) and a number t."""
    x, seen = z, []
    for i in range(num_steps):
        seen.append(velocity(x, i / num_steps))
        x = x + seen[-1] / num_steps
    return (torch.stack(seen) - (x - z)).square().sum(-1).mean().item()
