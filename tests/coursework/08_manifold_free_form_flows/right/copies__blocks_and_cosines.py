def share_of_copies(test, train, tolerance=1e-9):
    hits = 0
    for row in test:
        hits += bool(((train - row).pow(2).sum(1).sqrt() <= tolerance).any())
    return hits / len(test)


def kernel_nll(train, test, kappa, epsilon=0.05):
    values = []
    for row in test:
        chord = (train - row).pow(2).sum(1)
        # kappa / (2 pi (1 - exp(-2 kappa))) exp(kappa (cos - 1)) is a vMF density
        bump = torch.exp(-kappa * chord / 2) * kappa / (2 * math.pi * -math.expm1(-2 * kappa))
        values.append(torch.log((1 - epsilon) * bump.mean() + epsilon / (4 * math.pi)))
    return -torch.stack(values).mean()
