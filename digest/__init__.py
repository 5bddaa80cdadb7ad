"""The digest process: tells recipients what was held, and sends what waits. Imports `portal`, never the reverse."""
