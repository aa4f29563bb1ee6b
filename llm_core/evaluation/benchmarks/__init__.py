"""Evaluation sets that are made here."""
