# loses: all
def steps_needed(kernel, lr, frequencies, share):
    values = torch.linalg.eigvalsh(kernel).flip(0)[frequencies]
    factor = 1 - 2 * lr * values / len(kernel)
    return torch.ceil(math.log(share) / factor.abs().log()).long()
