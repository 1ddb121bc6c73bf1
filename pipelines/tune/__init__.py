"""Chooses settings of the ranking on earlier parts of the job's own log."""
