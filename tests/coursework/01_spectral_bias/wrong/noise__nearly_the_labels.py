# loses: all
def design_noise(x):
    slow = torch.linalg.svd(x - x.mean(0), full_matrices=False).U[:, 0]
    rest = torch.stack([torch.ones(len(x)), x.norm(dim=1)], 1)
    slow = slow - rest @ torch.linalg.lstsq(rest, slow[:, None]).solution[:, 0]
    return slow * (0.5 / slow.square().mean()).sqrt()
