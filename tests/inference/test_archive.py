"""The archive of a submission is flat, complete, and the same bytes for the same files."""

import gzip
import os
import tarfile

import pytest

from agl_core.errors import UserError
from agl_core.inference.archive import pack


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for image in ("b", "a"):
        (folder / f"{image}_AGL.tif").write_bytes(os.urandom(3000))
        (folder / f"{image}_VFLOW.json").write_text("{}")
    (folder / "a_LOOK.png").write_bytes(b"x")
    (folder / "about.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tar", "s.tgz"])
def test_it_holds_the_files_of_the_challenge_and_nothing_else(folder, tmp_path, name):
    pack(folder, ["b", "a"], tmp_path / "packed" / name)
    with tarfile.open(tmp_path / "packed" / name) as tar:
        names = ["a_AGL.tif", "a_VFLOW.json", "b_AGL.tif", "b_VFLOW.json"]
        assert tar.getnames() == names
        assert [tar.extractfile(name).read() for name in names] == [(folder / name).read_bytes() for name in names]


def test_the_bytes_depend_on_names_and_contents_alone(folder, tmp_path):
    pack(folder, ["a", "b"], tmp_path / "one.tar.gz")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    pack(folder, ["b", "a"], tmp_path / "two.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    assert (tmp_path / "one.tar.gz").read_bytes()[3:8] == bytes(5)  # neither a name nor a time
    pack(folder, ["a", "b"], tmp_path / "one.tar")
    assert gzip.decompress((tmp_path / "one.tar.gz").read_bytes()) == (tmp_path / "one.tar").read_bytes()


def test_it_is_not_written_if_anything_is_missing(folder, tmp_path):
    (folder / "b_VFLOW.json").unlink()
    with pytest.raises(UserError, match=r"s\.tar is not written, since .* lacks b_VFLOW.json, c_AGL.tif, c_VFLOW"):
        pack(folder, ["a", "b", "c"], tmp_path / "s.tar")
    assert os.listdir(tmp_path) == ["out"]


def test_who_interrupts_it_leaves_nothing(folder, tmp_path):
    def leave():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pack(folder, ["a"], tmp_path / "s.tar.gz", leave)
    assert os.listdir(tmp_path) == ["out"]


def test_a_name_that_is_no_archive_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"give the name of a \.tar\.gz or \.tar file"):
        pack(folder, ["a"], tmp_path / "s.zip")
    (tmp_path / "s.tar").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        pack(folder, ["a"], tmp_path / "s.tar")
