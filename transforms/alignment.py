"""The joint space: fitted from moments alone, applied row by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, combinations
from typing import Any

import numpy as np
import safetensors.numpy
import scipy.linalg

from transforms.errors import JobError
from transforms.moments import Moments

_FORMAT = 1  # of space.safetensors and space.json
_BLOCK_ROWS = 256  # rows projected at a time
_RANK_FLOOR = 1e-10  # directions with less than this part of the largest variance are taken for none
_OAS_FACTOR = 5.0  # how much stronger than the OAS shrinkage the default regularisation is
_ZERO = 1e-12  # relative length under which a projection is rounding


# --- the space ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Space:
    """One linear map per modality into the common space.

    Attributes:
        method: `gcca`, `cca` or `pca`: what was solved.
        means: float64 [d_m] of each modality.
        maps: float64 [d_m, dim] of each modality; columns are axes, the most important first.
        info: what it was fitted on and how well, in JSON types; see `fit_space`.
    """

    method: str
    means: Mapping[str, np.ndarray]
    maps: Mapping[str, np.ndarray]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it can map, in ascending order."""
        return tuple(sorted(self.maps))

    @property
    def dim(self) -> int:
        """The number of axes."""
        return int(next(iter(self.maps.values())).shape[1])

    @cached_property
    def space_id(self) -> str:
        """Sixteen hex digits that change whenever a projection could."""
        digest = hashlib.sha256(self.method.encode())
        for m in self.modalities:
            for array in (self.means[m], self.maps[m]):
                digest.update(f"|{m}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array, "<f8").tobytes())
        return digest.hexdigest()[:16]

    def with_info(self, **entries: Any) -> Space:
        """Copies the space with further entries in `info`; its `space_id` stays."""
        return replace(self, info={**self.info, **entries})

    def project(self, modality: str, x: np.ndarray) -> np.ndarray:
        """Maps embeddings into the space: (x − mean) · map, scaled to unit length.

        Args:
            modality: one of `modalities`.
            x: any float [n, d_m], finite.

        Returns:
            float32 [n, dim], unit rows; zeros where x has no part in the space, as when it equals the mean.

        Guarantees: a row's bits depend on that row alone. (Blocks always have the same size, so that BLAS
        does the same operations in the same order for each row; the arithmetic is float64.)

        Raises:
            JobError: the embeddings have another length than those that the space was fitted on.
        """
        mean, weights = self.means[modality], self.maps[modality]
        if x.shape[1] != len(mean):
            raise JobError(
                f"encoders.{modality}: embeddings have {x.shape[1]} values, and the space was fitted on "
                f"{len(mean)}; fit it again, or encode with the encoder that it was fitted on"
            )
        # What rounding alone leaves of an embedding that equals the mean.
        floor = _ZERO * float(np.linalg.norm(mean)) * float(np.linalg.norm(weights))
        out = np.zeros((len(x), self.dim), np.float32)
        block = np.empty((_BLOCK_ROWS, len(mean)))
        for start in range(0, len(x), _BLOCK_ROWS):
            n = min(len(x) - start, _BLOCK_ROWS)
            np.subtract(x[start : start + n], mean, out=block[:n])
            block[n:] = 0.0
            y = block @ weights
            norm = np.sqrt(np.einsum("ij,ij->i", y, y))
            keep = norm > floor
            norm[~keep] = np.inf
            out[start : start + n] = (y / norm[:, None])[:n]
        return out

    def to_bytes(self) -> bytes:
        """Writes `space.safetensors`: tensors `mean.<m>`, `map.<m>`; what `to_json` gives is its metadata."""
        tensors = {f"mean.{m}": np.ascontiguousarray(self.means[m]) for m in self.modalities}
        tensors |= {f"map.{m}": np.ascontiguousarray(self.maps[m]) for m in self.modalities}
        return safetensors.numpy.save(tensors, metadata={"space": self.to_json(indent=None)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Space:
        """Reads what `to_bytes` wrote.

        Raises:
            JobError: the bytes are not a space, or not the one they say they are.
        """
        try:
            tensors = safetensors.numpy.load(data)
            # safetensors gives metadata of files only; it is in the JSON header, after eight bytes of length.
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            body = json.loads(header["__metadata__"]["space"])
            maps = {k.removeprefix("map."): v for k, v in tensors.items() if k.startswith("map.")}
            out = cls(body["method"], {m: tensors[f"mean.{m}"] for m in maps}, maps, body["info"])
        except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as e:
            raise JobError(f"space.safetensors: not a space of Unisono's ({e}); fit the space again") from e
        if out.space_id != body["space_id"]:
            raise JobError(
                f"space.safetensors: holds space {out.space_id} and says {body['space_id']}; "
                "the file is damaged; fit the space again"
            )
        return out

    def to_json(self, indent: int | None = 1) -> str:
        """Writes `space.json`: all but the numbers of the maps."""
        body = {
            "format": _FORMAT,
            "space_id": self.space_id,
            "method": self.method,
            "dim": self.dim,
            "modalities": {m: len(self.means[m]) for m in self.modalities},
            "info": self.info,
        }
        return json.dumps(body, indent=indent, sort_keys=True, allow_nan=False) + "\n"


# --- fitting -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    dim: int
    regularization: float | None
    weighting: float


Solution = tuple[dict[str, np.ndarray], dict[str, Any]]  # maps, what to say about them


def max_dim(method: str, dims: Mapping[str, int]) -> int:
    """The most axes a method can find, given each modality's embedding length.

    CCA and GCCA: the embeddings together less the longest, since a symmetric matrix with a zero diagonal
    block of that size has no more positive eigenvalues (Cauchy's interlacing); for two modalities that is the
    shorter one.
    """
    lengths = sorted(dims.values())
    return sum(lengths) if len(lengths) == 1 else sum(lengths[:-1])


def fit_space(
    moments: Moments,
    method: str = "auto",
    dim: int = 256,
    regularization: float | None = None,
    weighting: float = 1.0,
) -> Space:
    """Fits a joint space.

    Args:
        moments: of the embeddings.
        method: `cca` (two modalities), `gcca` (two or more), or `auto`: by the number of modalities. With one
            modality that can be used the space is its centred principal components, whatever was asked.
        dim: how many axes; fewer where the data has fewer on which modalities agree.
        regularization: r in λ_m = r · trace(C_mm) / d_m. None: five times the intensity of OAS, by modality;
            see `oas_intensity`.
        weighting: axes are scaled by their correlation to this power. 0: all alike.

    Returns:
        A space whose `info` holds `items` and `pairs` (how many rows), `unseen_pairs`, `left_out` (modality:
        why), `unaligned` (modalities never seen with another), `spectrum`, `rank`, `regularization` and
        `axes_asked`.

    Raises:
        JobError: a setting is not allowed, or no modality can be used.
    """
    _check(moments, method, dim, regularization, weighting)
    left_out = {m: why for m in moments.dims if (why := _unusable(moments, m))}
    used = [m for m in moments.dims if m not in left_out]
    if not used:
        why = "; ".join(f"{m}: {reason}" for m, reason in left_out.items()) or "there are no embeddings"
        raise JobError(f"space: no modality can be fitted ({why}); give two different items of one at least")
    solved = "pca" if len(used) == 1 else "cca" if len(used) == 2 else "gcca"
    maps, found = _SOLVERS[solved](moments, used, _Settings(dim, regularization, weighting))
    pairs = list(combinations(moments.dims, 2))
    info = {
        "asked": method,
        "axes_asked": dim,
        "items": {m: moments.count(m) for m in moments.dims},
        "pairs": {f"{a}-{b}": moments.count(a, b) for a, b in pairs},
        "unseen_pairs": [f"{a}-{b}" for a, b in pairs if not moments.count(a, b)],
        "left_out": left_out,
        **found,
    }
    return Space(solved, {m: moments.mean(m) for m in used}, maps, info)


def oas_intensity(covariance: np.ndarray, n: int) -> float:
    """Estimates how much of (trace C / d) · I best replaces as much of C, from n rows: 0 … 1.

    Source: Chen, Wiesel, Eldar, Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE TSP 58(10),
    2010, eq. 23 (oracle approximating shrinkage).
    """
    d = len(covariance)
    square, trace2 = float(np.sum(covariance**2)), float(np.trace(covariance)) ** 2
    below = (n + 1 - 2 / d) * (square - trace2 / d)
    return min(1.0, ((1 - 2 / d) * square + trace2) / below) if below > 0 else 1.0


def _check(moments: Moments, method: str, dim: int, regularization: float | None, weighting: float) -> None:
    """Refuses settings that cannot be met."""
    if method not in METHODS:
        raise JobError(f"space.method: {method!r} is none of {', '.join(METHODS)}; choose one of them")
    if method == "cca" and len(moments.dims) > 2:
        raise JobError(
            f"space.method: cca aligns two modalities, and the job has {', '.join(moments.dims)}; "
            "use gcca or auto"
        )
    most = max_dim(method, moments.dims) if moments.dims else dim
    if not 1 <= dim <= most:
        lengths = ", ".join(f"{m} {d}" for m, d in moments.dims.items())
        raise JobError(f"space.dim: {dim} is not in 1 … {most}, which embeddings of {lengths} values allow")
    if regularization is not None and not 0 <= regularization < np.inf:
        raise JobError(f"space.regularization: {regularization} is not a number ≥ 0; set one or leave it out")
    if not 0 <= weighting < np.inf:
        raise JobError(f"space.weighting: {weighting} is not a number ≥ 0; set one, or leave it out")


def _unusable(moments: Moments, m: str) -> str:
    """Says why a modality cannot be fitted, or nothing."""
    if (n := moments.count(m)) < 2:
        return f"{n} of at least 2 items have it"
    return "" if np.trace(moments.covariance(m, m)) > 0 else "all its embeddings are alike"


@dataclass(frozen=True)
class _Whitener:
    """D^{-1/2} of one modality on its principal axes: float64 [d, rank], D = C + λI less the null space."""

    basis: np.ndarray
    axes: np.ndarray
    regularization: float


def _principal(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances, largest first, and axes [d, rank], of the directions that have any variance."""
    variances, axes = scipy.linalg.eigh(covariance)
    keep = np.flatnonzero(variances > _RANK_FLOOR * variances[-1])[::-1]
    return variances[keep], axes[:, keep]


def _whiten(moments: Moments, m: str, regularization: float | None) -> _Whitener:
    covariance = moments.covariance(m, m)
    if regularization is None:
        rho = min(oas_intensity(covariance, moments.count(m)), 0.999)
        regularization = _OAS_FACTOR * rho / (1 - rho)
    variances, axes = _principal(covariance)
    ridge = regularization * np.trace(covariance) / len(covariance)
    return _Whitener(axes / np.sqrt(variances + ridge), axes, float(regularization))


def _solve_gcca(moments: Moments, used: list[str], settings: _Settings) -> Solution:
    """Regularised MAX-VAR generalised CCA; with two modalities, regularised CCA.

    With D = blockdiag(C_aa + λ_a I), the axes are the leading eigenvectors v of
    D^{-1/2} (C + blockdiag(λ_a I)) D^{-1/2}, whose diagonal blocks are identities (with C alone in the middle
    a modality's own large variances would count as agreement). Its eigenvalue μ over K modalities gives the
    mean canonical correlation ρ = (μ − 1) / (K − 1). Maps are W_a = √K · D_a^{-1/2} v_a · ρ^weighting: with
    weighting 0 a projection that all modalities share has unit variance in each. Axes with ρ ≤ 0 are dropped.
    Each axis has the sign that makes its largest entry over all maps positive.

    C_ab are available-case covariances, so the matrix need not be positive semidefinite; its top is used.

    Source: Kettenring, "Canonical analysis of several sets of variables", Biometrika 58(3), 1971 (MAX-VAR);
    Takane, Hwang, Abdi, "Regularized multiple-set canonical correlation analysis", Psychometrika 73(4), 2008
    (λ on both sides, null spaces left out); van de Velden, Takane, "Generalized canonical correlation
    analysis with missing values", Computational Statistics 27, 2012; Li et al., "CSA: data-efficient mapping
    of unimodal features to multimodal features", 2024 (axes weighted by correlation).
    """
    paired = [m for m in used if any(m != other and moments.count(m, other) > 1 for other in used)]
    whiteners = {m: _whiten(moments, m, settings.regularization) for m in used}
    # The longest modality's rank comes off for the reason that `max_dim` gives.
    ranks = [whiteners[m].basis.shape[1] for m in paired]
    axes = min(settings.dim, sum(ranks) - max(ranks)) if paired else 0
    maps, correlations = _joint_axes(moments, {m: whiteners[m] for m in paired}, axes)
    if not correlations.size:  # modalities never meet, or share nothing: each keeps its own neighbours
        paired = []
    axes = correlations.size or min(settings.dim, max(w.axes.shape[1] for w in whiteners.values()))
    maps = {m: maps[m] * correlations**settings.weighting for m in paired}
    for m in used:
        if m not in maps:
            own = whiteners[m].axes[:, :axes]
            maps[m] = np.pad(own * _signs(own), ((0, 0), (0, axes - own.shape[1])))
    return maps, {
        "unaligned": [m for m in used if m not in paired],
        "spectrum": correlations.tolist(),
        "rank": {m: w.axes.shape[1] for m, w in whiteners.items()},
        "regularization": {m: w.regularization for m, w in whiteners.items()},
        "weighting": settings.weighting,
    }


def _joint_axes(
    moments: Moments, whiteners: Mapping[str, _Whitener], count: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Solves for up to `count` shared axes: maps before weighting; correlations, falling and above zero."""
    sizes = [w.basis.shape[1] for w in whiteners.values()]
    ends = accumulate(sizes)
    spans = {m: slice(end - size, end) for m, size, end in zip(whiteners, sizes, ends, strict=True)}
    matrix = np.eye(sum(sizes))
    for a, b in combinations(whiteners, 2):
        if moments.count(a, b) > 1:
            cross = whiteners[a].basis.T @ moments.covariance(a, b) @ whiteners[b].basis
            matrix[spans[a], spans[b]] = cross
            matrix[spans[b], spans[a]] = cross.T
    if not count:
        return {}, np.empty(0)
    top = [len(matrix) - count, len(matrix) - 1]
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=top, overwrite_a=True)
    correlations = (values[::-1] - 1) / (len(whiteners) - 1)
    keep = correlations > _ZERO
    vectors = vectors[:, ::-1][:, keep] * np.sqrt(len(whiteners))
    maps = {m: w.basis @ vectors[spans[m]] for m, w in whiteners.items()}
    signs = _signs(np.concatenate(list(maps.values())))
    return {m: w * signs for m, w in maps.items()}, correlations[keep]


def _solve_pca(moments: Moments, used: list[str], settings: _Settings) -> Solution:
    """Principal components of a single modality: cosines are those of the centred embeddings.

    Source: Hotelling, "Analysis of a complex of statistical variables into principal components", 1933.
    """
    covariance = moments.covariance(used[0], used[0])
    variances, axes = _principal(covariance)
    axes = axes[:, : settings.dim]
    part = variances[: settings.dim] / np.trace(covariance)
    return {used[0]: axes * _signs(axes)}, {
        "unaligned": [],
        "spectrum": part.tolist(),
        "rank": {used[0]: len(variances)},
        "regularization": {},
        "weighting": 0.0,
    }


def _signs(axes: np.ndarray) -> np.ndarray:
    """±1 for each column, so that its largest entry in size becomes positive."""
    return np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)[0] < 0, -1.0, 1.0)


METHODS = ("auto", "cca", "gcca")
_SOLVERS: dict[str, Callable[[Moments, list[str], _Settings], Solution]] = {
    "pca": _solve_pca,
    "cca": _solve_gcca,
    "gcca": _solve_gcca,
}
