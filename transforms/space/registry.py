"""The alignment and fusion methods by name, and the classes of the parts that their spaces are made of.

A new method is one new file and one entry here. This module imports only `base`, so the job file can be checked
without importing any method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unisono.transforms.base.registry import Lazy, Registry

_FIT = "unisono.transforms.space.fit"
_PARTS = "unisono.transforms.space.parts"
_HEAD = {"trained_head": Lazy(f"{_PARTS}.trained:TrainedHead")}
_TORCH = {"models": ("torch",)}


@dataclass(frozen=True)
class AlignmentMethod(Lazy):
    """A way to fit the maps of a joint space.

    The function at `place` has one of two forms:
    without a sample, `solve(moments, used, spec) -> Solution`: the space is one linear map for each modality;
    with a sample, `fit(moments, used, spec, sample) -> Space`: the space may be made of any parts.
    `used` lists the modalities to fit. `sample` is a table of `item_id` and `<m>_embedding` (null: missing), its rows
    in ascending order of the ids.

    Attributes:
        needs_sample: whether the method is fitted on a sample of embeddings. Other methods see only the moments.
        axes: how many axes the method can find, see `max_dim`.
        most_modalities: the largest number of modalities that the method can align. None means any number.
        parts: the part classes that only this method's spaces use, by `kind`.
        libraries: optional libraries that fitting needs, by the extra of this package that brings them.
    """

    needs_sample: bool = False
    axes: Literal["shared", "hub", "own"] = "shared"
    most_modalities: int | None = None
    parts: Mapping[str, Lazy] = field(default_factory=dict)
    libraries: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def max_dim(self, dims: Mapping[str, int], hub: str | None = None) -> int:
        """Returns the largest number of axes that the method can find.

        With a single modality every method finds its principal components, at most as many as its embedding has values.
        With several modalities:
        `shared` (axes on which modalities correlate): the lengths of all embeddings except the longest, added up. The
        symmetric matrix that is solved has a zero diagonal block as large as the longest embedding, so it has no more
        positive eigenvalues (Cauchy's interlacing theorem). For two modalities this is the shorter length.
        `hub` (axes of one modality): the length of the hub's embedding, or of the longest one if no hub is named.
        `own` (axes that the method makes): the lengths of all embeddings, added up.

        Args:
            dims: the length of each modality's embeddings.
            hub: the job file's `space.hub`.
        """
        lengths = sorted(dims.values())
        if self.axes == "hub":
            return dims.get(hub or "", lengths[-1])
        if self.axes == "own" or len(lengths) == 1:
            return sum(lengths)
        return sum(lengths[:-1])


@dataclass(frozen=True)
class FusionMethod(Lazy):
    """A way to weigh the modalities of an item.

    The function at `place` is `fit(case: FusionCase) -> FusionFit`; both are in `fit.fusion`.

    Attributes:
        parts: the part classes that only this method's spaces use, by `kind`.
        libraries: optional libraries that fitting needs, by the extra of this package that brings them.
    """

    parts: Mapping[str, Lazy] = field(default_factory=dict)
    libraries: Mapping[str, Sequence[str]] = field(default_factory=dict)


METHODS: Registry[AlignmentMethod] = Registry("space.method", {
    "auto": AlignmentMethod(f"{_FIT}.canonical:solve_gcca"),
    "cca": AlignmentMethod(f"{_FIT}.canonical:solve_gcca", most_modalities=2),
    "gcca": AlignmentMethod(f"{_FIT}.canonical:solve_gcca"),
    "none": AlignmentMethod(f"{_FIT}.linear_maps:solve_none", axes="hub"),
    "whiten": AlignmentMethod(f"{_FIT}.linear_maps:solve_whiten", axes="hub"),
    "procrustes": AlignmentMethod(f"{_FIT}.linear_maps:solve_procrustes", axes="hub"),
    "ridge": AlignmentMethod(f"{_FIT}.linear_maps:solve_ridge", axes="hub"),
    "anchors": AlignmentMethod(
        f"{_FIT}.anchors:fit_anchors",
        needs_sample=True, axes="own", parts={"anchors": Lazy(f"{_PARTS}.anchors:AnchorMap")},
    ),
    "contrastive": AlignmentMethod(
        f"{_FIT}.trained.contrastive:fit_contrastive", needs_sample=True, axes="own", parts=_HEAD, libraries=_TORCH
    ),
    "attention": AlignmentMethod(
        f"{_FIT}.trained.cross_attention:fit_cross_attention",
        needs_sample=True, axes="own", parts={**_HEAD, "cross_attention": Lazy(f"{_PARTS}.trained:CrossAttention")},
        libraries=_TORCH,
    ),
    "autoencoder": AlignmentMethod(
        f"{_FIT}.trained.autoencoder:fit_autoencoder", needs_sample=True, axes="own", parts=_HEAD, libraries=_TORCH
    ),
})  # fmt: skip

FUSIONS: Registry[FusionMethod] = Registry("fusion.method", {
    "mean": FusionMethod(f"{_FIT}.fixed_weights:fit_mean"),
    "weighted": FusionMethod(f"{_FIT}.fixed_weights:fit_weighted"),
    "concat": FusionMethod(f"{_FIT}.concat:fit_concat"),
    "attention": FusionMethod(
        f"{_FIT}.trained.attention_pooling:fit_attention_pooling",
        parts={"attention_pool": Lazy(f"{_PARTS}.trained:AttentionWeights")}, libraries=_TORCH,
    ),
    "gated": FusionMethod(
        f"{_FIT}.trained.gated:fit_gated",
        parts={"gated": Lazy(f"{_PARTS}.trained:GatedWeights")}, libraries=_TORCH,
    ),
})  # fmt: skip

# The parts that any method's space may have.
_COMMON_PARTS = {
    "linear": Lazy(f"{_PARTS}.linear:LinearMap"),
    "fixed": Lazy(f"{_PARTS}.linear:FixedWeights"),
    "conditional_mean": Lazy(f"{_PARTS}.imputer:ConditionalMean"),
}


def part_class(kind: str) -> Any:
    """Imports the class of a part, see `parts.linear.Part`.

    Args:
        kind: the class's `kind`, as space.json names it.

    Raises:
        ValueError: no method has parts of this kind.
    """
    known = dict(_COMMON_PARTS)
    for parts in (*(m.parts for m in METHODS.values()), *(f.parts for f in FUSIONS.values())):
        known |= parts
    if kind not in known:
        raise ValueError(f"parts of kind {kind!r} are unknown")
    return known[kind].load()
