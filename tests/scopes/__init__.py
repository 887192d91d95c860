"""What scopes hold, and for whom."""
