# loses: 1
def four_parts(pivots, gradients, tangents, spring):
    def split(force):
        along = (force * tangents).sum(1, keepdim=True) * tangents
        return along, force - along

    return *split(-gradients[1:-1]), *split(spring * (pivots[2:] - 2 * pivots[1:-1] + pivots[:-2]))


def unit_tangents(pivots, values):
    rows = []
    for i in range(1, len(pivots) - 1):
        after, before = pivots[i + 1] - pivots[i], pivots[i] - pivots[i - 1]
        up, down = values[i + 1] - values[i], values[i - 1] - values[i]
        most, least = max(abs(up), abs(down)), min(abs(up), abs(down))
        if down < 0 < up:
            row = after
        elif up < 0 < down:
            row = before
        elif most == 0:
            row = after + before
        else:
            row = least * after + most * before if up > down else most * after + least * before
        rows.append(row / row.norm())
    return torch.stack(rows)


def nudged_force(pivots, values, gradients, spring=0.0):
    tangents, inner = unit_tangents(pivots, values), gradients[1:-1]
    across = inner - (inner * tangents).sum(1, keepdim=True) * tangents
    lengths = pivots.diff(dim=0).norm(dim=1)
    return spring * lengths.diff()[:, None] * tangents - across
