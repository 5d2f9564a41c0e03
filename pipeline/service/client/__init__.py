"""What actors and learners use of a service; it loads neither the service nor the store."""
