# loses: 2
def design_noise(x):
    place = torch.linalg.svd(x - x.mean(0), full_matrices=False).U[:, 2]
    noise = torch.sin(12 * math.pi * place / place.std())
    rest = torch.stack([torch.ones(len(x)), x.norm(dim=1)], 1)
    noise = noise - rest @ torch.linalg.lstsq(rest, noise[:, None]).solution[:, 0]
    return noise * (0.5 / noise.square().mean()).sqrt()
