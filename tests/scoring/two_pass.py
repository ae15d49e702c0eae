"""The official score and other errors written down directly: over every pixel of a city, float64, two passes."""

import numpy as np
from numpy.typing import NDArray

from agl_core.geometry import Pose

Image = tuple[NDArray[np.uint16], NDArray[np.uint16], Pose | None, Pose]  # truth cm, predicted cm, true, predicted


def r2(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    mean = truth.sum() / (truth.size + 1e-4)
    sse = ((predicted - truth) ** 2).sum()
    sst = ((truth - mean) ** 2).sum()
    return float(1 - sse / (sst + 1e-4))


def city_r2(images: list[Image]) -> tuple[float, float | None]:
    """R2 of heights and of flow, all images of the city pooled."""
    heights: list[list[NDArray[np.float64]]] = [[], []]
    flows: list[list[NDArray[np.float64]]] = [[], []]
    for truth_cm, predicted_cm, true, predicted in images:
        known = truth_cm != 65535
        g, p = truth_cm[known] / 100, predicted_cm[known] / 100
        heights[0].append(g)
        heights[1].append(p)
        if true is not None:
            for pooled, metres, pose in zip(flows, (g, p), (true, predicted), strict=True):
                pooled.append(metres * pose.scale * np.sin(pose.angle))
                pooled.append(metres * pose.scale * np.cos(pose.angle))
    agl = r2(*(np.concatenate(values) for values in heights))
    return agl, r2(*(np.concatenate(values) for values in flows)) if flows[0] else None


def official_score(cities: dict[str, list[Image]]) -> float:
    scores = []
    for images in cities.values():
        agl, flow = city_r2(images)
        scores.append(agl if flow is None else (agl + flow) / 2)
    return sum(scores) / len(scores)


def heights(images: list[Image]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and predicted heights of all known pixels, metres."""
    known = [(truth[truth != 65535] / 100, predicted[truth != 65535] / 100) for truth, predicted, *_ in images]
    return np.concatenate([g for g, _ in known]), np.concatenate([p for _, p in known])


def end_point_errors(images: list[Image]) -> NDArray[np.float64]:
    """Length of the difference of true and predicted flow at every known pixel of images with a pose, pixels."""
    found = []
    for truth, predicted, true, pose in images:
        if true is not None:
            (g, p), angles = heights([(truth, predicted, true, pose)]), (true.angle, pose.angle)
            x, y = (p * pose.scale * f(angles[1]) - g * true.scale * f(angles[0]) for f in (np.sin, np.cos))
            found.append(np.hypot(x, y))
    return np.concatenate(found)


def magnitudes(images: list[Image]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and predicted length of the flow at every known pixel of images with a pose, pixels."""
    found = [(*heights([image]), image[2], image[3]) for image in images]
    known = [(g * true.scale, p * pose.scale) for g, p, true, pose in found if true is not None]
    return np.concatenate([g for g, _ in known]), np.concatenate([p for _, p in known])
