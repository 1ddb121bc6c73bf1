"""What the user runs: the job file, the command, and the graphs."""
