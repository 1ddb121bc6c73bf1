"""The prediction of missing modalities against the formula, row by row."""

import numpy as np

from unisono.transforms.space.parts.imputer import ConditionalMean


def example():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 6))
    part = ConditionalMean(rng.standard_normal((3, 2)), root @ root.T, np.array([0.1, 0.2, 0.3]))
    return part, rng.standard_normal((3, 40, 2)), rng.random((3, 40)) < 0.5


def test_predictions_follow_the_formula():
    part, z, present = example()
    got = part.impute(np.where(present[:, :, None], z, np.nan), present)
    for i in range(40):
        here, there = np.flatnonzero(present[:, i]).tolist(), np.flatnonzero(~present[:, i]).tolist()
        np.testing.assert_array_equal(got[here, i], z[here, i])
        if not len(here):
            continue
        at = {k: slice(2 * k, 2 * k + 2) for k in range(3)}
        c_pp = np.block([[part.covariance[at[a], at[b]] + (a == b) * part.ridge[a] * np.eye(2) for b in here]
                         for a in here])  # fmt: skip
        difference = np.concatenate([z[k, i] - part.mean[k] for k in here])
        for m in there:
            c_mp = np.concatenate([part.covariance[at[m], at[k]] for k in here], axis=1)
            want = part.mean[m] + c_mp @ np.linalg.solve(c_pp, difference)
            np.testing.assert_allclose(got[m, i], want, rtol=1e-9, atol=1e-12)


def test_tensors_round_trip():
    part, z, present = example()
    again = ConditionalMean.from_tensors(part.tensors())
    np.testing.assert_array_equal(again.impute(z, present), part.impute(z, present))
