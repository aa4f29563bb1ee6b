"""How the project's own servers are started and stopped."""
