"""What --disk says, from the viewpoint of who types it."""
import shlex

import pytest

from vhostrt.disks import Disk, name_disks, qemu_words, read_disk

TAKEN = [
    ("malloc:256M", Disk("malloc", 256 << 20)),
    ("malloc:1k,ro", Disk("malloc", 1024, readonly=True)),
    ("malloc:64", Disk("malloc", 64 << 20)),
    ("./disk.img", Disk("file", path="./disk.img")),
    ("file:malloc:1", Disk("file", path="malloc:1")),
    ("file:x,name=a,socket=b,ro", Disk("file", 0, "x", "a", "b", True)),
    ("x,socket=/tmp/s,name=n", Disk("file", 0, "x", "n", "/tmp/s")),
    ("a,,b,,,name=c,,d", Disk("file", 0, "a,b,", "c,d")),
    ("x,group=root,mode=660,ro,peers=root:107", Disk("file", 0, "x", readonly=True, access=(
        ("mode", "660"), ("group", "root"), ("peers", ("root", "107"))))),
    ("x,owner=5", Disk("file", 0, "x", access=(("owner", "5"),))),
]

REFUSED = {
    "": "names no file", "file:": "names no file", ",name=x": "names no file",
    "malloc:": "not a size", "malloc:0": "whole number of 512", "malloc:1.5G": "not a size",
    "malloc:1G5": "not a size",
    "x,": "is none of", "x,name=": "is none of", "x,readonly": "is none of", "x,ro=1": "is none of",
    "x,mode=999": "mode '999'", "x,owner=no-such-user": "there is no user 'no-such-user'",
    "x,group=,": "is none of", "x,peers=root:": "there is no user ''",
    "x,mode=660,mode=600": "again",
    "x,size=3": "is none of", "x,ro,ro": "again", "x,name=a,name=b": "again",
}


@pytest.mark.parametrize("text, disk", TAKEN)
def test_taken(text, disk):
    assert read_disk(text) == disk


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text):
    with pytest.raises(ValueError, match=REFUSED[text]):
        read_disk(text)


def test_nameless_disks_get_the_first_free_names():
    disks = [read_disk(text) for text in ("a", "b,name=Disk0", "c,socket=vhost.1", "d")]
    named = name_disks(tuple(disks), "")
    assert [d.name for d in named] == ["Disk1", "Disk0", "Disk2", "Disk3"]
    assert [d.socket for d in named] == ["vhost.0", "vhost.2", "vhost.1", "vhost.3"]
    assert [d.path for d in named] == ["a", "b", "c", "d"]
    kept, = name_disks((read_disk("a,ro,mode=600"),), "")
    assert kept == Disk("file", 0, "a", "Disk0", "vhost.0", True, (("mode", "600"),))


@pytest.mark.parametrize("texts, why", [
    (("a,name=x", "b,name=x"), "the name 'x'"), (("a,socket=x", "b,socket=x"), "the socket 'x'"),
    (("a,socket=" + "x" * 100,), "longer than 107"),
])
def test_disks_that_cannot_be_together(texts, why):
    with pytest.raises(ValueError, match=why):
        name_disks(tuple(map(read_disk, texts)), "/run/vhost/")


def test_what_to_tell_qemu():
    words = shlex.split(qemu_words(["/run/vhost.0", "/a b/it's,1"]))
    assert words[:6] == ["-m", "1G", "-object", "memory-backend-memfd,id=mem,size=1G,share=on",
                         "-numa", "node,memdev=mem"]
    assert words[6:] == ["-chardev", "socket,id=disk0,path=/run/vhost.0",
                         "-device", "vhost-user-blk-pci,chardev=disk0",
                         "-chardev", "socket,id=disk1,path=/a b/it's,,1",
                         "-device", "vhost-user-blk-pci,chardev=disk1"]
