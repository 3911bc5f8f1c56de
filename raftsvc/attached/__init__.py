"""The other processes of a host: attached to the one that owns the directory, and ready to take its place."""
