"""What has the name of a shard but is no file is reported, and never waited for."""

import os
import socket

import pytest
from toy_data import labelled_episode, write_store

from worldmodel.data import EpisodeCollection, EpisodeStore, verify

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files of POSIX")


def bind(path):
    with socket.socket(socket.AF_UNIX) as one:
        folder = os.getcwd()
        os.chdir(path.parent)  # the path of a socket has 107 characters at most
        try:
            one.bind(path.name)
        finally:
            os.chdir(folder)


KINDS = {"fifo": os.mkfifo, "folder": os.mkdir, "socket": bind, "circle": lambda path: path.symlink_to(path.name)}


@pytest.mark.parametrize("kind", KINDS)
def test_reading_a_shard_that_is_no_file_is_an_error(tmp_path, kind):
    store = write_store(tmp_path / "s", [labelled_episode(i, 5) for i in range(3)])
    (shard,) = (tmp_path / "s" / "shards").glob("*.safetensors")
    shard.unlink()
    KINDS[kind](shard)
    for read in (lambda: store.read(1), lambda: list(EpisodeStore.open(tmp_path / "s")), lambda: window(tmp_path / "s")):
        with pytest.raises(ValueError, match=r"regular file|link that leads in a circle"):
            read()
    assert verify(tmp_path / "s")


def window(path):
    return EpisodeCollection.open(path).read(1, 2, 4)
