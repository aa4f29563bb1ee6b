"""Cards tell their facts, nothing else, and the same facts the same way."""

from __future__ import annotations

from llm_core.release.card import DataFacts, ModelFacts, render_card, render_data_card, sparkline


def test_a_model_card_tells_its_facts_and_nothing_else() -> None:
    facts = ModelFacts(
        name="groundup-1",
        summary="A small model.",
        sources=[{"source": "docs", "kept": 1234, "licence": "PSF"}, {"source": "a|b", "kept": 5, "licence": None}],
        settings={"pretrain": {"steps": "1400"}, "align": {"method": "dpo"}},
        curves={"pretrain: train/loss": [[2, 7.5], [4, 5.0], [6, 3.0]]},
        results=[{"figure": "bits per byte", "value": 1.6543210, "low": None, "high": None}],
        checks=[{"check": "win_rate", "figure": 0.51, "limit": 0.5, "passed": True}],
        verdict="Promoted.",
        feedback_text="1,400 votes of the simulated rater.",
    )
    card = render_card(facts)
    assert card.startswith("# groundup-1\n\nA small model.\n")
    assert "| docs | 1,234 | PSF |" in card
    assert "| a\\|b | 5 |  |" in card
    assert "| pretrain | steps | 1400 |" in card
    assert "| pretrain: train/loss | █▄▁ | 7.5 | 3 | 6 |" in card
    assert "| bits per byte | 1.654 |  |  |" in card
    assert "| win_rate | 0.51 | 0.5 | yes |" in card
    assert "## Feedback\n\n1,400 votes" in card
    assert "## Limits" not in card
    assert "Made from" not in card
    assert render_card(facts) == card


def test_a_data_card_counts_what_was_kept_and_dropped() -> None:
    card = render_data_card(
        DataFacts(
            name="data",
            summary="Two sources.",
            kept=[{"source": "docs", "in": 437, "kept": 397, "licence": "PSF-2.0"}],
            drops=[{"source": "docs", "reason": "too_few_words", "dropped": 40}],
            limits=["Nobody has cleared the licences."],
            lineage={"raw": "ab" * 32},
        )
    )
    assert "| docs | 437 | 397 | PSF-2.0 |" in card
    assert "## Dropped, by reason\n\n| source | reason | dropped |" in card
    assert "- Nobody has cleared the licences." in card
    assert f"| raw | {'ab' * 32} |" in card
    assert "Splits" not in card


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0]) == "▁"
    assert sparkline([1.0, 1.0, 1.0]) == "▁▁▁"
    assert sparkline(list(range(8))) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(list(range(1000)))) == 40
