"""What is sent: events, checked and serialized."""
