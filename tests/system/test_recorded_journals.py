"""A daemon starts with the journals that earlier versions wrote, and finishes the tasks in them."""

from __future__ import annotations

import tarfile

import pytest

from llmosd import AgentFailed, Killed
from tests.support.daemon import RunningDaemon
from tests.support.recorded_journal import JOURNALS, TOKENS, launch
from tests.support.simulated import text_of

RECORDED = sorted(JOURNALS.glob("*.tar.xz"))


@pytest.fixture(params=RECORDED, ids=[path.name for path in RECORDED])
def daemon(request, folder):
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    daemon = launch(folder, folder / "ledger")
    yield daemon
    daemon.stop()


def test_every_task_of_an_earlier_version_ends_as_if_nothing_had_changed(daemon: RunningDaemon, folder):
    with daemon.client() as client:
        rows = client.history()
        ended = {row.program: client.attach(row.id) for row in rows if row.ended}
        tasks = {row.program: client.attach(row.id) for row in rows if not row.ended}
        assert ended["quick"].result(60) == 42
        with pytest.raises(AgentFailed, match="broken on purpose"):
            ended["broken"].result(60)
        with pytest.raises(Killed):
            ended["echo"].result(60)

        assert tasks["sleeper"].result(60) == "slept"
        assert tasks["story"].result(60) == text_of(7, TOKENS)
        (slots,) = client.slots()
        assert (slots.restores, slots.recomputations) == (1, 0)

        client.send("echo", "again")
        assert tasks["echo"].result(60) == [2, "again"]

        (halted,) = [row for row in client.ps() if row.program == "halted"]
        assert (halted.pid, halted.state) == (8, "suspended")
        client.resume(halted.pid)
        assert tasks["halted"].result(60) == "a message that waits"

        (counter,) = [row for row in client.ps() if row.program == "counter"]
        assert (counter.pid, counter.priority) == (7, 5)
        client.send("counter", 3)
        assert tasks["counter"].result(60) == 6

        client.send("archivist", None, type="close")
        assert tasks["asker"].result(60) == "page 7"
        client.send("archivist", "extra", type="news")
        assert tasks["archivist"].result(60) == {
            "title": text_of(5, 4),
            "page": "page 1, drawn True",
            "first": [1, "two", 3.0],
            "catalogue": [{"pages": 7}, 1],
            "news": "extra",
            "time passed": True,
        }
    assert (folder / "ledger").read_text() == "after the stop\n"
