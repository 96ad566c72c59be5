def rotation_density(angle, std):
    radii = torch.cat(
        [angle[..., None] + 2 * math.pi * torch.arange(8), 2 * math.pi * torch.arange(1, 9) - angle[..., None]], -1
    )
    maxwell = math.sqrt(2 / math.pi) * radii**2 * torch.exp(-(radii**2) / (2 * std**2)) / std**3
    return maxwell.sum(-1) / (16 * math.pi * torch.sin(angle / 2) ** 2)
