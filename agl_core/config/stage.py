"""Configuration of a stage of training and of the network."""

from dataclasses import dataclass

from agl_core.config.option import option


@dataclass
class AugmentConfig:
    """Chances of the augmentations and how far they go; each is drawn by itself, for every visit of a tile anew.

    Geometric ones change the labels with the image (see `agl_core.geometry`); photometric ones change the image alone.
    """

    rot90: float = option(0.0, "chance of a rotation by 90, 180 or 270 degrees or none, drawn evenly")
    flip_horizontal: float = option(0.0, "chance of a horizontal flip")
    flip_vertical: float = option(0.0, "chance of a vertical flip")
    transpose: float = option(0.0, "chance of swapping x and y")
    stretch: float = option(0.0, "chance of multiplying all heights, surfaces moved accordingly (tiles with a pose)")
    stretch_most: float = option(2.0, "largest factor of the heights")
    stretch_highest: float = option(200.0, "metres above which no height is stretched")
    view: float = option(0.0, "chance of a new view direction, surfaces moved accordingly (tiles with a pose)")
    view_degrees: float = option(30.0, "largest change of the angle, either way")
    view_least: float = option(0.7, "least factor of the scale")
    view_most: float = option(1.3, "largest factor of the scale")
    rotate: float = option(0.0, "chance of a rotation by any angle")
    rotate_degrees: float = option(180.0, "largest rotation, either way")
    zoom: float = option(0.0, "chance of magnifying or reducing the image")
    zoom_least: float = option(0.7, "least magnification")
    zoom_most: float = option(1.3, "largest magnification")
    dropout: float = option(0.0, "chance of square holes of 32 pixels")
    blur: float = option(0.0, "chance of one of five blurs")
    brightness: float = option(0.0, "chance of another brightness and contrast")
    tone: float = option(0.0, "chance of one of gamma, colour jitter and tone curve")
    noise: float = option(0.0, "chance of one of two noises")
    fancy_pca: float = option(0.0, "chance of a shift along the main axes of the colours (fancy PCA)")
    fog: float = option(0.0, "chance of fog")
    shadow: float = option(0.0, "chance of shadows of clouds or of what stands outside")
    sun_flare: float = option(0.0, "chance of a sun flare")


@dataclass
class LossConfig:
    """The parts of the loss: how each is measured, and its weight. What is unknown takes no part."""

    agl: float = option(2.0, "weight of the error of the heights, known pixels only")
    agl_kind: str = option(
        "mse",
        "mse: mean squared error (m^2; the reference's); huber: squared up to huber_delta, linear beyond; r2: squared "
        "error over the variance of the city's heights, every city with the same weight, so that 1 minus it is the R2 "
        "of the score",
        choices=("mse", "huber", "r2"),
    )
    huber_delta: float = option(1.0, "huber: error of a height from which on it counts linearly, metres")
    direction: float = option(50.0, "weight of the error of the angle's direction")
    direction_kind: str = option(
        "mse",
        "mse: mean squared error of (sin, cos) (the reference's); cosine: 1 minus the cosine of the angle between "
        "them, whatever the length of the answer",
        choices=("mse", "cosine"),
    )
    scale: float = option(50.0, "weight of the mean squared error of the scale (pixels per metre)")
    magnitude: float = option(
        0.0, "weight of the mean squared error of the flow's length, height times scale (pixels^2); 0: no such part"
    )


@dataclass
class OptimizerConfig:
    """AdamW with weight decay on matrices only."""

    name: str = option(
        "adamw",
        "adamw: torch's, fused into few kernels; adamw-plain: torch's, not fused; apex: FusedAdam of NVIDIA's apex, "
        "which must have been built; auto: apex where it is, otherwise adamw",
        choices=("adamw", "adamw-plain", "apex", "auto"),
    )
    lr: float = option(1e-4, "peak learning rate")
    weight_decay: float = option(5e-4, "decay of weights of two or more dimensions; biases and norms have none")
    clip: float = option(2.0, "largest norm of the gradient; 0 does not clip")
    resume: bool = option(
        False,
        "begin with the moments of the earlier stage whose last weights the stage starts from ('<stage>/last'), not "
        "with fresh ones",
    )


@dataclass
class ScheduleConfig:
    """Learning rate as a function of progress; nothing of it is stored in a checkpoint."""

    name: str = option(
        "cosine",
        "cosine: one half cosine over the stage, by step; cosine-epochs: cosine annealing once per epoch with a "
        "fixed half period and no restart (the reference's); one-cycle: half a cosine up from `initial` during the "
        "warm-up, half a cosine down; flat-cosine: at the peak for the share `flat` of the stage, then half a cosine; "
        "constant",
        choices=("cosine", "cosine-epochs", "one-cycle", "flat-cosine", "constant"),
    )
    warmup: float = option(
        0.0, "share of the stage's steps over which the rate rises: from 0, linearly, or as one-cycle"
    )
    half_period: int = option(25, "cosine-epochs: epochs from the peak to the floor")
    flat: float = option(0.7, "flat-cosine: share of the stage's steps, warm-up included, before the rate falls")
    initial: float = option(0.04, "one-cycle: the first learning rate, as a share of the peak")
    floor: float = option(1e-6, "lowest learning rate of the cosine")


@dataclass
class StageConfig:
    """One stage of a recipe: a stretch of training with its own length, data settings, loss and optimiser."""

    length: str = option("1 epoch", "how long to train: 'N epochs' or 'N steps'")
    start: str = option(
        "encoder",
        "initial weights: 'encoder' (see encoder_weights; the rest at random), '<earlier stage>/best', "
        "'<earlier stage>/last', '<earlier stage>/last-ema', or the path of a weights file of this project",
    )
    cities: str = option("", "train and validate on the tiles of these cities only: A,B,...; default: all")
    crop: int = option(512, "side of the square crop, pixels")
    batch: int = option(32, "crops per optimiser step over all processes (the global batch)")
    micro_batch: int = option(8, "crops per forward pass of one process; must divide batch")
    augment: AugmentConfig = option(AugmentConfig, "augmentation")
    loss: LossConfig = option(LossConfig, "the loss")
    optimizer: OptimizerConfig = option(OptimizerConfig, "AdamW")
    schedule: ScheduleConfig = option(ScheduleConfig, "learning rate schedule")
    ema: float = option(
        0.0,
        "decay per step of an exponential moving average of the weights, which is validated and saved beside the raw "
        "ones: 0.999 averages about a thousand steps; 0: none",
    )
    sync_batchnorm: bool = option(
        False,
        "normalise over the micro-batches of all GPUs together; the result then depends on their number; GPU only",
    )
    validate_every: str = option("1 epoch", "how often to score the held-out fold: 'N epochs' or 'N steps'")


@dataclass
class ModelConfig:
    """The network around the encoder."""

    decoder: str = option(
        "unet",
        "unet (the reference's), unetplusplus, manet, or fpn, which answers at a quarter of the image's resolution",
        choices=("unet", "unetplusplus", "manet", "fpn"),
    )
    decoder_channels: list[int] = option(
        lambda: [256, 128, 64, 32, 16],
        "channels of the five decoder blocks, coarsest first; fpn takes the first for its pyramid, the second "
        "(a multiple of 32, at least 64) for what it joins",
    )
    attention: str = option(
        "none",
        "none, or scse: concurrent spatial and channel squeeze and excitation in the decoder (unet, unetplusplus)",
        choices=("none", "scse"),
    )
    use_city: bool = option(True, "condition on the city (one-hot at the bottleneck)")
    use_gsd: bool = option(True, "condition on the ground sampling distance (at the bottleneck)")
    agl_head: str = option(
        "linear",
        "linear: a 3 x 3 convolution (the reference's); gsd: two, the first of which sees the gsd too",
        choices=("linear", "gsd"),
    )
    scale_head: str = option(
        "direct",
        "direct: the scale is an output of its own (the reference's); prior: outputs correct a scale that is learnt "
        "for each city (for all without use_city) and divided by the gsd",
        choices=("direct", "prior"),
    )
    pose_dropout: float = option(0.5, "dropout before the pose head's linear layer")
