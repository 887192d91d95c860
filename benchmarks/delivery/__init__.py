"""What a delivered event takes of the process, and how many a second there are."""
