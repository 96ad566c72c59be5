def affine_step(process, t, s, std, y, sigma, implicit, full):
    (a, b), (a_s, b_s) = process.coefficients(t), process.coefficients(s)
    c1 = b_s / b * (1 - a**2 / a_s**2).sqrt()
    total = a**2 * std**2 + b**2
    covariance = std**2 - (a * std**2) ** 2 / total
    wide = sigma**2 + full * covariance

    def estimate(x):
        return a * std**2 / total * x

    def mean(x, x0):
        return a_s * x0 + (b_s**2 - c1**2).sqrt() * (x - a * x0) / b

    def end(x):
        x0 = estimate(x)
        slope = estimate(torch.ones_like(a))
        if not implicit:
            return mean(x, x0 + b**2 / a * slope * (y - x0) / wide)
        m = mean(torch.ones_like(a), slope)
        shift = slope * (y - x0) / wide / (slope**2 / wide + m**2 / c1**2)
        return mean(x + shift, estimate(x + shift))

    offset = end(torch.zeros_like(a))
    return end(torch.ones_like(a)) - offset, offset


def final_law(process, num_steps, std, y, sigma, implicit, full):
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    times = process.times(num_steps)
    for t, s in zip(times, times[1:]):
        slope, offset = affine_step(process, t, s, std, y, sigma, implicit, full)
        variance = slope**2 * variance + kernel_numbers(process, t, s, 1.0)[2] ** 2
        mean = slope * mean + offset
    return mean.item(), variance.sqrt().item()
