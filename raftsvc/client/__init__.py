"""What `raftsvc.connect` makes: the way to a cluster of a process that holds no replica, by any of its members."""
