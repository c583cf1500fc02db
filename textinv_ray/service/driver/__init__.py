"""One job, from the command to the exit code."""
