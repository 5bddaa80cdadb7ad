"""The PostgreSQL store. `store` has `PostgresStore`; the other modules have its parts."""
