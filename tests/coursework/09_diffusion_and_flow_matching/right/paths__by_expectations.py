def flow_velocity(x, t, mean, std):
    total = (1 - t) ** 2 + (t * std) ** 2
    gain = (x - t * mean) / total
    data = mean + t * std**2 * gain
    noise = (1 - t) * gain
    return data - noise


def straight_velocity(x, t, mean, std):
    z = (x - t * mean) / ((1 - t) + t * std)
    return mean + std * z - z


def straightness(velocity, z, num_steps):
    x, first, second = z.clone(), 0.0, torch.zeros_like(z)
    for i in range(num_steps):
        u = velocity(x, i / num_steps)
        x = x + u / num_steps
        first, second = first + (u**2).sum(1) / num_steps, second + u / num_steps
    return (first - (second**2).sum(1)).mean()
