"""Exploration of minima: the official order of suggestions, bottlenecks against three other algorithms, ultrametricity."""

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cophenet, dendrogram, is_valid_linkage, linkage
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import squareform

from refimpl import runtime
from refimpl.landscape import exploration
from refimpl.landscape.exploration import explore, merge_tree, saddle_matrix, spanning_tree, suggest


def landscape(n, seed, p=1.0, runs=2):
    """Random losses in [0, 1], runs with random saddles above them on a share p of the pairs."""
    generator = runtime.generator(seed)
    graph = nx.MultiGraph()
    graph.add_nodes_from((i, {"loss": float(torch.rand((), generator=generator))}) for i in range(n))
    for i, j in itertools.combinations(range(n), 2):
        for saddle in 1 + torch.rand(runs, generator=generator, dtype=torch.float64):
            if torch.rand((), generator=generator) < p:
                graph.add_edge(i, j, saddle=float(saddle))
    return graph


def lowest(graph):
    """Dense matrix of each pair's lowest saddle, inf where there is none."""
    direct = np.full((len(graph), len(graph)), np.inf)
    for i, j, saddle in graph.edges(data="saddle"):
        direct[i, j] = direct[j, i] = min(saddle, direct[i, j])
    return direct


def without_gaps(direct):
    """Zeros where there is no edge, which is how SciPy writes a graph as a matrix."""
    return np.where(np.isfinite(direct), direct, 0)


def test_suggestions_come_in_the_official_order():
    """Four minima with values 1 to 4 and edges of weight a^2 + b^2; (1, 3) is left unfinished at first."""
    graph = nx.MultiGraph()
    graph.add_nodes_from((i, {"loss": float(i)}) for i in (4, 2, 1, 3))
    order = []
    while (pair := suggest(graph, num_cycles=2)) is not None:
        runs = 1 if pair == (1, 3) else 2
        graph.add_edges_from([(*pair, {"saddle": float(pair[0] ** 2 + pair[1] ** 2)})] * runs)
        order.append(pair)
    assert order == [(1, 2), (1, 3), (1, 3), (1, 4), (2, 4), (3, 4), (2, 3)]


def test_exploration_is_a_star_first_and_then_closes_cuts_from_the_heaviest_edge():
    order = []

    def connect(i, j):
        order.append((i + 1, j + 1))
        return float((i + 1) ** 2 + (j + 1) ** 2)

    graph = explore([1, 2, 3, 4], connect)
    assert order == [(1, 2), (1, 3), (1, 4), (2, 4), (3, 4), (2, 3)]
    assert sorted(spanning_tree(graph).edges()) == [(0, 1), (0, 2), (0, 3)]
    assert dict(graph.nodes(data="loss")) == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}


def test_a_detour_through_a_third_minimum_replaces_a_bad_path():
    saddles = {(0, 1): 9.0, (0, 2): 2.0, (1, 2): 3.0}
    graph = explore([0.0, 0.1, 0.2], lambda i, j: saddles[i, j], max_runs=2)
    assert saddle_matrix(graph)[0, 1] == 9.0
    assert suggest(graph) == (1, 2)
    graph = explore([0.0, 0.1, 0.2], lambda i, j: saddles[i, j], graph=graph)
    assert saddle_matrix(graph)[0, 1] == 3.0
    assert {frozenset(edge) for edge in spanning_tree(graph).edges()} == {frozenset((0, 2)), frozenset((1, 2))}


def test_budget_cycles_and_continuation():
    calls = []

    def connect(i, j):
        calls.append((i, j))
        return 1 + 1 / len(calls)

    graph = explore([0.3, 0.1, 0.2], connect, num_cycles=3, max_runs=4)
    assert calls == [(1, 2)] * 3 + [(1, 0)]
    same = explore([0.3, 0.1, 0.2], connect, num_cycles=3, graph=graph)
    assert same is graph and calls == [(1, 2)] * 3 + [(1, 0)] * 3 + [(2, 0)] * 3
    once: list[tuple[int, int]] = []
    explore([0.3, 0.1, 0.2], lambda i, j: once.append((i, j)) or 1.0, num_cycles=3)
    assert once == calls  # an interruption changes nothing
    explore([0.3, 0.1, 0.2, 0.4], connect, graph=graph, max_runs=1)
    assert calls[-1] == (1, 3) and len(graph) == 4
    assert saddle_matrix(graph)[0, 1] == 1 + 1 / 6  # the lowest of three runs


def test_a_run_that_fails_leaves_what_was_found():
    graph = nx.MultiGraph()

    def connect(i, j):
        if j == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        explore([0.0, 0.0, 0.0], connect, graph=graph)
    assert list(graph.edges()) == [(0, 1)] and len(graph) == 3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "p"), [(2, 1.0), (7, 1.0), (9, 0.4), (9, 0.1)])
def test_saddles_are_the_bottlenecks_of_floyd_and_warshall(n, p, seed):
    graph = landscape(n, seed, p)
    direct = lowest(graph)
    best = direct.copy()
    for k in range(n):
        best = np.minimum(best, np.maximum(best[:, k : k + 1], best[k : k + 1]))
    matrix = saddle_matrix(graph)
    off = ~np.eye(n, dtype=bool)
    np.testing.assert_array_equal(matrix.numpy()[off], best[off])
    assert matrix.diagonal().tolist() == pytest.approx([loss for _, loss in graph.nodes(data="loss")], abs=0)
    assert (matrix.numpy()[off] <= direct[off]).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_is_scipys(seed):
    graph = landscape(8, seed)
    theirs = minimum_spanning_tree(without_gaps(lowest(graph)))
    pairs = {frozenset(pair) for pair in zip(*theirs.nonzero(), strict=True)}
    tree = spanning_tree(graph)
    assert {frozenset(edge) for edge in tree.edges()} == pairs
    assert sum(saddle for _, _, saddle in tree.edges(data="saddle")) == pytest.approx(theirs.sum())
    assert dict(tree.nodes(data="loss")) == dict(graph.nodes(data="loss"))


@given(seed=st.integers(0, 10_000), n=st.integers(3, 8), p=st.floats(0.2, 1))
@settings(max_examples=40, deadline=None)
def test_the_two_largest_saddles_of_any_triple_are_equal(seed, n, p):
    matrix = saddle_matrix(landscape(n, seed, p)).tolist()
    for a, b, c in itertools.combinations(range(n), 3):
        *_, second, first = sorted([matrix[a][b], matrix[b][c], matrix[a][c]])
        assert second == first


def test_more_runs_never_raise_a_saddle():
    graph, last = landscape(6, 0, p=0), math.inf
    for i, j, saddle in landscape(6, 1).edges(data="saddle"):
        graph.add_edge(i, j, saddle=saddle)
        matrix = saddle_matrix(graph)
        assert (matrix <= last).all()
        last = matrix
    assert last.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_minima_merge_as_in_single_linkage(seed):
    """Single linkage joins the two closest clusters, by their closest members: Kruskal's order."""
    graph = landscape(7, seed)
    tree = merge_tree(graph).numpy()
    theirs = linkage(squareform(without_gaps(lowest(graph))), "single")
    np.testing.assert_array_equal(tree, theirs)
    assert is_valid_linkage(tree)
    matrix = saddle_matrix(graph).fill_diagonal_(0).numpy()
    np.testing.assert_allclose(squareform(cophenet(tree)), matrix)
    assert sorted(dendrogram(tree, no_plot=True)["leaves"]) == list(range(7))


def test_landscapes_of_one_minimum_and_of_none():
    one = explore([0.5], lambda i, j: math.nan)
    assert suggest(one) is None and saddle_matrix(one).tolist() == [[0.5]] and merge_tree(one).shape == (0, 4)
    none = nx.MultiGraph()
    assert suggest(none) is None and saddle_matrix(none).shape == (0, 0) and merge_tree(none).shape == (0, 4)


def test_any_names_of_minima_do():
    graph = nx.MultiGraph()
    graph.add_nodes_from([("b", {"loss": 0.2}), ("a", {"loss": 0.1}), ("c", {"loss": 0.3})])
    assert suggest(graph) == ("a", "b")
    graph.add_edge("b", "a", saddle=1)
    graph.add_edge("a", "c", saddle=2)
    assert suggest(graph) == ("b", "c")
    expected = torch.tensor([[0.2, 1, 2], [1, 0.1, 2], [2, 2, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(saddle_matrix(graph), expected, rtol=0, atol=0)
    assert merge_tree(graph).tolist() == [[0, 1, 1, 2], [2, 3, 2, 3]]


def test_what_is_public():
    assert set(exploration.__all__) == {"explore", "merge_tree", "saddle_matrix", "spanning_tree", "suggest"}
