"""Schema of params.yaml: every value, its bounds and its meaning.

Fields have no default values: every value stands in params.yaml, where DVC tracks it. Validators
check and never change a value, so that a change here alone reruns no stage.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.artifacts.records import Fit, HeadKind


class Block(BaseModel):
    """Base of every block: strict types, no unknown keys, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


AUTO = "auto"


class BackboneParams(Block):
    """The pretrained network."""

    name: str = Field(
        min_length=1,
        description="Architecture by its timm name; auto: the best of select.candidates.",
    )
    weights: str = Field(
        pattern=r"^(packaged|hub|random|data/weights/.+\.safetensors)$",
        description="packaged (wheel on this machine), hub (downloaded by timm), random, or a "
        ".safetensors file below data/weights/, the folder whose contents DVC watches.",
    )

    @model_validator(mode="after")
    def check_weights_of_candidates(self) -> Self:
        """Refuse weights that cannot be those of several architectures."""
        if self.name == AUTO and self.weights not in ("packaged", "hub"):
            raise ValueError(
                f"weights is {self.weights!r} and name is auto; allowed then: packaged | hub, "
                "because every candidate has weights of its own"
            )
        return self


class SelectParams(Block):
    """Between which backbones is chosen where `backbone.name` is auto."""

    candidates: list[str] = Field(
        min_length=1,
        max_length=50,
        description="timm names, the cheapest first: a later one must be better beyond doubt.",
    )
    images: int = Field(
        ge=10, le=100_000, description="Training images on which they are compared, by hash."
    )


class IngestParams(Block):
    """Which images, how they are checked and how they are split."""

    source: str = Field(
        min_length=1,
        description="Folder of class folders (or train, val and test above them), csv of "
        "path,label[,split][,group], or descriptor (.yaml) of a packaged data set.",
    )
    groups: str = Field(
        min_length=1,
        description="csv of path,group: images of one group (patient, device, person) stay in one "
        "split, unless the source gives splits.",
    )
    corrections: str = Field(
        min_length=1,
        description="csv of path,label,drop: your verdicts on labels; an image gets another class "
        "of the source or is left out.",
    )
    val_fraction: float = Field(
        gt=0,
        lt=0.5,
        description="Share of every class for val, in (0, 0.5); by hash: half to 1.5 times it. Not "
        "used where the source gives val.",
    )
    test_fraction: float = Field(
        gt=0,
        lt=0.5,
        description="Share of every class for test, in (0, 0.5); by hash, as val. Not used where "
        "the source gives test.",
    )
    on_bad: Literal["quarantine", "fail"] = Field(
        description="quarantine leaves bad files out and lists them; fail stops at any bad file."
    )
    max_bad_fraction: float = Field(
        ge=0,
        le=1,
        description="Largest share of bad files that quarantine tolerates; of one class a tenth "
        "and two files, or this share if it is more.",
    )
    small_class: Literal["fail", "train_only"] = Field(
        description="What happens to a class with too few groups to stand in every split."
    )
    min_side_px: int = Field(
        ge=1, le=10_000, description="Smallest allowed side of an image, pixels."
    )
    max_pixels: int = Field(
        ge=1, le=2_000_000_000, description="Largest allowed number of pixels of an image."
    )
    near_duplicate_bits: int = Field(
        ge=0,
        le=32,
        description="Images whose 256-bit perceptual hashes differ in at most so many bits share a "
        "group.",
    )

    @model_validator(mode="after")
    def check_split_shares(self) -> Self:
        """Refuse shares of val and test that leave less than half for training."""
        if self.val_fraction + self.test_fraction > 0.5:
            raise ValueError(
                f"val_fraction + test_fraction is {self.val_fraction + self.test_fraction:g}; "
                "allowed: at most 0.5, so that at least half of the images train"
            )
        return self


class AugmentationRanges(Block):
    """Ranges from which the parameters of an augmented view are drawn."""

    flip_horizontal: float = Field(ge=0, le=1, description="Probability of a left-right flip.")
    flip_vertical: float = Field(ge=0, le=1, description="Probability of an up-down flip.")
    quarter_turn: float = Field(
        ge=0, le=1, description="Probability of a turn by 90, 180 or 270 degrees."
    )
    crop_scale_min: float = Field(
        gt=0, le=1, description="Smallest share of the area that a crop keeps."
    )
    crop_ratio_max: float = Field(
        ge=1, le=3, description="Largest stretch of a crop's aspect ratio."
    )
    rotate_degrees: float = Field(ge=0, le=180, description="Largest rotation either way, degrees.")
    brightness: float = Field(ge=0, lt=1, description="Brightness factor in [1 - x, 1 + x].")
    contrast: float = Field(ge=0, lt=1, description="Contrast factor in [1 - x, 1 + x].")
    saturation: float = Field(ge=0, lt=1, description="Saturation factor in [1 - x, 1 + x].")
    hue: float = Field(ge=0, le=0.5, description="Hue shift either way, share of the color circle.")
    blur_px: float = Field(ge=0, le=10, description="Largest radius of a Gaussian blur, pixels.")
    erase_fraction: float = Field(
        ge=0, lt=1, description="Largest share of the area that is grayed out."
    )


class AugmentParams(Block):
    """How images become packed pixels."""

    image_px: int = Field(ge=16, le=1024, description="Side of the packed square images, pixels.")
    fit: Fit = Field(
        description="squash stretches the whole image, crop keeps its center square, pad adds a "
        "border."
    )
    views: int = Field(ge=0, le=64, description="Augmented views of each training image.")
    policy: Literal["none", "light", "medium", "heavy", "custom"] = Field(
        description="Named ranges, or custom for those below."
    )
    custom: AugmentationRanges = Field(description="Ranges used when policy is custom.")

    @model_validator(mode="after")
    def check_views_have_a_policy(self) -> Self:
        """Refuse views that would all equal the clean one."""
        if self.policy == "none" and self.views > 0:
            raise ValueError(
                f"policy none makes every one of the {self.views} views a copy of the clean image; "
                "set views to 0 or choose a policy"
            )
        return self


class ExtractParams(Block):
    """How the frozen backbone is run over the packed pixels."""

    batch_size: int = Field(ge=1, le=4096, description="Images a forward pass.")
    shift_images: int = Field(
        ge=32,
        le=100_000,
        description="Training images on which inputs of layers and random features are measured.",
    )


class SimilarityParams(Block):
    """How the distance to the source domain and the transferability are measured."""

    max_images: int = Field(
        ge=64, le=1_000_000, description="Training images used, chosen by hash."
    )
    permutations: int = Field(ge=20, le=100_000, description="Permutations of the MMD test.")
    bootstrap: int = Field(ge=20, le=100_000, description="Resamples of the intervals.")
    confidence: float = Field(ge=0.5, lt=1, description="Confidence of the intervals.")


class DecideParams(Block):
    """Thresholds of the rules that choose between scratch, frozen and fine-tuned."""

    arm: Literal["auto", "scratch", "feature_extraction", "fine_tune"] = Field(
        description="auto applies the rules; any other value forces that arm and is recorded as "
        "forced."
    )
    scratch_min_images: int = Field(
        ge=0, description="Training images from which training from scratch is considered."
    )
    depth: float = Field(
        gt=0, le=1, description="Share of the backbone's blocks that fine-tuning unfreezes."
    )
    similar_mmd: Annotated[float, Field(ge=0, le=10)] | Literal["auto"] = Field(
        description="Matched MMD^2 below which the domain counts as similar. auto: the mark of the "
        "ruler of these weights and image size."
    )
    far_mmd: Annotated[float, Field(ge=0, le=10)] | Literal["auto"] = Field(
        description="Matched MMD^2 above which the domain counts as far. auto: as similar_mmd."
    )
    ceiling_error: float = Field(
        ge=0,
        le=1,
        description="Share of errors of the frozen head, by folds over train and val, below which "
        "it counts as being at its ceiling, if val could not tell a flawless model from it; 0: "
        "never.",
    )
    min_transfer_gain: float = Field(
        ge=-1, le=1, description="Accuracy that pretrained features must gain over random ones."
    )

    @model_validator(mode="after")
    def check_order(self) -> Self:
        """Refuse thresholds that leave no room between similar and far."""
        similar, far = self.similar_mmd, self.far_mmd
        if similar == "auto" or far == "auto":
            if similar != far:
                raise ValueError(
                    f"similar_mmd is {similar} and far_mmd {far}; allowed: both auto or both "
                    "numbers"
                )
        elif similar >= far:
            raise ValueError(f"similar_mmd is {similar:g}; allowed: below far_mmd ({far:g})")
        return self


class RaceParams(Block):
    """Arms trained on the same part of the images, where the budget pays for it."""

    share: float = Field(
        ge=0,
        le=1,
        description="Most that the race may cost, as a share of what fine-tuning is expected to "
        "cost in multiply-adds; 0: no race.",
    )
    epochs: int = Field(
        ge=1, le=1_000, description="Epochs of each racer in each round, a whole schedule."
    )
    min_images: int = Field(
        ge=2,
        le=1_000_000,
        description="Fewest training images of the first round; where the share affords fewer, "
        "scratch stays out, or there is no race.",
    )
    confidence: float = Field(
        ge=0.5,
        lt=1,
        description="Confidence of the two-sided intervals on val by which a racer is called "
        "better; all racers share it (Bonferroni).",
    )


class BaselineParams(Block):
    """The heads trained on frozen features."""

    l2_strengths: list[float] = Field(
        min_length=1, description="Penalties of the logistic regression that val chooses from."
    )
    heads: list[HeadKind] = Field(
        min_length=1,
        description="Heads to train: linear (logistic regression), mlp (one hidden layer). The "
        "first stays unless a later one is better on val beyond doubt.",
    )
    mlp_hidden: Annotated[int, Field(ge=2, le=8192)] | Literal["auto"] = Field(
        description="Width of the MLP's hidden layer. auto: the largest power of two, from 16 to "
        "1024, with at most 256 weights a training image."
    )
    mlp_dropout: float = Field(ge=0, lt=1, description="Dropout before the MLP's last layer.")
    mlp_lr: float = Field(gt=0, le=1, description="Peak learning rate of the MLP (AdamW).")
    mlp_weight_decay: float = Field(ge=0, le=1, description="Weight decay of the MLP.")
    mlp_epochs: int = Field(ge=1, le=10_000, description="Most epochs of the MLP.")
    mlp_patience: int = Field(
        ge=1, le=1_000, description="Epochs without a better val loss that end its training."
    )
    batch_size: int = Field(ge=2, le=65_536, description="Feature rows a step of the MLP.")

    @model_validator(mode="after")
    def check_heads_differ(self) -> Self:
        """Refuse a head that is named twice."""
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads is {self.heads}; allowed: each head once")
        return self

    @model_validator(mode="after")
    def check_strengths_positive(self) -> Self:
        """Refuse penalties that are not positive."""
        wrong = [value for value in self.l2_strengths if value <= 0]
        if wrong:
            raise ValueError(f"l2_strengths holds {wrong[0]:g}; allowed: greater than 0")
        return self


class FinetuneParams(Block):
    """Gradual unfreezing with discriminative learning rates."""

    early_epochs: int = Field(
        ge=1, le=10_000, description="Most epochs of every phase before the last."
    )
    epochs: int = Field(ge=1, le=10_000, description="Most epochs of the last phase.")
    batch_size: int = Field(ge=2, le=65_536, description="Images a training step.")
    head_lr: float = Field(gt=0, le=1, description="Peak learning rate of the head (AdamW).")
    backbone_lr: float = Field(
        gt=0, le=1, description="Peak learning rate of the topmost backbone group, at most head_lr."
    )
    lr_decay: float = Field(
        gt=0, le=1, description="Learning rate of each deeper group as a share of the one above."
    )
    raise_lr: float = Field(
        ge=1,
        le=10,
        description="Multiple of all rates where the decision raises them; the epochs of the last "
        "phase are divided by it; 1: never.",
    )
    warmup_fraction: float = Field(ge=0, lt=1, description="Share of a phase with linear warm-up.")
    weight_decay: float = Field(ge=0, le=1, description="AdamW weight decay.")
    label_smoothing: float = Field(
        ge=0, lt=1, description="Share of the label given to all classes."
    )
    clip_norm: float = Field(ge=0, le=1_000, description="Largest gradient norm; 0 is off.")
    patience: int = Field(
        ge=1, le=1_000, description="Epochs without a better val loss that end a phase."
    )
    gate_confidence: float = Field(
        ge=0.5,
        lt=1,
        description="Confidence of the two-sided intervals on val by which a phase is rolled back: "
        "accuracy fell, or the loss rose while accuracy did not.",
    )
    interpolation: list[float] = Field(
        min_length=1,
        description="Shares of the fine-tuned weights tried on val, in [0, 1]; the average of "
        "several kept phases is tried beside them.",
    )
    cache_gb: float = Field(
        ge=0, le=100_000, description="Disk for cached activations, GB; 0 is off."
    )
    scratch_epochs: int = Field(
        ge=1, le=100_000, description="Most epochs of training from scratch."
    )
    scratch_patience: int = Field(
        ge=1,
        le=100_000,
        description="Epochs without a better val loss that end training from scratch.",
    )
    scratch_lr: float = Field(
        gt=0, le=1, description="Peak learning rate of training from scratch."
    )

    @model_validator(mode="after")
    def check_rates_and_shares(self) -> Self:
        """Refuse a backbone rate above the head's and interpolation shares outside [0, 1]."""
        if self.backbone_lr > self.head_lr:
            raise ValueError(
                f"backbone_lr is {self.backbone_lr:g}; allowed: at most head_lr "
                f"({self.head_lr:g}), because pretrained layers are destroyed by the rate that a "
                "new head needs"
            )
        wrong = [share for share in self.interpolation if not 0 <= share <= 1]
        if wrong:
            raise ValueError(f"interpolation holds {wrong[0]:g}; allowed: from 0 to 1")
        return self


class EvaluateParams(Block):
    """How the test rows are judged."""

    bootstrap: int = Field(ge=100, le=1_000_000, description="Resamples of the intervals.")
    confidence: float = Field(ge=0.5, lt=1, description="Confidence of the intervals.")
    ece_bins: int = Field(ge=2, le=100, description="Bins of equal mass of the calibration error.")
    hardest: int = Field(ge=0, le=200, description="Hardest test images that the report shows.")
    set_coverage: float = Field(
        ge=0.5, lt=1, description="Share of labels that the conformal sets are to hold."
    )
    false_alarm: float = Field(
        gt=0,
        le=0.5,
        description="Share of images in the domain that may be called out of it, by val.",
    )


class ReportParams(Block):
    """What the report is called."""

    title: str = Field(min_length=1, max_length=200, description="Title of the report.")


class Params(Block):
    """The whole of params.yaml."""

    seed: int = Field(ge=0, le=2**31 - 1, description="Every random number comes from it.")
    class_balanced: bool = Field(
        description="Whether all classes count the same, however many images they have: in what "
        "heads and fine-tuning learn, in what judges on val, and in which model ships."
    )
    backbone: BackboneParams
    ingest: IngestParams
    augment: AugmentParams
    select: SelectParams
    extract: ExtractParams
    similarity: SimilarityParams
    decide: DecideParams
    baseline: BaselineParams
    race: RaceParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    report: ReportParams
