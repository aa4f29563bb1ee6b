"""What a person starts: the story, in order."""
