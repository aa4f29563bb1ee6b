from __future__ import annotations

from llm_core.release.card import CardFacts, DataSource, render_card


def test_a_card_tells_its_facts_and_nothing_else() -> None:
    card = render_card(
        CardFacts(
            name="groundup-1",
            summary="A small model.",
            sources=[DataSource("docs", 1234, "PSF"), DataSource("a|b", 5)],
            results={"bits per byte": 1.6543210, "greedy accuracy": 0.5},
            feedback="1,400 votes of the simulated rater.",
        )
    )
    assert card.startswith("# groundup-1\n\nA small model.\n")
    assert "| docs | 1,234 | PSF |" in card
    assert "| a\\|b | 5 | not stated |" in card
    assert "| bits per byte | 1.654 |" in card
    assert "## Feedback\n\n1,400 votes" in card
    assert "Limits" not in card
    assert "Made from" not in card
    assert card.endswith("|\n") or card.endswith("rater.\n")
