"""The store on one host's file system. `store` has `FileStore`; the other modules have its parts."""
