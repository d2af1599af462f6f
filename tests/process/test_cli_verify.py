"""`crewlog seal` and `crewlog verify` on a running crew: the log holds, and a mark that was kept elsewhere is of this log."""

from __future__ import annotations

from pathlib import Path

from support.live_crew import LiveCrew


def test_a_running_crew_is_sealed_and_verified(crew: LiveCrew, tmp_path: Path) -> None:
    crew.run("submit", "How many penguins are there: two penguins and three?", "--wait")
    assert any(crew.json("verify")["seals"] for _ in range(100)), "the projector seals by itself, seconds behind the appends"
    mark = crew.run("seal").stdout
    kept = tmp_path / "seal"
    kept.write_text(mark)
    found = crew.json("verify", "--against", kept, "--from-scratch")
    assert found["events"] > 0
    assert (found["faults"], found["spoiled_blobs"]) == ([], [])
    assert f"it is the log of seal {mark.partition(':')[0]}" in crew.run("verify", "--against", kept).stderr
    assert "one that was cut or sealed anew shows --against a kept seal" in crew.run("verify").stderr
    assert "sealed up to position" in (crew.home / "logs" / "projector.log").read_text()
    other = f"{mark.partition(':')[0]}:{'0' * 64}"
    (fault,) = crew.json("verify", "--against", other, code=1)["faults"]
    assert fault["kind"] == "other log"
    assert "is no seal" in crew.run("verify", "--against", "nothing", code=2).stderr
