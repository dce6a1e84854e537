"""Which layers a token runs: families, units, schedules, stored calibrations. No torch."""
