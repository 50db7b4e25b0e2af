import errno
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


@pytest.mark.skipif(sys.platform != "linux", reason="asks as Linux's C library does")
def test_a_disk_that_cannot_reserve_space_is_written_to_instead(tmp_path, monkeypatch):
    """NFS 3, for example. The C library then writes the blocks, but not to a file open to append."""
    import fcntl

    def posix_fallocate(descriptor, at, size):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.ftruncate(descriptor, at + size)

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
    assert mapped_tensor(tmp_path / "numbers", (3,)).tolist() == [0, 0, 0]
