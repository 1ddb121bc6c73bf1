"""The runners that Unisono knows: a file for each, and `select`, which finds the one that `--runner` names."""
