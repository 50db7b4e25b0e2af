import os
import sys

import pytest
import torch

from ddimctl.files.mapped import is_mapped, mapped_tensor


def test_numbers_are_in_the_file_and_outlive_the_tensor(tmp_path):
    path = tmp_path / "numbers"
    tensor = mapped_tensor(path, (2, 3))
    assert torch.equal(tensor, torch.zeros(2, 3))
    tensor[1] = torch.tensor([1.0, 2.0, 3.0])
    del tensor
    assert is_mapped(path, (2, 3))
    assert mapped_tensor(path, (2, 3)).tolist() == [[0, 0, 0], [1, 2, 3]]
    assert path.read_bytes()[-4:] == torch.tensor(3.0).numpy().tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_names_need_not_be_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"not \xff utf-8")
    folder.mkdir()
    mapped_tensor(folder / "numbers", (4,), torch.uint8)[2] = 7
    assert (folder / "numbers").read_bytes() == b"\0\0\7\0"
