"""The settings of the section `ranking`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator

from unisono.transforms.base.settings import NonNegative, Positive, Share, settings
from unisono.transforms.behaviour.factors import FactorSpec

_POOL = 4  # for each place of a list, diversity chooses from this many candidates

Interests = Literal["profile", "weighted"]
INTERESTS = get_args(Interests)
Above0 = Annotated[float, Field(gt=0)]


@settings("ranking")
class RankingSpec:
    """How items are ranked for users: by the inner product of their ranking vectors."""

    k: Positive = 100
    """Length of a user's list."""
    method: Literal["learned", "vectors"] | None = None
    """`learned`: ranking vectors are learned from the log. `vectors`: they are made of the item vectors and profiles of
    the joint space. null means `vectors` if `interests`, `fusion: late`, `weights` or `privacy.noise` is given, and
    `learned` otherwise."""
    factors: Positive = 64
    """For `learned`: how many factors an item and a user have. A ranking vector is twice as long, and 4 longer."""
    regularization: Above0 | None = None
    """For `learned`: λ of iALS. The larger it is, the less the model follows single events. null means a
    value that suits the size of the log, about 0.01 for MovieLens-100k."""
    unobserved: Above0 = 0.5
    """For `learned`: the weight of a pair of a user and an item without an event, beside 1 for a liked pair."""
    sweeps: Positive = 10
    """For `learned`: how many times the factors of all users and all items are solved in turn."""
    liked_above: NonNegative | None = None
    """A user likes an item if an event has a weight above this. null means `behaviour.liked_above`, or 0 without that
    section."""
    recent: NonNegative | None = None
    """For `learned`: the weight of a user's latest events beside the whole history, which ages by
    `profiles.half_life_days`. null means 1, or 0 if the log spans less than a week."""
    recent_half_life: Above0 = 3.0
    """For `learned`: after this many newer liked events, an event counts half as one of the latest."""
    trend: NonNegative | None = None
    """How much an item gains that is more popular of late than over the whole log. null means 1 for `learned`, 0 if the
    log spans less than a week, and 0 for `vectors`."""
    content_users: NonNegative = 10.0
    """For `learned`: an event with an item that this many users like says as much about the user by the item's content
    as by the users who like it; with fewer users, more by the content. 0 leaves content to items without likes."""
    cold_exposure: Share = 0.05
    """For `learned`: the share of the first ten places that items without any event take, on average over 200 users.
    A larger share shows more new items and finds fewer liked ones; 0.05 costs 1 to 3 percent of NDCG. Few new items
    take less: they get no longer vectors than other items have. 0 puts new items behind all others."""
    cold_quantile: Share | None = None
    """For `learned`, instead of `cold_exposure`, for shops that live from launches: new items get the norm that this
    quantile of the other items has. 0.85 shows many new items, and costs 5 to 15 percent of NDCG."""
    interests: Interests | None = None
    """For `vectors`: `profile` ranks by the profile alone, `weighted` by all interests, each by its weight. null means
    `weighted`. (`maximum`, of earlier versions, is read as `weighted`: a maximum is no inner product.)"""
    fusion: Literal["early", "late"] = "early"
    """For `vectors`: `early` compares users and items by their fused vectors. `late` compares them modality by modality
    and adds the scores."""
    weights: dict[str, NonNegative] = Field(default_factory=dict)
    """For `fusion: late`: the weight of each modality. A modality that is not named weighs 1."""
    exclude_seen: bool = True
    """Items that the user has interacted with are not recommended. Known are the items of the log that
    `interactions.path` names; of the earlier logs of incremental profiles, each user's newest
    `profiles.recent_events` events. An event of weight 0 does not count."""
    filter: str | None = None
    """A boolean column of the catalogue, true where an item may be recommended."""
    diversity: Share = 0.0
    """How much likeness to items higher in the list counts against an item (maximal marginal relevance). 0 means not
    at all."""
    popularity_penalty: NonNegative = 0.0
    """Subtracted from the score of the most popular item of late, and from the others in proportion to the logarithm of
    1 + the users who like them."""
    popularity_bonus: NonNegative = 0.0
    """The opposite of `popularity_penalty`: added in the same proportion. Only one of the two may be given."""
    popularity_half_life_days: Above0 | None = 14.0
    """In the popularity of late, a user counts half after this many days. null means that interactions do not age."""
    caution: NonNegative = 0.0
    """Subtracted from the score of an item that nobody likes, and divided by √(1 + users) from the others. What few
    users say of an item is a guess."""
    slices: Positive = 1
    """How many parts the items are split into, each searched on its own. More than 1 is for ranking vectors that one
    worker cannot hold."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where scores are computed. `auto` means CUDA if torch finds it."""

    @field_validator("interests", mode="before")
    @classmethod
    def _no_maximum(cls, value: Any) -> Any:
        return "weighted" if value == "maximum" else value

    def __post_init__(self) -> None:
        if self.weights and self.fusion == "early":
            raise ValueError("weights: weigh modalities of late fusion; set ranking.fusion: late, or leave out")
        if self.popularity_penalty and self.popularity_bonus:
            raise ValueError("popularity_bonus: given beside popularity_penalty, its opposite; leave one out")
        if self.method == "learned" and (self.interests or self.fusion == "late"):
            raise ValueError(
                "method: learned does not use `interests` and `fusion: late`; leave them out, or set method: vectors"
            )

    @property
    def learned(self) -> bool:
        """Whether ranking vectors are learned from the log."""
        by_default = self.interests is None and self.fusion == "early"
        return by_default if self.method is None else self.method == "learned"

    @property
    def factor_spec(self) -> FactorSpec:
        """How factors are fitted."""
        return FactorSpec(
            factors=self.factors,
            regularization=self.regularization,
            unobserved=self.unobserved,
            sweeps=self.sweeps,
        )

    @property
    def learned_with(self) -> dict[str, Any]:
        """The settings that ranking vectors of items are learned with, by their names."""
        names = ["factors", "regularization", "unobserved", "sweeps", "liked_above", "content_users", "cold_quantile"]
        names += ["cold_exposure"] if self.cold_quantile is None else []
        return {name: getattr(self, name) for name in names}

    @property
    def gain(self) -> float:
        """What the most popular item of late gains in score; negative for a penalty."""
        return self.popularity_bonus - self.popularity_penalty

    @property
    def pool(self) -> int:
        """How many candidates are searched for each list."""
        return self.k * _POOL if self.diversity else self.k
