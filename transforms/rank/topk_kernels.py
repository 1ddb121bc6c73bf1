"""Compiled loops of the exact top k: estimates of scores choose candidates, and float64 scores rank them."""

from __future__ import annotations

import numpy as np

from unisono.transforms.base.compiled import compiled

_COLUMNS = 128  # see `scan`
_GROUP_ROWS = 64  # pairs of users and items are scored in groups of so many items, which stay in the caches
_LANES = 32  # sums run in this many lanes; with a single sum, each addition would have to wait for the one before it


@compiled
def highest(rows: np.ndarray, factor: np.ndarray, out: np.ndarray) -> None:
    """Writes each row's highest absolute value into `out`, after the columns are multiplied by `factor`.

    Args:
        rows: float32 [n, dim].
        factor: float32 [dim].
        out: float32 [n], receives the values.
    """
    for i in range(len(rows)):
        row = rows[i]
        most = np.float32(0)
        for d in range(len(factor)):
            most = max(most, abs(row[d] * factor[d]))
        out[i] = most


@compiled
def quantize(
    rows: np.ndarray,
    factor: np.ndarray,
    step: np.ndarray,
    places: np.ndarray,
    out: np.ndarray,
    size: np.ndarray,
    rest: np.ndarray,
) -> None:
    """Rounds rows to whole steps.

    Args:
        rows: float32 [n, dim].
        factor: float32 [dim], powers of two or 0; the columns are multiplied by them first.
        step: float32 [n], the length of a row's step, at least 1/127 of the row's highest absolute value, above 0.
        places: int64 [n], where in `out`, `size` and `rest` a row's results go.
        out: int8 [m, dim], receives the rounded rows, in steps.
        size: float64 [m], receives the L2 norm of the rounded rows.
        rest: float64 [m], receives the L2 norm of what rounding took away.
    """
    dim = rows.shape[1]
    whole = dim // _LANES * _LANES
    row, near = np.empty(dim, np.float32), np.empty(dim, np.float32)
    sizes, rests = np.empty(_LANES), np.empty(_LANES)
    for i in range(len(rows)):
        inverse, length = np.float32(1) / step[i], np.float64(step[i])
        source, into = rows[i], out[places[i]]
        for d in range(dim):
            row[d] = source[d] * factor[d]
            near[d] = max(np.float32(-127), min(np.float32(127), np.rint(row[d] * inverse)))
            into[d] = np.int8(near[d])
        sizes[:] = 0
        rests[:] = 0
        for at in range(0, whole, _LANES):
            x, y = row[at : at + _LANES], near[at : at + _LANES]
            for j in range(_LANES):
                rounded = np.float64(y[j]) * length
                gone = np.float64(x[j]) - rounded
                sizes[j] += rounded * rounded
                rests[j] += gone * gone
        for d in range(whole, dim):
            rounded = np.float64(near[d]) * length
            gone = np.float64(row[d]) - rounded
            sizes[0] += rounded * rounded
            rests[0] += gone * gone
        size[places[i]], rest[places[i]] = np.sqrt(sizes.sum()), np.sqrt(rests.sum())


@compiled
def guess(product: np.ndarray, scale: np.ndarray, place: int, out: np.ndarray) -> None:
    """Guesses the k-th estimate of each user from products with a sample of the items.

    Args:
        product: int32 or float32 [users, sample].
        scale: float64 [sample], what the products are multiplied by.
        place: which estimate of the sample is the guess, 1 for the highest, at most _COLUMNS.
        out: float32 [users], receives the guesses.
    """
    best = np.empty(_COLUMNS, np.float32)
    for u in range(len(product)):
        row = product[u]
        best[:] = -np.inf
        for at in range(0, len(row), _COLUMNS):
            part, by = row[at : at + _COLUMNS], scale[at : at + _COLUMNS]
            for c in range(len(part)):
                best[c] = max(best[c], np.float32(part[c] * by[c]))
        out[u] = np.partition(best, _COLUMNS - place)[_COLUMNS - place]


@compiled
def scan(
    product: np.ndarray,
    bits: np.ndarray,
    floats: bool,
    scale: float,
    error: np.ndarray,
    ids: np.ndarray,
    hidden: np.ndarray,
    seen: np.ndarray,
    seen_start: np.ndarray,
    seen_stop: np.ndarray,
    k: int,
    bounds: np.ndarray,
    kept: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    counts: np.ndarray,
    limits: np.ndarray,
    crowded: np.ndarray,
) -> None:
    """Adds the items of one block to the candidates of some users.

    The items of a block form columns: column c has the items c, c + _COLUMNS, c + 2 · _COLUMNS and so on of the block.
    Most columns are passed after one comparison, because their highest product is too low.

    Args:
        product: int32 or float32 [users, width], inner products of the users and the block's items.
        bits: int32 [users, width], the memory of `product`.
        floats: whether `product` is float32.
        scale: what products are multiplied by.
        error: float64 [users], the error of a scaled product.
        ids: int32 [width], the index of each item.
        hidden: bool [items], true for an item that never appears.
        seen: int64, items that must not appear, by user and ascending.
        seen_start: int64 [users], position in `seen` of the user's first item.
        seen_stop: int64 [users], position in `seen` behind the user's last item.
        k: how many items are wanted.
        bounds: float32 [users], the lowest estimate of interest; raised to what k candidates are sure to reach.
        kept: int32 [users, room], the candidates' item indices; extended.
        lower: float32 [users, room], the lowest estimates that the candidates can have; extended.
        upper: float32 [users, room], the highest estimates that the candidates can have; extended.
        counts: int64 [users], number of candidates; raised.
        limits: int64 [users], the number of candidates at which those that cannot be among the best are dropped, above
            k and up to `room`; raised.
        crowded: bool [users], set for a user whose candidates need more than `room` places.
    """
    best = np.empty(_COLUMNS, np.int32)
    for u in range(len(counts)):
        if crowded[u]:
            continue
        row, far, count, limit = product[u], error[u], counts[u], limits[u]
        least = _least(bounds[u], far, scale, floats)
        _best_of_columns(bits[u], floats, best)
        for c in range(_COLUMNS):
            if best[c] < least:
                continue
            for j in range(c, len(row), _COLUMNS):
                if _in_order(bits[u, j], floats) < least:
                    continue
                if hidden[ids[j]] or _contains(seen, seen_start[u], seen_stop[u], ids[j]):
                    continue
                if count == limit:
                    bounds[u], count = _compact(kept[u], lower[u], upper[u], count, k)
                    if count == kept.shape[1]:
                        crowded[u] = True
                        break
                    limit = min(max(2 * count, limit), kept.shape[1])
                    least = _least(bounds[u], far, scale, floats)
                    if _in_order(bits[u, j], floats) < least:
                        continue
                estimate = np.float64(row[j]) * scale
                kept[u, count], lower[u, count], upper[u, count] = ids[j], estimate - far, estimate + far
                count += 1
            if crowded[u]:
                break
        counts[u], limits[u] = count, limit


@compiled
def _least(bound: float, error: float, scale: float, floats: bool) -> np.int32:
    """Returns a number that each product, as `_in_order` returns it, reaches whose score can reach the bound."""
    product = (np.float64(bound) - error) / scale
    product -= abs(product) * 1e-6 + 1e-37  # for the rounding here; below −0.0
    if not floats:
        return np.int32(max(-2147483647.0, min(2147483647.0, np.floor(product))))
    one = np.full(1, max(-3e38, min(3e38, product)), np.float32)
    return _in_order(one.view(np.int32)[0], True)


@compiled
def _in_order(bits: np.int32, floats: bool) -> np.int32:
    """Returns integers that are in the order of products.

    Negative float32 values are in the order of their bits if all bits but the sign are turned over.
    """
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)) if floats else bits


@compiled
def _best_of_columns(bits: np.ndarray, floats: bool, best: np.ndarray) -> None:
    """Writes each column's highest product into `best`, as `_in_order` returns it.

    Integers are compared, also for float32, since only then the compiler uses vector instructions.
    """
    turn = np.int32(0x7FFFFFFF) if floats else np.int32(0)
    best[:] = np.int32(-0x80000000)
    for at in range(0, len(bits), _COLUMNS):
        part = bits[at : at + _COLUMNS]
        for c in range(len(part)):
            best[c] = max(best[c], part[c] ^ ((part[c] >> np.int32(31)) & turn))


@compiled
def _contains(ascending: np.ndarray, start: int, stop: int, value: int) -> bool:
    """Says whether a value is in a part of an array, by halving."""
    end = stop
    while start < stop:
        middle = (start + stop) // 2
        if ascending[middle] < value:
            start = middle + 1
        else:
            stop = middle
    return start < end and ascending[start] == value


@compiled
def _compact(
    kept: np.ndarray, lower: np.ndarray, upper: np.ndarray, count: int, k: int
) -> tuple[np.float32, int]:
    """Drops the candidates that cannot be among the best k; returns the new bound and number of candidates."""
    bound = np.partition(lower[:count], count - k)[count - k]
    n = 0
    for i in range(count):
        if upper[i] >= bound:
            kept[n], lower[n], upper[n] = kept[i], lower[i], upper[i]
            n += 1
    return bound, n


@compiled
def too_high(guesses: np.ndarray, lower: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """Says for which users fewer than k candidates are sure to reach the guess, bool [users].

    Args:
        guesses: float32 [users]; the lowest float32 number for no guess.
        lower: float32 [users, room], the lowest estimates that the candidates can have.
        counts: int64 [users], number of candidates.
        k: how many items are wanted.
    """
    out = np.zeros(len(counts), np.bool_)
    for u in range(len(counts)):
        if guesses[u] > np.finfo(np.float32).min:
            reach = 0
            for i in range(counts[u]):
                reach += lower[u, i] >= guesses[u]
            out[u] = reach < k
    return out


@compiled
def rank(
    queries: np.ndarray,
    items: np.ndarray,
    ranks: np.ndarray,
    unit: np.ndarray,
    kept: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    counts: np.ndarray,
    out: np.ndarray,
    out_scores: np.ndarray,
) -> None:
    """Scores the candidates of some users in float64 and writes each user's best.

    The k candidates that are sure to score highest are scored first. Others that cannot reach the lowest of these
    scores are not scored.

    Args:
        queries: float32 [users, dim].
        items: float32 [items, dim].
        ranks: int64 [items]; among equal scores, the item of lower rank comes first.
        unit: float64 [users], the score of an estimate of 1.
        kept: int [users, room], item indices of the candidates.
        lower: float32 [users, room], the lowest estimates that the candidates can have.
        upper: float32 [users, room], the highest estimates that the candidates can have.
        counts: int64 [users], number of candidates.
        out: int64 [users, k], receives item indices; places without an item keep what they hold.
        out_scores: float32 [users, k], receives the scores.
    """
    k = out.shape[1]
    exact = np.empty(kept.shape, np.float32)
    state = np.zeros(kept.shape, np.int8)  # 1: to be scored, 2: scored
    for u in range(len(counts)):
        n = counts[u]
        state[u, :n] = 1
        if n > k:
            state[u, :n] = lower[u, :n] >= np.partition(lower[u, :n], n - k)[n - k]
    _score(queries, items, kept, counts, state, exact)
    for u in range(len(counts)):
        n = counts[u]
        if n > k:
            scored = exact[u, :n][state[u, :n] == 2]
            least = np.float64(np.partition(scored, len(scored) - k)[len(scored) - k])
            for i in range(n):
                if state[u, i] == 0 and np.float64(upper[u, i]) * unit[u] >= least:
                    state[u, i] = 1
    _score(queries, items, kept, counts, state, exact)
    for u in range(len(counts)):
        chosen = state[u, : counts[u]] == 2
        _sort(exact[u, : counts[u]][chosen], kept[u, : counts[u]][chosen], ranks, out[u], out_scores[u])


@compiled
def _score(
    queries: np.ndarray, items: np.ndarray, kept: np.ndarray, counts: np.ndarray, state: np.ndarray, exact: np.ndarray
) -> None:
    """Scores pairs in order of items, because reading an item from memory takes longer than its inner product."""
    groups, room = len(items) // _GROUP_ROWS + 1, kept.shape[1]
    ends = np.zeros(groups + 1, np.int64)
    for u in range(len(counts)):
        for i in range(counts[u]):
            if state[u, i] == 1:
                ends[kept[u, i] // _GROUP_ROWS + 1] += 1
    ends = np.cumsum(ends)
    order = np.empty(ends[-1], np.int64)
    for u in range(len(counts)):
        for i in range(counts[u]):
            if state[u, i] == 1:
                group = kept[u, i] // _GROUP_ROWS
                order[ends[group]] = u * room + i
                ends[group] += 1
                state[u, i] = 2
    lanes = np.empty(_LANES)
    for place in order:
        u, i = place // room, place % room
        exact[u, i] = np.float32(_dot(queries[u], items[kept[u, i]], lanes))


@compiled
def _sort(exact: np.ndarray, mine: np.ndarray, ranks: np.ndarray, out: np.ndarray, out_scores: np.ndarray) -> None:
    """Writes the items of highest score, best first; among equal scores, the one of lower rank comes first."""
    k = len(out)
    if len(exact) > k:
        good = exact >= np.partition(exact, len(exact) - k)[len(exact) - k]
        exact, mine = exact[good], mine[good]
    order = np.argsort(-exact)
    n = len(exact)
    at = 0
    while at < min(k, n):
        end = at + 1
        while end < n and exact[order[end]] == exact[order[at]]:
            end += 1
        if end > at + 1:
            level = order[at:end].copy()
            order[at:end] = level[np.argsort(ranks[mine[level]])]
        at = end
    for at in range(min(k, n)):
        out[at], out_scores[at] = mine[order[at]], exact[order[at]]


@compiled
def _dot(a: np.ndarray, b: np.ndarray, lanes: np.ndarray) -> float:
    """Returns the inner product in float64, summed in one fixed order over `lanes`, which is overwritten."""
    whole = len(a) // _LANES * _LANES
    lanes[:] = 0
    for at in range(0, whole, _LANES):
        x, y = a[at : at + _LANES], b[at : at + _LANES]
        for i in range(_LANES):
            lanes[i] += np.float64(x[i]) * np.float64(y[i])
    total = 0.0
    for i in range(_LANES):
        total += lanes[i]
    for d in range(whole, len(a)):
        total += np.float64(a[d]) * np.float64(b[d])
    return total
