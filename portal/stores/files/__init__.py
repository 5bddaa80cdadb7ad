"""Store on the file system of one host. `store` has `FileStore`; the other modules have its parts."""
