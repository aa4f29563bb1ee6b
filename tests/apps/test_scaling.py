"""The page of a ladder: every run, the laws side by side, charts that are well-formed."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from apps import scaling
from llm_core.scaling.devices import TABLE
from llm_core.scaling.ladder import Study, design, learn
from llm_core.scaling.laws import Law
from llm_core.scaling.planner import Budget, Corpus, make_plan

TRUTH = Law(E=2.8, A=82, B=156, alpha=0.389, beta=0.416)


@pytest.fixture(scope="module")
def study() -> Study:
    ladder = design(614_753, 2048, 128)
    losses = {r.name: TRUTH.loss(r.shape.parameters(), r.tokens) for r in (*ladder.rungs, ladder.held_out)}
    return learn(ladder, losses, bootstrap=5)


def test_the_page_tells_the_law_the_check_the_runs_and_the_plan(study: Study) -> None:
    plan = make_plan(Budget(hours=1), TABLE["cpu-2"], Corpus(614_753, 2048, "<shards>"), law=study.law)
    page = scaling.render("main & more", study, plan)
    assert "main &amp; more" in page
    assert "&lt;shards&gt;" in page
    assert f"predicted {study.predicted:.3f}, actual {study.actual:.3f}" in page
    assert all(rung.name in page for rung in (*study.ladder.rungs, study.ladder.held_out))
    for name in ("Epoch AI", "Hoffmann et al. 2022", "Kaplan et al. 2020", "arXiv:2203.15556"):
        assert name in page
    assert "The plan that follows" in page
    assert "The plan that follows" not in scaling.render("main", study)
    assert "<script" not in page
    assert "http://www.w3.org/2000/svg" in page


def test_charts_are_whole_and_hold_every_run(study: Study) -> None:
    drawn = [ET.fromstring(chart) for chart in scaling.charts(study)]
    isoflops, frontier, sizes = drawn
    dots = "{http://www.w3.org/2000/svg}circle"
    assert len(list(isoflops.iter(dots))) == len(study.ladder.rungs)
    assert len(list(frontier.iter(dots))) == len(study.ladder.rungs) + 2
    lines = list(sizes.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 4  # the own law, two of Chinchilla's runs, Kaplan's
    for chart in drawn:
        for dot in chart.iter(dots):
            assert 0 <= float(dot.attrib["cx"]) <= scaling.WIDTH
            assert 0 <= float(dot.attrib["cy"]) <= scaling.HEIGHT


def test_equal_studies_give_equal_pages(study: Study) -> None:
    assert scaling.render("main", study) == scaling.render("main", study)
