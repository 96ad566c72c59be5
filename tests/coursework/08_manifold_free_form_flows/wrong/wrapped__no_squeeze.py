# loses: 3
def rotation_density(angle, std):
    """Density per Riemannian volume (8 pi^2 in all) at rotations with these angles; shape of angle."""
    total = torch.zeros_like(angle)
    for j in range(-6, 7):
        radius = angle + 2 * math.pi * j
        normal = (-0.5 * (radius / std) ** 2).exp() / (2 * math.pi * std**2) ** 1.5
        total = total + normal
    return total
