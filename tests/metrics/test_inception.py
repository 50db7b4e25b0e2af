"""The wrapper around torch-fidelity, with a small stand-in of the same shape in its place."""

import os
import sys
from types import ModuleType

import pytest
import torch

from ddimctl.errors import DataError, RequestError
from ddimctl.metrics.inception import load_inception

CPU = torch.device("cpu")


class Network(torch.nn.Module):
    """FeatureExtractorInceptionV3's constructor and call, and its way of loading weights."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.fc = torch.nn.Linear(3, 5)
        state = torch.load(feature_extractor_weights_path, weights_only=False)
        self.load_state_dict(state)

    def forward(self, x):
        assert x.dtype == torch.uint8
        return (self.fc(x.float().mean((2, 3))),)


@pytest.fixture
def library(monkeypatch):
    package, module = ModuleType("torch_fidelity"), ModuleType("feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network
    module.URL_INCEPTION_V3 = "https://example.org/weights.pth"
    package.feature_extractor_inceptionv3 = module
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    return module


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 5)}).state_dict(), path)
    return path


def test_without_torch_fidelity_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(RequestError) as caught:
        load_inception(None, CPU)
    assert "torch-fidelity" in caught.value.cause
    assert "pip install 'ddimctl[fid]'" in caught.value.remedy
    assert "--metric swd" in caught.value.remedy


def test_features_are_those_of_the_weights(library, weights):
    extractor = load_inception(weights, CPU)
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    state = torch.load(weights, weights_only=True)
    expected = x.float().mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    assert torch.allclose(extractor.features(x), expected)
    torch.save({name: value + 1 for name, value in state.items()}, weights)
    assert load_inception(weights, CPU).settings != extractor.settings


def test_weights_are_downloaded_where_no_file_is_named(library, weights, monkeypatch):
    asked = {}

    def download(url, **settings):
        asked.update(settings, url=url)
        return torch.load(weights, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    assert load_inception(None, CPU).settings == load_inception(weights, CPU).settings
    assert asked["url"] == library.URL_INCEPTION_V3
    assert asked["weights_only"] is True


class Payload:
    def __reduce__(self):
        return exec, ("import builtins; builtins.evaluated = True",)


def test_weights_that_would_run_something_are_refused(library, tmp_path):
    import builtins

    torch.save({"fc.weight": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match="Inception weights"):
        load_inception(tmp_path / "bad.pth", CPU)
    assert not hasattr(builtins, "evaluated")


@pytest.mark.parametrize("content", [[1, 2], {"fc.weight": torch.zeros(2)}, {"fc.weight": 3}])
def test_other_files_are_refused(content, library, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(DataError, match="cannot be used"):
        load_inception(tmp_path / "other.pth", CPU)


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_weights_go_through_the_reader_of_untrusted_files(library, tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(3)] * 2)
    torch.save({"fc.weight": nested}, tmp_path / "nested.pth")
    with pytest.raises(DataError, match="the file holds a nested tensor"):
        load_inception(tmp_path / "nested.pth", CPU)
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(DataError, match="the file is a pipe"):
        load_inception(tmp_path / "pipe.pth", CPU)


def test_missing_or_damaged_weights_are_refused(library, tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        load_inception(tmp_path / "none.pth", CPU)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(DataError, match="cannot be used"):
        load_inception(tmp_path / "text.pth", CPU)
