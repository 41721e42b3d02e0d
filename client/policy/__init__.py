"""What a site allows: its limits, a rule for every setting, and the verdict on a plan."""
