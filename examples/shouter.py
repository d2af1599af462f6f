"""A specialist of your own. Run it beside a crew:  crewlog agent shouter:AGENT"""

from pydantic import BaseModel, Field

from crewlog.agents import AgentSpec, ToolContext, ToolOutput, ToolSpec
from crewlog.schemas.values import Outcome


class Shout(BaseModel):
    text: str = Field(description="The text to shout.")


async def shout(_: ToolContext, args: Shout) -> ToolOutput:
    loud = args.text.upper() + "!"
    return ToolOutput(loud, outcome=Outcome(loud))


AGENT = AgentSpec(
    kind="shouter",
    description="Writes a text in capital letters.",
    instructions="Call shout once with the text of the objective.",
    tools=(ToolSpec("shout", "Return the text in capital letters.", Shout, shout, effect="read", ends_task=True),),
)
