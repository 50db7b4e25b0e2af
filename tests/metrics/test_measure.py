import pytest
import torch

from ddimctl.errors import DataError
from ddimctl.metrics import measure as measures
from ddimctl.metrics.inception import Extractor
from ddimctl.metrics.measure import Measure, scores, summarize

CPU = torch.device("cpu")


def features(images):
    """A stand-in for Inception: means of a few regions, of any dtype but uint8 refused."""
    assert images.dtype == torch.uint8
    assert images.shape[1] == 3
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


ALL = Measure(("swd", "fid", "kid"), Extractor(features, {"network": "regions"}))


def pixels(count, seed=0, shade=256, channels=3):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, shade, (count, channels, 4, 4), generator=generator).float()
    x = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
    return x.permute(0, 2, 3, 1).to(torch.uint8)


def summary(x, measure=ALL, size=8):
    seen = []
    found = summarize(x.split(size), len(x), measure, CPU, seen.append)
    assert seen[-1] == len(x)
    return found


def test_every_score_is_zero_for_one_set_whatever_order_and_batches():
    x = pixels(40)
    found = scores(ALL, summary(x), summary(x.flip(0), size=13))
    assert set(found) == {"swd", "swd_1", "swd_2", "fid", "kid", "kid_std"}
    assert found["swd"] == pytest.approx(0, abs=1e-3)
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert found["kid"] < 1e-3


def test_every_score_grows_with_the_difference():
    reference = summary(pixels(200))
    near, far = (scores(ALL, summary(pixels(100, 1, shade)), reference) for shade in (256, 160))
    assert all(near[name] < far[name] for name in ("swd", "fid", "kid"))


def test_gray_images_are_measured_as_one_channel_and_shown_to_the_network_as_three():
    gray = pixels(20, channels=1)
    assert scores(ALL, summary(gray), summary(gray))["swd"] == 0


def test_only_so_many_features_are_kept_and_they_are_drawn_from_all(monkeypatch):
    monkeypatch.setattr(measures, "KEPT_FEATURES", 10)
    x = pixels(60)
    kept = summary(x)["features"]
    assert kept.shape == (10, 12)
    everything = features(x.permute(0, 3, 1, 2))
    places = [int((everything - one).abs().sum(1).argmin()) for one in kept]
    assert len(set(places)) == 10
    assert max(places) > 30
    assert torch.equal(kept, summary(x, size=11)["features"])


def test_one_image_is_too_few_for_fid():
    with pytest.raises(DataError, match="two images"):
        scores(ALL, summary(pixels(1)), summary(pixels(5)))


def test_swd_alone_needs_no_network():
    found = scores(Measure(("swd",)), summary(pixels(5), Measure(("swd",))), summary(pixels(6, 1)))
    assert set(found) == {"swd", "swd_1", "swd_2"}
