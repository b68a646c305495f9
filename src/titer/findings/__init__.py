"""What the records of a run say: rules, red flags, rankings, verdicts. Nothing here needs torch."""
