"""Keys and types of the summaries of `audit` and `embed`; `docs/json.md` is made of them."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

from copyscope.data.account import SetAccount
from copyscope.detection.dedup.groups import GroupsSummary
from copyscope.detection.search.ivf import SearchReport
from copyscope.stats import EstimateDict

from .about import AboutSummary


class VerdictSummary(TypedDict):
    """The verdict."""

    answer: Annotated[str, "`copies`, `suspicious`, `no copies found` or `cannot tell`"]
    sentence: Annotated[str, "the answer in words"]
    reasons: Annotated[list[str], "why it cannot tell, a sentence each; empty for the other answers"]
    needed: Annotated[str | None, "what it would take to tell, where the answer is `cannot tell`"]


class Sensitivity(TypedDict):
    """Share of planted copies that are seen, by kind of alteration."""

    light: Annotated[EstimateDict, "softened, noise, shifted, JPEG"]
    crop: Annotated[EstimateDict, "60 to 75 % of each side"]
    mirror: Annotated[EstimateDict, "left and right exchanged, hue turned"]
    recolour: Annotated[EstimateDict, "grey, or channels exchanged"]
    overlay: Annotated[EstimateDict, "a fifth covered"]
    rotate: Annotated[EstimateDict, "by 10 degrees or a quarter turn"]
    part: Annotated[EstimateDict, "set at a quarter of the area into another picture"]


class NBlank(TypedDict):
    """Blank images by corpus."""

    generated: Annotated[int, "blank generated images"]
    held_out: Annotated[int, "blank held-out images: they do not calibrate"]
    control: Annotated[int, "blank control images: they do not calibrate"]


class RepeatedGroup(TypedDict):
    """A picture that the model makes again and again."""

    size: Annotated[int, "generated images of it"]
    share: Annotated[EstimateDict, "these as a share of the readable generated images"]
    ids: Annotated[list[str], "the images, 20 at most"]
    prompts: Annotated[list[str], "their prompts, 5 at most"]
    n_prompts: Annotated[int, "different prompts"]
    n_generations: Annotated[int, "images without re-runs (same prompt and seed, or same file)"]
    similarity: Annotated[float | None, "median similarity to the centre of the group"]
    verified: Annotated[float | None, "median pixel score against the centre"]
    similarity_least: Annotated[float | None, "least similarity to the centre"]
    verified_least: Annotated[float | None, "least pixel score against the centre"]


class RepeatedOutputsSummary(TypedDict):
    """Pictures that the model makes again and again."""

    n_groups: Annotated[int, "such pictures"]
    n_images: Annotated[int, "generated images of them"]
    share: Annotated[EstimateDict, "these as a share of the readable generated images"]
    sentence: Annotated[str | None, "the same in words; null where there are none"]
    groups: Annotated[list[RepeatedGroup], "the 50 largest"]


class PartsSummary(TypedDict):
    """Whether parts of the pictures were searched."""

    looked: Annotated[bool, "whether they were"]
    why: Annotated[str, "the same in words"]


class SimilarityEstimates(TypedDict):
    """Similarity statistics with their intervals."""

    mean: Annotated[EstimateDict, "mean"]
    std: Annotated[EstimateDict, "standard deviation"]
    p75: Annotated[EstimateDict, "75th percentile"]
    p90: Annotated[EstimateDict, "90th percentile"]
    p95: Annotated[EstimateDict, "95th percentile"]
    above_threshold: Annotated[EstimateDict, "share above `protocol.threshold`"]


class SimilarityOf(TypedDict):
    """Similarity statistics of a set."""

    mean: Annotated[float | None, "mean"]
    std: Annotated[float | None, "standard deviation"]
    p75: Annotated[float | None, "75th percentile"]
    p90: Annotated[float | None, "90th percentile"]
    p95: Annotated[float | None, "95th percentile"]
    above_threshold: Annotated[float | None, "share above `protocol.threshold`"]
    n: Annotated[int, "images they are of"]
    estimates: Annotated[SimilarityEstimates, "the same six with their intervals"]


class SimilaritySummary(SimilarityOf):
    """Similarity of the generated images and of the others."""

    baseline: Annotated[SimilarityOf, "of training images outside their own near-duplicate group"]
    held_out: Annotated[SimilarityOf | None, "of held-out images without those removed"]
    control: Annotated[SimilarityOf | None, "of control images"]


DatasetP95 = TypedDict(
    "DatasetP95",
    {
        "generated": Annotated[EstimateDict, "of the generated images"],
        "baseline": Annotated[EstimateDict, "of training images outside their own group"],
        "held-out": NotRequired[Annotated[EstimateDict, "of held-out images"]],
        "control": NotRequired[Annotated[EstimateDict, "of control images"]],
    },
)


class DatasetSimilarity(TypedDict):
    """Similarity of the whole set, as the literature reads it."""

    p95: Annotated[DatasetP95, "95th percentile of similarity, by series"]
    above: Annotated[bool, "the interval of the generated images lies above all others"]
    agrees: Annotated[bool, "that is so exactly where the answer is `copies`"]
    sentence: Annotated[str, "the same in words, with the reason where the two disagree"]


class CalibrationSummary(TypedDict):
    """What the p-values of an audit rest on."""

    method: Annotated[str, "`held-out`, `controls` or `baseline`"]
    n: Annotated[int, "calibration images"]
    n_removed: Annotated[int, "look-alikes of training images taken out first"]
    n_excluded: Annotated[int, "images that a person left out (`--held-out-exclude`)"]
    n_look_alikes: Annotated[int, "images of those that stay which score as light copies do: rows of `look_alikes`"]
    rule: Annotated[str, "by which rule those of `n_removed` were found"]
    fdr: Annotated[float, "false discovery rate of the list of copies"]
    line: Annotated[
        float, "p-values at or below it are called copies, or would be if one generated image in twenty were a copy"
    ]
    differs: Annotated[
        str | None,
        "why held-out images are [of another kind](numbers.md#held-out-images-of-another-kind) than the generated "
        "ones; null where they are not",
    ]
    nearer_than_control: Annotated[
        EstimateDict | None,
        "of pairs of a generated and a control image with one prompt and seed, the share in which the generated "
        "image is nearer to the training set; chance gives a half",
    ]
    sentence: Annotated[str, "the same in words"]


class CopyRow(TypedDict):
    """A generated image called a copy."""

    id: Annotated[str, "generated image"]
    match: Annotated[str, "training image"]
    score: Annotated[float, "descriptor similarity of the two"]
    verified: Annotated[float, "pixel score of the two"]
    combined: Annotated[float, "combined score of the two"]
    registered: Annotated[
        float | None,
        "[how well the two agree in register](numbers.md#scores-of-one-generated-image); null where the pair was "
        "not registered",
    ]
    edges: Annotated[
        float | None,
        "[how far the edges of the two agree](numbers.md#scores-of-one-generated-image); null where the match is "
        "not the training image whose edges agree best",
    ]
    p_value: Annotated[float, "conformal p-value"]
    group_size: Annotated[int, "size of the match's near-duplicate group, 1 = no near-duplicates"]
    prompt: Annotated[str, 'prompt, "" where none is known']
    box: Annotated[
        list[float] | None,
        "part of the image that the match is of: x, y, width and height as shares of it; null for a match of the whole",
    ]


class SeenByGroupSize(TypedDict):
    """Copies that a classical test sees, by size of the copied group."""

    size: Annotated[str, "size of the copied group: `1`, `2`, `3-5`, `6+`"]
    n_copies: Annotated[int, "our copies of such groups"]
    seen: Annotated[int, "of them flagged as stated"]
    seen_group_aware: Annotated[int | None, "of them flagged by group"]


class ClassicalTestSummary(TypedDict):
    """A test of the literature."""

    name: Annotated[str, "test"]
    reference: Annotated[str, "papers"]
    flagged: Annotated[EstimateDict, "share of readable generated images flagged as stated"]
    flagged_group_aware: Annotated[EstimateDict | None, "the same by near-duplicate group"]
    by_group_size: Annotated[list[SeenByGroupSize], "how many of our copies it sees"]
    note: Annotated[str, 'remark, often ""']


class CorrelationRow(TypedDict):
    """Correlation of a measure with similarity."""

    measure: Annotated[str, "measure of the most similar training image"]
    unit: Annotated[str, "its unit"]
    target: Annotated[str, "`similarity`"]
    pearson: Annotated[EstimateDict, "Pearson correlation"]
    pearson_p: Annotated[float | None, "two-sided p-value"]
    spearman: Annotated[EstimateDict, "Spearman correlation"]
    spearman_p: Annotated[float | None, "two-sided p-value"]


class Effect(TypedDict):
    """A cause in the joint model."""

    name: Annotated[str, "cause"]
    unit: Annotated[str, "what one standard deviation of it is"]
    odds_ratio: Annotated[
        EstimateDict,
        "odds ratio per standard deviation: of one generated image being a copy of the group whose caption is its "
        "prompt; where `n_images` is null, of the group being copied by any image",
    ]
    p_value: Annotated[float | None, "two-sided p-value"]


class JointModel(TypedDict):
    """Joint regression of copying on the causes."""

    outcome: Annotated[str, "what is modelled"]
    n: Annotated[int, "near-duplicate groups"]
    n_copied: Annotated[int, "of them copied"]
    n_images: Annotated[
        int | None, "generated images whose prompt is a caption of these groups; null where the exposure is not known"
    ]
    n_copies: Annotated[int | None, "of them copies of the group whose caption is the prompt"]
    correlation: Annotated[float | None, 'correlation of "is a copy" between such images of one group, 0 to 1']
    model: Annotated[str, "kind of model"]
    note: Annotated[str, "causes left out or entangled"]
    effects: Annotated[list[Effect], "one a cause"]


class FindingsSummary(TypedDict):
    """What goes with copying."""

    correlations: Annotated[list[CorrelationRow], "one a measure"]
    joint: Annotated[JointModel | None, "joint model, null where there are too few cases"]
    notes: Annotated[list[str], "remarks"]


class QualitySummary(TypedDict):
    """Quality against the training set."""

    space: Annotated[str, "descriptor in whose space"]
    frechet_distance: Annotated[EstimateDict, "Frechet distance; not FID"]
    precision: Annotated[EstimateDict, "improved precision"]
    recall: Annotated[EstimateDict, "improved recall"]
    diversity_generated: Annotated[EstimateDict, "mean cosine distance of pairs of generated images"]
    diversity_train: Annotated[EstimateDict, "the same of training images"]
    text_image_alignment: Annotated[
        EstimateDict | None, "mean cosine of image and prompt, where a joint model was at hand"
    ]
    notes: Annotated[list[str], "remarks"]


class ProtocolSummary(TypedDict):
    """How the similarity was made."""

    name: Annotated[str, "protocol, or the descriptor's spec"]
    descriptor: Annotated[str, "descriptor's spec"]
    threshold: Annotated[float, "of `similarity.above_threshold`"]
    duplicates: Annotated[float, "similarity of near-duplicates"]
    verify: Annotated[str, "spec of the pixel comparison"]
    fingerprint: Annotated[str, "sha256 of the weights, or a library's version"]


class AuditOptions(TypedDict):
    """Options that change the result of an audit."""

    protocol: Annotated[str, "protocol"]
    fdr: Annotated[float, "false discovery rate"]
    parts: Annotated[str, "`auto`, `on` or `off`"]
    clip: Annotated[str | None, "folder of the CLIP model that measured text-image alignment"]
    held_out_exclude: Annotated[str | None, "list of images left out, as given"]
    trust_held_out: Annotated[bool, "held-out images calibrate even where they are of another kind"]
    sensitivity: Annotated[int, "training groups of which copies were planted at most"]
    embed_images: Annotated[str, "`small`, `large` or `full`: what the report enlarges"]


class AuditRecipe(TypedDict):
    """What an audit was made of."""

    generated: Annotated[str, "path or URL as given"]
    train: Annotated[str, "path or URL as given"]
    held_out: Annotated[str | None, "path or URL as given"]
    control: Annotated[str | None, "path or URL as given"]
    options: Annotated[AuditOptions, "the options that change the result"]
    versions: Annotated[dict[str, str], "versions, by package; its keys may change"]
    seed: Annotated[int, "seed"]


Failures = TypedDict(
    "Failures",
    {
        "generated": Annotated[int, "generated"],
        "train": Annotated[int, "training"],
        "held-out": NotRequired[Annotated[int, "held out"]],
        "control": NotRequired[Annotated[int, "of the base model (`--control`)"]],
    },
)


class AuditSummary(TypedDict):
    """Summary of an audit."""

    schema: Annotated[str, "`copyscope.audit/1`"]
    copyscope: Annotated[str, "version that made it"]
    created: Annotated[str, "when, ISO 8601, UTC"]
    seconds: Annotated[float, "how long it took"]
    about: Annotated[AboutSummary, "what the report says first"]
    verdict: Annotated[VerdictSummary, "[the answer](numbers.md#the-verdict)"]
    replication_rate: Annotated[
        EstimateDict,
        "share of readable generated images called copies (suspicious, where the answer is `suspicious`); n counts "
        "the readable",
    ]
    estimated_rate: Annotated[
        EstimateDict,
        "[the share corrected](numbers.md#the-corrected-rate) for copies that are not seen and for false alarms; "
        "value null where the sensitivity was not measured",
    ]
    sensitivity: Annotated[
        Sensitivity | None,
        "[share of planted copies seen](numbers.md#sensitivity), an Estimate a kind; null with `--sensitivity 0`",
    ]
    excess: Annotated[
        float,
        "[at least this share](numbers.md#excess) of the generated images is nearer to the training set than "
        "calibration images are; 0 where none is known to be",
    ]
    n_blank: Annotated[
        NBlank, "[blank images](numbers.md#blank-images): one colour to within noise, no copies and in no rate"
    ]
    n_likeness: Annotated[int, "with `--control`: images of the subject of a training image that are not its picture"]
    repeated_outputs: Annotated[
        RepeatedOutputsSummary,
        "[pictures made again and again](numbers.md#repeated-outputs) without a source in the training set",
    ]
    parts: Annotated[PartsSummary, "whether training images were looked for in parts of the pictures (`--parts`)"]
    n_generated: Annotated[int, "generated images, unreadable ones included"]
    n_train: Annotated[int, "training images, unreadable ones included"]
    n_missing: Annotated[int, "generated images that cannot be read"]
    n_missing_train: Annotated[int, "training images that cannot be read"]
    accounts: Annotated[list[SetAccount], "[what became of all that lay in each set](corpora.md#the-account)"]
    n_outside: Annotated[
        int, "images of all sets that [lie outside their folder](corpora.md#what-is-read): listed or linked to"
    ]
    frames: Annotated[
        str,
        "`first`: of an animation or a TIFF of several pages, the first frame or page alone [is "
        "compared](corpora.md#how-an-image-becomes-pixels)",
    ]
    similarity: Annotated[
        SimilaritySummary, "[similarity statistics](numbers.md#similarity-statistics) of generated -> train"
    ]
    dataset_similarity: Annotated[
        DatasetSimilarity,
        "[the literature's reading of the whole set](numbers.md#similarity-statistics), beside the verdict",
    ]
    calibration: Annotated[CalibrationSummary, "what the p-values rest on"]
    copies: Annotated[list[CopyRow], "generated images called copies, worst (highest combined score) first"]
    classical_tests: Annotated[
        list[ClassicalTestSummary],
        "[the field's tests](numbers.md#classical-tests); empty where the training set is too small for them",
    ]
    duplicates: Annotated[
        GroupsSummary, "[near-duplicate groups](numbers.md#near-duplicate-groups) of two or more training images"
    ]
    findings: Annotated[FindingsSummary, "[what goes with copying](numbers.md#why-findings)"]
    quality: Annotated[QualitySummary, "[quality](numbers.md#quality) against the training set"]
    search: Annotated[SearchReport, "how the nearest training images were found"]
    protocol: Annotated[ProtocolSummary, "[how the similarity was made](numbers.md#protocols)"]
    recipe: Annotated[AuditRecipe, "what to give to get this result again"]
    failures: Annotated[Failures, "unreadable images, by corpus"]


class EmbeddingsSummary(TypedDict):
    """Summary of `embed`."""

    schema: Annotated[str, "`copyscope.embeddings/1`"]
    descriptor: Annotated[str, "descriptor's spec"]
    fingerprint: Annotated[str, "sha256 of the weights, or a library's version"]
    corpus: Annotated[str, "path or URL as given"]
    kind: Annotated[str, "[how it was recognised](corpora.md#what-is-read)"]
    n: Annotated[int, "vectors"]
    n_missing: Annotated[int, "images that cannot be read"]
    dim: Annotated[int, "length of a vector"]
    sha256: Annotated[str, "of `vectors.npy`, compared when they are loaded"]


class PartFile(TypedDict):
    """A file of embeddings in parts."""

    name: Annotated[
        str, "`part-DIGEST.parquet`; `some-...` where files could not be read, `lost-...` where nothing could be done"
    ]
    rows: Annotated[int, "images in it"]
    errors: Annotated[int, "of them, those with an `error` and no vector"]
    bytes: Annotated[int, "size of the file"]
    sha256: Annotated[str, "of the file, hex"]


class EmbeddingsParts(TypedDict):
    """Summary of `embed --engine`."""

    schema: Annotated[str, "`copyscope.embeddings-parts/1`"]
    descriptor: Annotated[str, "descriptor's spec"]
    fingerprint: Annotated[str, "sha256 of the weights, or a library's version"]
    corpus: Annotated[str, "path or URL as given"]
    kind: Annotated[str, "[how it was recognised](corpora.md#what-is-read)"]
    n: Annotated[int, "vectors, without those that a removal list takes out"]
    n_missing: Annotated[int, "images that cannot be read or described, likewise"]
    dim: Annotated[int, "length of a vector"]
    parts: Annotated[list[PartFile], "the files, in the order of the corpus"]
    removed: Annotated[
        PartFile | None,
        "a file as those of `parts` with a column `id`: images that [`--without`](#removal-lists) leaves out",
    ]
