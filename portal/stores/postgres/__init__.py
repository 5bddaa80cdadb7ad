"""The store in PostgreSQL. `store` has `PostgresStore`; the other modules have its parts."""
