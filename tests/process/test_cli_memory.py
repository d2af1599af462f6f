"""Memory on the command line: what a specialist of one's own noted is listed, shown, recalled in a later run, and forgotten."""

from __future__ import annotations

from pathlib import Path

from support.live_crew import LiveCrew, own_agent

SHAPE = "tenant user_name content memory about trust kind run_id task_id remembered_at position"
KEEPER = """
from crewlog.agents.spec import AgentSpec

AGENT = AgentSpec(kind="keeper", description="Keeps notes.", instructions="Note what you are told, and look up what you are asked.", memory="remember")
"""


def test_a_note_is_kept_listed_recalled_and_forgotten(crew: LiveCrew, tmp_path: Path) -> None:
    (tmp_path / "keeper.py").write_text(KEEPER)
    with own_agent(crew, "keeper:AGENT", tmp_path):
        crew.run("submit", 'Remember the text "Ann prefers green tea"', "--type", "keeper", "--wait", "--timeout", "60")
        (noted,) = crew.json("memory", "list")
        assert set(noted) == set(SHAPE.split())
        assert (noted["memory"], noted["user_name"], noted["trust"], noted["kind"]) == ("Ann prefers green tea", "anonymous", "trusted", "keeper")
        assert "Ann prefers green tea" in crew.run("memory", "list").stdout
        assert crew.json("memory", "list", "--user", "bob") == []
        assert crew.json("memory", "show", noted["content"][:8]) == noted

        recalled = crew.json("submit", 'Recall "tea"', "--type", "keeper", "--wait", "--timeout", "60")
        assert "Ann prefers green tea" in recalled["answer"]

        assert "matches nothing" in crew.run("memory", "forget", noted["content"], "--for", "bob", code=3).stderr
        forgotten = crew.json("memory", "forget", noted["content"][:8], "--reason", "she changed her mind")
        assert forgotten == {"content": noted["content"], "user_name": "anonymous", "status": "forgotten"}
        assert crew.json("memory", "list") == []
        assert "matches nothing" in crew.run("memory", "show", noted["content"], code=3).stderr
