def ot_pairs(noise, data):
    rows, columns = linear_sum_assignment((noise @ data.T).numpy(), maximize=True)
    best = torch.empty_like(data)
    best[torch.as_tensor(rows)] = data[torch.as_tensor(columns)]
    return noise, best


def excess_cost(pair, mean, std, batch, num_batches, generator):
    dim, costs = len(mean), []
    for _ in range(num_batches):
        noise = torch.randn(batch, dim, dtype=F64, generator=generator)
        data = torch.randn(batch, dim, dtype=F64, generator=generator) * std + mean
        z, x = pair(noise, data)
        costs.append(((x - z) ** 2).sum(dim=-1))
    return torch.cat(costs).mean() - (mean @ mean + dim * (1 - std) ** 2)
