"""What a call takes of the thread that makes it."""
