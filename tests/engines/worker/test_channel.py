"""The socket between controller and worker."""

import os

from distbelief.engines.worker.channel import Channel


def test_messages_keep_their_order_and_bring_descriptors() -> None:
    ours, theirs = Channel.pair()
    reading, writing = os.pipe()
    assert ours.send("job", fds=(writing,), replica=3)
    assert ours.send("lease", lease=None)
    job = theirs.receive()
    assert job is not None
    assert (job["kind"], job["replica"]) == ("job", 3)
    os.write(job["fds"][0], b"x")
    assert os.read(reading, 1) == b"x"
    assert theirs.receive() == {"kind": "lease", "lease": None, "fds": []}
    ours.close()
    theirs.close()
    for fd in (reading, writing, *job["fds"]):
        os.close(fd)


def test_what_was_said_before_a_death_can_still_be_read() -> None:
    """Also if the dead had not read all that was sent to them."""
    ours, theirs = Channel.pair()
    ours.send("lease", lease=None)
    theirs.send("done", lease=1)
    theirs.close()
    assert ours.receive() == {"kind": "done", "lease": 1, "fds": []}
    assert ours.receive() is None
    assert not ours.send("lease")
    ours.close()
