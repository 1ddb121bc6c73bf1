"""What a space says about itself: the data it was fitted on, how it weighs modalities, how it relates to earlier ones.

Each class has `to_json`, the content of `info` in space.json, and `from_json`, which also reads the files of earlier
runs: a key that such a file lacks takes its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """How close two versions of the same items' vectors are.

    Attributes:
        mean_cosine: the mean over the items of the cosine between the two vectors of an item.
        top10_overlap: the mean share of an item's ten nearest neighbours that both versions agree on, 0 … 1.
    """

    mean_cosine: float
    top10_overlap: float


@dataclass(frozen=True)
class ModalityShare:
    """How much one modality counts.

    Attributes:
        weight: its weight in the sum of an item's unit vectors.
        coverage: the fraction of the items that have it.
        spread: the standard deviation of its score between two items, see `fit.fusion.similarity_spread`.
        raw_length: the root mean square distance of its embeddings from their mean.
        share_raw: how much the modality would count if embeddings were added up as the encoders return them: its share
            of the sum of raw_length² · coverage over all modalities.
        share_unit: how much the modality would count if unit vectors were added up with equal weights: its share of the
            sum of spread · coverage over all modalities.
        share: how much the modality counts in the fused vectors: its share of the sum of weight² · spread over all
            modalities.
    """

    weight: float
    coverage: float
    spread: float
    raw_length: float
    share_raw: float
    share_unit: float
    share: float


@dataclass(frozen=True)
class FusionReport:
    """How the modalities of an item become one vector.

    Attributes:
        method: a name in `registry.FUSIONS`.
        impute: whether missing modalities are predicted from the present ones.
        modalities: how much each modality counts.
        findings: what the method reports in addition, in JSON types: `reliability` of learned weights, `training` of
            trained methods.
    """

    method: str
    impute: bool
    modalities: Mapping[str, ModalityShare]
    findings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the report in JSON types. The findings stand on the same level as the other keys."""
        shares = {m: asdict(share) for m, share in self.modalities.items()}
        return {**self.findings, "method": self.method, "impute": self.impute, "modalities": shares}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FusionReport:
        """Reads what `to_json` returned."""
        own, findings = _split(cls, data)
        own["modalities"] = {m: ModalityShare(**share) for m, share in own["modalities"].items()}
        return cls(**own, findings=findings)


@dataclass(frozen=True)
class RefitReport:
    """How a run came to its space: newly fitted or kept, and how its vectors compare with the published ones.

    Fields that do not apply are None and are not written.

    Attributes:
        policy: the job file's `space.refit`.
        refitted: True if the space was newly fitted, False if the published space was kept.
        published: the space_id of the published space.
        common: the number of items that both the sample and the published run have.
        before: the new vectors compared with the published ones, before the new space was turned.
        turned: the new vectors compared with the published ones, after the turn and before the two spaces were blended.
        rotation: the turn, one list for each row, rounded to six digits.
        inertia: the share of the published maps in the blended ones. 0 means that nothing was blended.
        mean_cosine: see `Comparison`, for the vectors that the run publishes.
        top10_overlap: see `Comparison`, for the vectors that the run publishes.
        drift: 1 − the mean cosine after the turn. Set under the policy `on_drift`.
        threshold: the job file's `space.drift_threshold`. Set under the policy `on_drift`.
        not_anchored: why the new space could not be turned to the published one.
        not_kept: why the published space could not have been kept.
    """

    policy: str
    refitted: bool
    published: str | None = None
    common: int | None = None
    before: Comparison | None = None
    turned: Comparison | None = None
    rotation: list[list[float]] | None = None
    inertia: float | None = None
    mean_cosine: float | None = None
    top10_overlap: float | None = None
    drift: float | None = None
    threshold: float | None = None
    not_anchored: str | None = None
    not_kept: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the report in JSON types, without the fields that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RefitReport:
        """Reads what `to_json` returned."""
        own, _ = _split(cls, data)
        for name in ("before", "turned"):
            if name in own:
                own[name] = Comparison(**own[name])
        return cls(**own)


@dataclass(frozen=True)
class SpaceInfo:
    """What a space was fitted on and how.

    Attributes:
        asked: the job file's `space.method`. None means that the space was not made by `fit_space`; the fields from
            `axes_asked` to `unaligned` are then empty and are not written.
        axes_asked: the number of axes asked for. The space has fewer if the data has fewer.
        items: the number of items that have each modality.
        pairs: the number of items that have both modalities of a pair, by "a-b".
        unseen_pairs: the pairs of modalities that no item has both of, as "a-b".
        left_out: the modalities that could not be fitted, each with the reason.
        unaligned: the modalities that could not be aligned with another one, for example because no item has both.
        findings: what the method reports in addition, in JSON types, such as `spectrum` or `training`. In space.json
            its keys stand on the same level as the others.
        fusion: how modalities are fused. None means that no fusion was fitted.
        settings: the settings that the space depends on, see `fit.run.FitSettings.key`. None means that it was not
            fitted by a run.
        encoder_ids: for each modality, the encoder_id of the embeddings that the space was fitted on.
        refit: how the run came to this space. None means that it was not fitted by a run.
        comparable: the space_ids of earlier spaces. Their vectors may be compared with the vectors of this space. The
            newest comes first. None means that no space was published when this one was fitted.
        not_comparable: why `comparable` is empty, or an empty string.
    """

    asked: str | None = None
    axes_asked: int | None = None
    items: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, int] = field(default_factory=dict)
    unseen_pairs: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    unaligned: tuple[str, ...] = ()
    findings: Mapping[str, Any] = field(default_factory=dict)
    fusion: FusionReport | None = None
    settings: Mapping[str, Any] | None = None
    encoder_ids: Mapping[str, str] = field(default_factory=dict)
    refit: RefitReport | None = None
    comparable: tuple[str, ...] | None = None
    not_comparable: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `info` in space.json, in JSON types."""
        out: dict[str, Any] = dict(self.findings)
        if self.asked is not None:
            out |= {
                "asked": self.asked,
                "axes_asked": self.axes_asked,
                "items": dict(self.items),
                "pairs": dict(self.pairs),
                "unseen_pairs": list(self.unseen_pairs),
                "left_out": dict(self.left_out),
                "unaligned": list(self.unaligned),
            }
        if self.fusion is not None:
            out["fusion"] = self.fusion.to_json()
        if self.settings is not None:
            out["settings"] = dict(self.settings)
        if self.settings is not None or self.encoder_ids:
            out["encoder_ids"] = dict(self.encoder_ids)
        if self.refit is not None:
            out["refit"] = self.refit.to_json()
        if self.comparable is not None:
            out |= {"comparable": list(self.comparable), "not_comparable": self.not_comparable}
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpaceInfo:
        """Reads what `to_json` returned."""
        own, findings = _split(cls, data)
        for name in ("unseen_pairs", "unaligned", "comparable"):
            if name in own:
                own[name] = tuple(own[name])
        if "fusion" in own:
            own["fusion"] = FusionReport.from_json(own["fusion"])
        if "refit" in own:
            own["refit"] = RefitReport.from_json(own["refit"])
        return cls(**own, findings=findings)


def _split(cls: type, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits JSON into the fields of a dataclass, without `findings`, and all other keys."""
    names = {f.name for f in fields(cls)} - {"findings"}
    return {k: v for k, v in data.items() if k in names}, {k: v for k, v in data.items() if k not in names}
