"""vhostrt.vhost.access: the words that say who may use a socket."""
import os

import pytest

from vhostrt.vhost import access
from vhostrt.vhost.access import Access

ME = os.geteuid()


def test_names_and_numbers():
    assert access.make("660", "root", "root", ["root", 107]) \
        == Access(0o660, "root", "root", ("root", "107"))
    who = access.make(owner=str(ME), group=7, peers=("0",))
    assert who.ids() == (ME, 7) and who.peer_ids() == {0}
    assert Access().ids() == (-1, -1) and Access().peer_ids() is None


def test_what_is_saved_makes_the_same_again():
    for words in ({}, {"mode": "0600", "owner": "root", "group": "5", "peers": ["root", "9"]},
                  {"mode": "0000"}, {"peers": ["root"]}):
        assert access.make(**words).params() == words
        assert access.make(**access.make(**words).params()) == access.make(**words)


@pytest.mark.parametrize("words, why", [
    ({"mode": ""}, "mode ''"), ({"mode": "888"}, "mode '888' is not permissions in octal"),
    ({"mode": "1777"}, "'1777'"), ({"mode": "0o660"}, "'0o660'"), ({"mode": "-1"}, "'-1'"),
    ({"owner": "no-such-user"}, "there is no user 'no-such-user': give its number"),
    ({"owner": ""}, "there is no user ''"), ({"owner": "x\0y"}, "no user"),
    ({"owner": "\udc80"}, "no user"), ({"owner": 2**32 - 1}, "user '4294967295' is more than"),
    ({"owner": "9" * 5000}, "is more than"), ({"owner": "-1"}, "there is no user '-1'"),
    ({"group": "no-such-group"}, "there is no group 'no-such-group'"),
    ({"group": 2**32}, "group '4294967296'"), ({"peers": []}, "an empty list of peers"),
    ({"peers": ["root", "nosuch"]}, "there is no user 'nosuch'"),
])
def test_refused(words, why):
    with pytest.raises(ValueError, match=why) as refused:
        access.make(**words)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200
