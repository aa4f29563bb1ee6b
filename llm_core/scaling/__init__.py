"""Scaling laws, the ladder of small runs that fits one, and the plan that follows from it."""
