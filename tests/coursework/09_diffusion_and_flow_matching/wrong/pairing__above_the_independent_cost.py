# loses: 1
def ot_pairs(noise, data):
    """noise and data, both (batch, dim), the data in the order that makes the sum of squared distances smallest."""
    rows, columns = linear_sum_assignment(torch.cdist(noise, data).square().numpy())
    return noise, data[torch.as_tensor(columns)]


def excess_cost(pair, mean, std, batch, num_batches, generator):
    """Mean cost of the pairs above W_2^2; pair is a function such as ot_pairs, mean a tensor of shape (dim,)."""
    total = 0.0
    for _ in range(num_batches):
        z, n = torch.randn(2, batch, len(mean), dtype=F64, generator=generator)
        z, x1 = pair(z, mean + std * n)
        total += (x1 - z).square().sum(1).mean().item() / num_batches
    return total - mean.square().sum().item() - len(mean) * (1 + std**2)
