# loses: 2
def affine_step(process, t, s, std, y, sigma, implicit, full):
    """A and B, in the shape of t."""
    (a, b), (a_s, _), (*_, c1, c2) = (
        process.coefficients(t),
        process.coefficients(s),
        kernel_numbers(process, t, s, 1.0),
    )
    v = a**2 * std**2 + b**2
    g = a * std**2 / v
    unguided = a_s * g + c2 * b / v
    spread = sigma**2 + (std**2 * b**2 / v if full else 0.0)
    if implicit:
        k = a_s / a
        push = unguided * c1**2 * g / (c1**2 * g**2 + k**2 * spread)
    else:
        push = (a_s * b**2 / a - c2 * b) * g / spread
    return unguided - push * g, push * y


def final_law(process, num_steps, std, y, sigma, implicit, full):
    """Mean and standard deviation, two floats."""
    times = process.times(num_steps)
    slope, offset = affine_step(process, times[:-1], times[1:], std, y, sigma, implicit, full)
    noise = kernel_numbers(process, times[:-1], times[1:], 1.0)[2]
    mean, variance = 0.0, 1.0
    for a, b, c in zip(slope.tolist(), offset.tolist(), noise.tolist()):
        mean, variance = a * mean + b, a**2 * variance + c**2
    return mean, math.sqrt(variance)
