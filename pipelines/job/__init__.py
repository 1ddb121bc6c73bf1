"""The job file and the plan that is made of it."""
