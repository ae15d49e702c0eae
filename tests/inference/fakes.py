"""Networks small enough to know their answers by heart."""

import torch
from torch import nn

from agl_core.config import ModelConfig
from agl_core.model.network import Output


class PointwiseNet(nn.Module):
    """The height of a pixel is the mean of its channels / 10, in metres; the pose is what it is told to be."""

    def __init__(self, cities=("A", "B"), pose=(0.5, 0.6, 0.8), use_city=True):
        super().__init__()
        self.cities = tuple(cities)
        self.config = ModelConfig(use_city=use_city)
        self.pose = nn.Parameter(torch.tensor(pose))
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, image, city, gsd):
        assert image.dtype == torch.uint8
        assert image.shape[2] % 32 == image.shape[3] % 32 == 0
        self.seen.append((tuple(image.shape[2:]), city.tolist(), gsd.tolist()))
        return Output(self.dropout(image.float().mean(1) / 10), self.pose[None].clone())


class SurroundingsNet(PointwiseNet):
    """The height of a pixel is the mean over its 5 x 5 surroundings, black beyond the image; it leans by brightness."""

    def forward(self, image, city, gsd):
        agl, _ = super().forward(image, city, gsd)
        agl = nn.functional.avg_pool2d(agl[:, None], 5, stride=1, padding=2)[:, 0]
        return Output(agl, torch.stack([agl.mean(), agl.mean(), agl.std()])[None])


class AnswerNet(PointwiseNet):
    """The same height everywhere."""

    def __init__(self, height, **options):
        super().__init__(**options)
        self.height = height

    def forward(self, image, city, gsd):
        agl, pose = super().forward(image, city, gsd)
        return Output(torch.full_like(agl, self.height), pose)


class HeavySideNet(PointwiseNet):
    """An answer that turns with the image, to the last bit: the pose points from the middle to where it is bright.

    `drift` spoils that: so much is added to the direction, and so many metres from each column to the next.
    """

    def __init__(self, drift=0.0, **options):
        super().__init__(**options)
        self.drift = drift

    def forward(self, image, city, gsd):
        agl, pose = super().forward(image, city, gsd)
        grey = image.double().sum(1)[0]
        height, width = grey.shape
        ys, xs = (2 * torch.arange(n, dtype=torch.float64) - (n - 1) for n in (height, width))
        pose[0, 0] += 0.001 * self.drift * float(image[0, 0, 0, 0])
        pose[0, 1] = (grey.sum(0) * xs).sum() / grey.sum() + self.drift
        pose[0, 2] = (grey.sum(1) * ys).sum() / grey.sum() + self.drift
        return Output(agl + self.drift * torch.arange(width), pose)
