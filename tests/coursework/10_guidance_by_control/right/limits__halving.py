def edge(process, num_steps):
    low, high = 0.01, 2.0
    for _ in range(14):
        sigma = (low + high) / 2
        if final_law(process, num_steps, 1.0, 1.0, sigma, False, False)[1] > 1:
            low = sigma
        else:
            high = sigma
    return low


def limit_law(y, sigma):
    precision = 1 / sigma**2
    return y * (1 - math.exp(-precision)), ((1 - math.exp(-2 * precision)) / (2 * precision)) ** 0.5
