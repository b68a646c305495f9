"""Read the records of runs: rules, red flags, rankings, verdicts. Nothing here needs torch."""
