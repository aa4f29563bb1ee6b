"""The library: data, model, training, feedback, evaluation and release. Knows no orchestrator, tracker or data versioner."""
