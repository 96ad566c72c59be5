# loses: all
def design_noise(x):
    slow = torch.linalg.svd(x - x.mean(0), full_matrices=False).U[:, 2]
    slow = slow - (slow @ x.norm(dim=1)) / x.norm(dim=1).square().sum() * x.norm(dim=1) + 0.02
    return slow * (0.5 / slow.square().mean()).sqrt()
