"""What the heads make of the gsd and the city."""

from dataclasses import replace

import pytest
import torch

from agl_core.errors import UserError
from agl_core.model.heads import TYPICAL_COTANGENT, GsdHead, PriorPose, build_agl_head, build_pose_head
from agl_core.model.network import GeoposeNet
from tests.model.networks import BATCH, CITIES, SMALL, small, some_loss

IMAGE, CITY, GSD = BATCH


def test_the_gsd_reaches_the_heights_through_its_head_alone() -> None:
    torch.manual_seed(0)
    config = replace(SMALL, use_city=False, use_gsd=False, agl_head="gsd")
    model = GeoposeNet("tu-lcnet_035", CITIES, config).eval()
    here, there = model(IMAGE, CITY, GSD), model(IMAGE, CITY, GSD * 2)
    assert not torch.equal(here.agl, there.agl)
    assert torch.equal(here.pose, there.pose)


def test_the_gsd_changes_which_features_count_and_not_only_the_level() -> None:
    torch.manual_seed(0)
    head, decoded = GsdHead(8), torch.randn(1, 8, 16, 16)
    difference = head(decoded, torch.tensor([0.3])) - head(decoded, torch.tensor([0.6]))
    inside = difference[0, 2:-2, 2:-2]  # the padding differs at the edges
    assert float(inside.detach().std()) > 1e-3


def test_a_prior_starts_as_a_typical_elevation_whatever_the_image_shows() -> None:
    model = small(heads=("linear", "prior"))
    for image in (IMAGE, 255 - IMAGE):
        scale = model(image, CITY, GSD).pose[:, 0]
        torch.testing.assert_close(scale, TYPICAL_COTANGENT / GSD)
    assert 0.07 < TYPICAL_COTANGENT < 0.73  # elevations of 86 and 54 degrees


def test_the_scale_of_a_prior_is_inverse_to_the_gsd_and_has_a_constant_of_each_city() -> None:
    head = PriorPose(4, dropout=0.0, constants=2).eval()
    features = torch.rand(2, 4, 3, 3)
    with torch.no_grad():
        head.cotangent.copy_(torch.tensor([0.2, 0.7]))
    here, there = head(features, CITY, GSD), head(features, CITY, GSD * 2)
    torch.testing.assert_close(there[:, 0], here[:, 0] / 2)
    assert torch.equal(there[:, 1:], here[:, 1:])  # the direction has nothing to do with the gsd
    other = head(features, CITY.flip(0), GSD)
    torch.testing.assert_close((here - other)[:, 0], torch.tensor([-0.5, 0.5]) / GSD)


def test_a_prior_learns_its_constants_and_their_corrections() -> None:
    model = small(heads=("linear", "prior")).train()
    assert isinstance(model.pose_head, PriorPose)
    some_loss(model(IMAGE, CITY, GSD)).backward()
    constants, corrections = model.pose_head.cotangent.grad, model.pose_head[-1].weight.grad
    assert constants is not None
    assert bool(constants.all())
    assert corrections[0].any()


def test_a_network_that_does_not_look_at_the_city_has_one_constant_for_all() -> None:
    torch.manual_seed(0)
    config = replace(SMALL, use_city=False, scale_head="prior")
    model = GeoposeNet("tu-lcnet_035", CITIES, config).eval()
    assert isinstance(model.pose_head, PriorPose)
    assert model.pose_head.cotangent.shape == (1,)
    assert torch.equal(model(IMAGE, CITY, GSD).pose, model(IMAGE, CITY.flip(0), GSD).pose)


@pytest.mark.parametrize("heads", [("gsd", "prior"), ("linear", "prior")])
def test_heads_answer_in_float32_under_autocast(heads: tuple[str, str]) -> None:
    model = small("fpn", heads=heads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*BATCH)
    assert output.agl.dtype == output.pose.dtype == torch.float32
    torch.testing.assert_close(output.agl, model(*BATCH).agl, atol=0.2, rtol=0.1)


def test_unknown_heads_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown model\.agl_head 'log': choose one of linear, gsd"):
        build_agl_head(8, replace(SMALL, agl_head="log"))
    with pytest.raises(UserError, match=r"unknown model\.scale_head 'log': choose one of direct, prior"):
        build_pose_head(8, 2, replace(SMALL, scale_head="log"))
