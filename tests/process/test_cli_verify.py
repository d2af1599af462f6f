"""`crewlog seal` and `crewlog verify` on a running crew: the log holds, and a mark that was kept elsewhere is of this log."""

from __future__ import annotations

import time
from pathlib import Path

from support.live_crew import LiveCrew


def test_a_running_crew_is_sealed_and_verified(crew: LiveCrew, tmp_path: Path) -> None:
    crew.run("submit", "How many penguins are there: two penguins and three?", "--wait")
    log, give_up = crew.home / "logs" / "projector.log", time.monotonic() + 90
    while "sealed up to position" not in log.read_text():  # the projector seals by itself, seconds behind the appends
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert crew.json("verify")["seals"] > 0
    mark = crew.run("seal").stdout
    kept = tmp_path / "seal"
    kept.write_text(mark)
    found = crew.json("verify", "--against", kept, "--from-scratch")
    assert found["events"] > 0
    assert (found["faults"], found["spoiled_blobs"]) == ([], [])
    assert f"it is the log of seal {mark.partition(':')[0]}" in crew.run("verify", "--against", kept).stderr
    assert "one that was cut or sealed anew shows --against a kept seal" in crew.run("verify").stderr
    other = f"{mark.partition(':')[0]}:{'0' * 64}"
    (fault,) = crew.json("verify", "--against", other, code=1)["faults"]
    assert fault["kind"] == "other log"
    assert "is no seal" in crew.run("verify", "--against", "nothing", code=2).stderr
