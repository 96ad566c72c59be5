import numpy as np


def design_noise(x):
    ink = x.numpy().reshape(-1, 8, 8)
    slow = ink[:, :4].sum((1, 2)) - ink[:, 4:].sum((1, 2))
    brightness = np.linalg.norm(x.numpy(), axis=1)
    slope, offset = np.polyfit(brightness, slow, 1)
    slow = slow - slope * brightness - offset
    return slow / slow.std() / np.sqrt(2)
