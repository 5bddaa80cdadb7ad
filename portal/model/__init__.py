"""Values and rules: messages, tiers, schedules, links, ranking, reasons, text, errors. No I/O."""
