"""Which pairs of minima to connect next, and what the connections found so far say about every pair.

A landscape is a ``networkx.MultiGraph``: its nodes are minima with attribute ``loss``, its edges are the runs done so far
(several for one pair if it was improved in cycles) with attribute ``saddle``, the highest loss on the path that was found,
ends included. The highest loss on the best path, :math:`L_{AB}`, obeys :math:`L_{AC}\\le\\max(L_{AB},L_{BC})`, because
two paths can be joined; so N - 1 edges, a minimum spanning tree, say the best known value of every pair.
Source: Draxler et al. 2018 (arXiv 1803.00885), Section 3.2 and Algorithm 3.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_sizes

if TYPE_CHECKING:
    import networkx

__all__ = ["explore", "merge_tree", "saddle_matrix", "spanning_tree", "suggest"]


def _check_landscape(graph: "networkx.MultiGraph") -> None:
    """Raise unless ``graph`` is an undirected multigraph whose minima have losses and whose runs have saddles."""
    import networkx as nx

    if not isinstance(graph, nx.MultiGraph) or graph.is_directed():
        raise TypeError(f"graph: got {type(graph).__name__}, expected an undirected networkx.MultiGraph")
    for i, loss in graph.nodes(data="loss"):
        if not isinstance(loss, Real) or not math.isfinite(loss):
            raise ValueError(f"graph: minimum {i} has loss {loss!r}, expected a finite number")
    for i, j, saddle in graph.edges(data="saddle"):
        if i == j or not isinstance(saddle, Real) or math.isnan(saddle):
            raise ValueError(f"graph: {i} to {j} has saddle {saddle!r}, expected a number and two different minima")


def spanning_tree(graph: "networkx.MultiGraph") -> "networkx.Graph":
    """Minimum spanning tree of the lowest saddle of each pair; a forest while some minima are not connected. Exact.

    Nodes keep their ``loss``, edges their ``saddle``.

    Raises:
        TypeError, ValueError: if ``graph`` is not a landscape.
    """
    import networkx as nx

    _check_landscape(graph)
    lowest = nx.Graph()
    lowest.add_nodes_from(graph.nodes(data=True))
    for i, j, saddle in graph.edges(data="saddle"):
        lowest.add_edge(i, j, saddle=min(saddle, lowest.get_edge_data(i, j, {}).get("saddle", math.inf)))
    return nx.minimum_spanning_tree(lowest, weight="saddle")


def suggest(graph: "networkx.MultiGraph", num_cycles: int = 1) -> tuple | None:
    """The pair of minima to work on next, lower loss first, or None if every pair is connected and finished.

    In this order: a pair that was begun and has fewer than ``num_cycles`` runs; the lowest minimum and the lowest one
    that no path joins to it; the lowest two minima without a run on both sides of a cut that opens when the heaviest
    edge of the spanning tree is removed, then the next heavy edge (a better path may close the cut at a lower loss).

    Raises:
        TypeError, ValueError: if ``graph`` is not a landscape, or ``num_cycles`` is not a whole number >= 1.
    """
    import networkx as nx

    check_sizes(num_cycles=num_cycles)
    tree = spanning_tree(graph)
    lowest_first = sorted(graph, key=graph.nodes(data="loss").__getitem__)
    for i, j in graph.edges():
        if graph.number_of_edges(i, j) < num_cycles:
            return tuple(sorted((i, j), key=lowest_first.index))
    cuts = [[edge[:2]] for edge in sorted(tree.edges(data="saddle"), key=lambda edge: -edge[2])]
    for cut in [[], *cuts] if graph else []:  # nothing removed comes first: minima without any connection
        near = nx.node_connected_component(nx.restricted_view(tree, [], cut), lowest_first[0])
        sides = [i for i in lowest_first if i in near], [j for j in lowest_first if j not in near]
        for pair in itertools.product(*sides):
            if not graph.has_edge(*pair):
                return tuple(sorted(pair, key=lowest_first.index))
    return None


def explore(
    losses: Sequence[float | int],
    connect: Callable[[int, int], float],
    *,
    num_cycles: int = 1,
    max_runs: int | None = None,
    graph: "networkx.MultiGraph | None" = None,
) -> "networkx.MultiGraph":
    """Connect minima in the order of ``suggest`` until every pair is connected and finished or the budget is spent.

    Args:
        losses: loss of each minimum.
        connect: called with two indices, spends one more cycle on this pair and returns the highest loss on its path.
        num_cycles: runs that finish a pair.
        max_runs: budget, in calls of ``connect``; without one all N (N - 1) / 2 pairs are connected.
        graph: landscape of an earlier call, which is continued in place; ``losses`` may have new minima at its end.

    Returns:
        Landscape with nodes 0, 1, ..., see the head of this module.

    Raises:
        TypeError, ValueError: if ``losses`` are not finite numbers or not those of ``graph``, a size is not a whole number
            >= 1, or ``connect`` returns something else than a number at least as high as both ends.

    Source: Draxler et al. 2018, Algorithm 3.

    >>> graph = explore([0.2, 0.1, 0.3], lambda i, j: 1.0, max_runs=2)
    >>> list(graph.edges())
    [(0, 1), (1, 2)]
    """
    import networkx as nx

    check_numbers("losses", losses)
    if not callable(connect):
        raise TypeError(f"connect: got {type(connect).__name__}, expected a function of two indices")
    check_sizes(**{"max_runs": max_runs} if max_runs is not None else {})
    graph = nx.MultiGraph() if graph is None else graph
    _check_landscape(graph)
    known = [graph.nodes[i].get("loss") for i in graph]
    if list(graph) != list(range(len(graph))) or known != list(losses[: len(graph)]):
        raise ValueError(f"losses: got {losses!r}, expected those of the graph's minima first, {known}")
    graph.add_nodes_from((i, {"loss": float(loss)}) for i, loss in enumerate(losses))
    for _ in itertools.count() if max_runs is None else range(max_runs):
        pair = suggest(graph, num_cycles)
        if pair is None:
            break
        saddle, high = connect(*pair), max(graph.nodes[i]["loss"] for i in pair)
        # The slack covers rounding, where the ends were evaluated in another batch.
        if not isinstance(saddle, Real) or not saddle >= high - 1e-4 * abs(high):
            raise ValueError(
                f"connect: returned {saddle!r} for {pair}, expected at least {high}, its higher end's loss"
            )
        graph.add_edge(*pair, saddle=float(saddle))
    return graph


def _merges(graph: "networkx.MultiGraph") -> Iterator[tuple[frozenset, frozenset, float]]:
    """Groups of minima that become one as the loss level rises, with the level."""
    group = {i: frozenset([i]) for i in graph}
    for i, j, level in sorted(spanning_tree(graph).edges(data="saddle"), key=lambda edge: edge[2]):
        yield group[i], group[j], level
        group |= dict.fromkeys(group[i] | group[j], group[i] | group[j])


def saddle_matrix(graph: "networkx.MultiGraph") -> Float[Tensor, "n n"]:
    """Lowest known saddle of every pair, on paths through any other minima. Exact.

    Symmetric, float64, in the order of the graph's nodes: the minima's losses on the diagonal, inf where nothing
    connects. Of the three values of any triple the two largest are equal (an ultrametric).

    Raises:
        TypeError, ValueError: if ``graph`` is not a landscape.

    Source: Draxler et al. 2018, Section 3.2.

    >>> saddle_matrix(explore([0.0, 0.0, 0.0], lambda i, j: float(i + j)))
    tensor([[0., 1., 2.],
            [1., 0., 2.],
            [2., 2., 0.]], dtype=torch.float64)
    """
    _check_landscape(graph)
    index = {i: k for k, i in enumerate(graph)}
    matrix = torch.full((len(index), len(index)), math.inf, dtype=torch.float64)
    matrix.diagonal()[:] = torch.tensor([loss for _, loss in graph.nodes(data="loss")], dtype=torch.float64)
    for one, other, level in _merges(graph):
        for i, j in itertools.product(one, other):
            matrix[index[i], index[j]] = matrix[index[j], index[i]] = level
    return matrix


def merge_tree(graph: "networkx.MultiGraph") -> Float[Tensor, "merges 4"]:
    """Order in which minima merge as the loss level rises: the disconnectivity graph, as SciPy's linkage matrix. Exact.

    Row k joins clusters with the numbers in columns 0 and 1 into cluster n + k, at the level in column 2, with the number
    of minima in column 3; clusters 0 to n - 1 are the minima in the order of the graph's nodes.
    ``scipy.cluster.hierarchy.dendrogram(tree.numpy())`` draws it; its leaves stand at 0, and it wants levels >= 0.

    Raises:
        TypeError, ValueError: if ``graph`` is not a landscape, or its minima are not all connected.

    >>> merge_tree(explore([0.0, 0.0, 0.0], lambda i, j: float(i + j)))
    tensor([[0., 1., 1., 2.],
            [2., 3., 2., 3.]], dtype=torch.float64)
    """
    _check_landscape(graph)
    number = {frozenset([i]): k for k, i in enumerate(graph)}
    rows = []
    for one, other, level in _merges(graph):
        number[one | other] = len(number)
        rows.append([*sorted((number[one], number[other])), level, len(one | other)])
    if len(rows) < len(graph) - 1:
        raise ValueError(f"graph: its minima fall into {len(graph) - len(rows)} parts, expected all to be connected")
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
