"""What an outbox on disk adds, and what it does to a process with a crowded one."""
