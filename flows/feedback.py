"""What people said becomes the next model: from the votes to a candidate that the gate judges.

The pages are not asked again and nothing is pretrained: the chat model that stands is where every round begins.
"""

from __future__ import annotations

from prefect import flow

from apps.report import write_report
from tasks import summary
from tasks.form import HERE, Folder
from tasks.session import open_session
from tasks.stages import align, collect, evaluate, gather_votes, promote, reward
from tasks.votes import standing


@flow(name="feedback", flow_run_name=summary.run_name, validate_parameters=False)
def feedback(workspace: Folder = HERE) -> summary.Summary:
    """Train on the votes of people once there are enough of them, on the simulated rater's until then."""
    with open_session(workspace) as run:
        base, chat, shards, corpus = standing(run, "base", "chat", "shards", "corpus")

        gather_votes(run)
        votes = collect(run, chat, corpus)
        judge = reward(run, chat, votes)
        aligned = align(run, chat, judge, votes)

        scores = evaluate(run, base, chat, aligned, judge, shards, corpus)
        verdict = promote(run, scores)

        page = write_report(run.space, run.states)
        return summary.tell(run, verdict, page)
