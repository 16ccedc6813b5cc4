"""Non-negative least squares for a handful of unknowns.

Used by the calibration. It needs no numerical library, because the clients of llmosd have none.
"""

from __future__ import annotations

from collections.abc import Sequence


def fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Non-negative coefficients with which the sums of the rows come closest to `values`, by relative error.

    All values are above 0. While a coefficient would be negative, the most negative one becomes 0 and the others are
    fitted again (a short form of Lawson and Hanson, "Solving Least Squares Problems", chapter 23). Raises
    `ZeroDivisionError` if the rows do not determine the coefficients.
    """
    scaled = [[part / value for part in row] for row, value in zip(rows, values, strict=True)]
    active = list(range(len(rows[0])))
    while True:
        solution = _solve([[row[index] for index in active] for row in scaled])
        least = min(range(len(active)), key=solution.__getitem__)
        if solution[least] >= 0:
            break
        del active[least]
    result = [0.0] * len(rows[0])
    for index, value in zip(active, solution, strict=True):
        result[index] = value
    return result


def _solve(rows: list[list[float]]) -> list[float]:
    """Solve for a right side of ones by the normal equations. Columns are scaled to similar sizes first."""
    width = len(rows[0])
    sizes = [max(abs(row[index]) for row in rows) for index in range(width)]
    rows = [[part / size for part, size in zip(row, sizes, strict=True)] for row in rows]
    table = [
        [sum(row[i] * row[j] for row in rows) for j in range(width)] + [sum(row[i] for row in rows)]
        for i in range(width)
    ]
    for i in range(width):
        pivot = max(range(i, width), key=lambda other: abs(table[other][i]))
        table[i], table[pivot] = table[pivot], table[i]
        if abs(table[i][i]) < 1e-12:
            raise ZeroDivisionError("the rows do not determine the coefficients")
        for other in range(width):
            if other != i:
                factor = table[other][i] / table[i][i]
                table[other] = [a - factor * b for a, b in zip(table[other], table[i], strict=True)]
    return [table[i][width] / table[i][i] / sizes[i] for i in range(width)]
