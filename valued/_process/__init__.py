"""What a process is: forks, exits, signals."""
