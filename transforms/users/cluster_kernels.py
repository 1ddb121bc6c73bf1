"""Compiled loops of the interests: they cluster each user's items by Ward's criterion.

The clusters of a user are found by the nearest-neighbour chain and the update formula of Lance and Williams.

Source: Ward, "Hierarchical grouping to optimize an objective function", JASA 58, 1963; Murtagh, "A survey of recent
advances in hierarchical clustering algorithms", The Computer Journal 26, 1983; Lance and Williams, "A general theory of
classificatory sorting strategies", The Computer Journal 9, 1967.
"""

from __future__ import annotations

import numpy as np

from unisono.transforms.base.compiled import compiled


@compiled
def cluster(
    matrix: np.ndarray,
    rows: np.ndarray,
    weight: np.ndarray,
    first: np.ndarray,
    split: float,
    medoids: np.ndarray,
    weights: np.ndarray,
    centres: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Clusters the liked items of some users; `interests.find_interests` describes the result.

    Args:
        matrix: float32 [items, dim], unit rows.
        rows: int64 [e], the users' items as rows of `matrix`.
        weight: float64 [e], above 0.
        first: int64 [users + 1]: user u has the items `first[u]` to `first[u + 1]` of `rows`.
        split: fraction of a user's scatter that a merge must add to be undone.
        medoids: int64 [users, most], receives the medoid of each cluster, heaviest cluster first; −1 where there is
            no cluster.
        weights: float64 [users, most], receives the clusters' shares of the user's weight.
        centres: float64 [users, most, dim], receives Σ w·v of each cluster; must hold zeros.
        labels: int64 [e], receives the number of each item's cluster.
    """
    for u in range(len(first) - 1):
        n = first[u + 1] - first[u]
        if n == 0:
            continue
        own = rows[first[u] : first[u + 1]]
        x = matrix[own].astype(np.float64)
        w = weight[first[u] : first[u + 1]]
        a, b, height = np.empty(n - 1, np.int64), np.empty(n - 1, np.int64), np.empty(n - 1)
        _ward(x, a, b, height)
        label = _cut(a, b, height, _number_of_clusters(height, split, medoids.shape[1]))
        names = np.flatnonzero(label == np.arange(n))  # the first member names its cluster
        total = w.sum()
        best, share = np.empty(len(names), np.int64), np.empty(len(names))
        for c in range(len(names)):
            best[c], share[c] = _medoid(x, w, label, names[c])
        falling = _rising(-share)
        for c in range(len(names)):
            medoids[u, c] = own[best[falling[c]]]
            weights[u, c] = share[falling[c]] / total
            for j in range(n):
                if label[j] == names[falling[c]]:
                    labels[first[u] + j] = c
                    for d in range(x.shape[1]):
                        centres[u, c, d] += w[j] * x[j, d]


@compiled
def _ward(x: np.ndarray, a: np.ndarray, b: np.ndarray, height: np.ndarray) -> None:
    """Merges the rows of x until one cluster is left.

    Step i merges the cluster that contains row `b[i]` into the cluster that contains row `a[i]`. The square of
    `height[i]` is twice the scatter that the merge adds.
    """
    n = len(x)
    apart = _distances(x)
    size = np.ones(n)
    alive = np.ones(n, np.bool_)
    chain = np.empty(n + 1, np.int64)
    length = 0
    for step in range(n - 1):
        if length == 0:
            chain[0] = np.argmax(alive)
            length = 1
        length, near = _grow_chain(apart, alive, chain, length)
        top, best = chain[length - 1], chain[length - 2]
        length -= 2
        low, high = min(top, best), max(top, best)
        a[step], b[step], height[step] = low, high, np.sqrt(near)
        _merge(apart, size, alive, low, high, near)


@compiled
def _distances(x: np.ndarray) -> np.ndarray:
    """Returns the squared distances of all rows, float64 [n, n]."""
    n = len(x)
    apart = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            apart[i, j] = apart[j, i] = _squared_distance(x[i], x[j])
    return apart


@compiled
def _squared_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Sums in one fixed order over eight lanes; with a single sum, each addition would wait for the one before it."""
    lanes = np.zeros(8)
    whole = len(a) // 8 * 8
    for d in range(0, whole, 8):
        for i in range(8):
            gap = a[d + i] - b[d + i]
            lanes[i] += gap * gap
    total = 0.0
    for i in range(8):
        total += lanes[i]
    for d in range(whole, len(a)):
        gap = a[d] - b[d]
        total += gap * gap
    return total


@compiled
def _grow_chain(apart: np.ndarray, alive: np.ndarray, chain: np.ndarray, length: int) -> tuple[int, float]:
    """Appends nearest neighbours until the last two clusters are nearest to each other; returns length and distance.

    Of equally near clusters, the one before the last is taken; otherwise the chain might never end.
    """
    while True:
        top = chain[length - 1]
        best = chain[length - 2] if length > 1 else -1
        near = apart[top, best] if length > 1 else np.inf
        for j in range(len(alive)):
            if alive[j] and j != top and apart[top, j] < near:
                best, near = j, apart[top, j]
        if length > 1 and best == chain[length - 2]:
            return length, near
        chain[length] = best
        length += 1


@compiled
def _merge(apart: np.ndarray, size: np.ndarray, alive: np.ndarray, low: int, high: int, near: float) -> None:
    """Merges cluster `high` into `low` and updates the distances by the formula of Lance and Williams."""
    for j in range(len(alive)):
        if alive[j] and j != low and j != high:
            new = (
                (size[low] + size[j]) * apart[low, j] + (size[high] + size[j]) * apart[high, j] - size[j] * near
            ) / (size[low] + size[high] + size[j])
            apart[low, j] = new
            apart[j, low] = new
    size[low] += size[high]
    alive[high] = False


@compiled
def _number_of_clusters(height: np.ndarray, split: float, most: int) -> int:
    """Counts the clusters that remain when merges of at least the fraction `split` of the scatter are undone."""
    scatter = 0.0
    for i in range(len(height)):
        scatter += height[i] * height[i]
    undone = 0
    for i in range(len(height)):
        if height[i] * height[i] >= split * scatter and scatter > 1e-12:
            undone += 1
    return min(most, undone + 1, len(height) + 1)


@compiled
def _cut(a: np.ndarray, b: np.ndarray, height: np.ndarray, clusters: int) -> np.ndarray:
    """Carries out the lowest merges until `clusters` are left; returns each row's cluster, named by its first row."""
    n = len(height) + 1
    label = np.arange(n)
    order = _rising(height)
    for i in range(n - clusters):
        keep, gone = label[a[order[i]]], label[b[order[i]]]
        for j in range(n):
            if label[j] == gone:
                label[j] = keep
    return label


@compiled
def _rising(values: np.ndarray) -> np.ndarray:
    """Returns a stable ascending order, by insertion: compiling NumPy's argsort would take seconds."""
    order = np.arange(len(values))
    for i in range(1, len(values)):
        j, moved = i, order[i]
        while j > 0 and values[order[j - 1]] > values[moved]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = moved
    return order


@compiled
def _medoid(x: np.ndarray, w: np.ndarray, label: np.ndarray, name: int) -> tuple[int, float]:
    """Finds the member of a cluster that is nearest to all members; returns its row and the cluster's weight.

    The sum of the squared distances of m to the members x is least where count · ‖m‖² − 2 m · Σ x is least.
    """
    centre = np.zeros(x.shape[1])
    weight = 0.0
    count = 0
    for j in range(len(label)):
        if label[j] == name:
            count += 1
            weight += w[j]
            for d in range(x.shape[1]):
                centre[d] += x[j, d]
    best, least = -1, np.inf
    for j in range(len(label)):
        if label[j] == name:
            cost = 0.0
            for d in range(x.shape[1]):
                cost += count * x[j, d] * x[j, d] - 2 * x[j, d] * centre[d]
            if cost < least:
                best, least = j, cost
    return best, weight
