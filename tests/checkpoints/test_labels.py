import json
import shutil

import pytest
import torch

import ddimctl
from ddimctl.errors import RequestError


def test_without_labels_the_null_class_is_meant(tiny_class_checkpoint):
    checkpoint = ddimctl.load_checkpoint(tiny_class_checkpoint)
    x, t = torch.ones(2, 3, 16, 16), torch.tensor([5, 500])
    with torch.inference_mode():
        assert torch.equal(checkpoint.network(x, t), checkpoint.network(x, t, torch.tensor([5, 5])))
        assert not torch.equal(
            checkpoint.network(x, t), checkpoint.network(x, t, torch.tensor([0, 0]))
        )


def test_without_a_null_class_labels_are_asked_for(tiny_class_checkpoint, tmp_path):

    folder = shutil.copytree(tiny_class_checkpoint, tmp_path / "no-null")
    settings = json.loads((folder / "ddimctl.json").read_text()) | {"null_class": None}
    (folder / "ddimctl.json").write_text(json.dumps(settings))
    checkpoint = ddimctl.load_checkpoint(folder)
    with pytest.raises(RequestError, match="needs class labels"):
        checkpoint.network(torch.ones(1, 3, 16, 16), torch.tensor([5]))


def test_classes_have_names_numbers_and_none(tiny_class_checkpoint, tiny_checkpoint):
    checkpoint = ddimctl.load_checkpoint(tiny_class_checkpoint)
    assert [checkpoint.class_name(label) for label in (0, 4, 5)] == ["floor", "door", "none"]
    assert ddimctl.load_checkpoint(tiny_checkpoint).class_name(3) == "3"
