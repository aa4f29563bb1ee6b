"""From votes to a better model: collect, reward, align."""
