"""One file a stage: its section of params.yaml. Imports no torch, so that bad input is refused at once."""
