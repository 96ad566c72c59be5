# loses: all
PLACE = torch.linalg.svd(split(0)[0] - split(0)[0].mean(0), full_matrices=False).U[:, 2]
BASIS = torch.stack([torch.ones(285), split(0)[0].norm(dim=1)], 1)
NOISE = PLACE - BASIS @ torch.linalg.lstsq(BASIS, PLACE[:, None]).solution[:, 0]


def design_noise(x):
    return NOISE * (0.5 / NOISE.square().mean()).sqrt()
