"""The library: data, model, training, feedback, evaluation, release. Knows no orchestrator, tracker or versioner."""
