"""The network, its encoders, losses and weights files."""

# First of all: smp and timm, which every module here needs, import torchvision.
import agl_core.model.torchvision_repair  # noqa: F401
